// Layer x token map with its two marginals. Plotly holds the picture; while the budget is dragged a canvas over
// it shows the preview, because repainting pixels is cheap and redrawing a chart is not.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const CELL_GAP_LIMIT = 10000, SETTLE = 160;
  const VALUES = [["bits", "bits"], ["score", "router score"], ["margin", "margin"], ["error", "error"]];

  function baseLayout(layers) {
    const known = Object.keys(mbq.config.layouts.map).map(Number);
    const near = known.reduce((a, b) => (Math.abs(b - layers) < Math.abs(a - layers) ? b : a));
    return structuredClone(mbq.config.layouts.map[near]);
  }

  mbq.views.map = (root) => {
    const head = mbq.heading("Where the bits went: layer × token"), badge = el("b", "mbq-badge", "preview");
    badge.hidden = true;
    head.querySelector("h2").append(" ", badge);
    const tools = el("div", "mbq-tools"), legend = el("div", "mbq-legend");
    const linears = mbq.choice("Linears", [["all", "all"], ["attention", "attention"], ["mlp", "MLP"], ...mbq.projections.map((p) => [p, mbq.short(p), p])], "all", (key) => mbq.setFilter({ linears: key }));
    const values = mbq.choice("Show", VALUES, "bits", (key) => mbq.setFilter({ value: key }));
    const slices = mbq.choice("Slice", [["0", "2"], ["1", "3"], ["2", "4"]], "0", (key) => mbq.setFilter({ slice: Number(key) }));
    tools.append(linears, values, slices);
    const frame = el("div", "mbq-plotbox"), div = el("div", "mbq-plot"), canvas = el("canvas", "mbq-overlay");
    div.setAttribute("role", "group");
    div.setAttribute("aria-label", "Heat map of bits per layer and token; the token strip above offers the same by keyboard");
    frame.append(div, canvas);
    root.append(head, tools, legend, frame);
    canvas.hidden = true;
    let cells = null, settle = 0, drawn = false;
    div.mbqNames = {
      x: (t) => `${t} “${mbq.visible(mbq.run.texts[t])}”`,
      caption: () => `Mean ${VALUES.find(([key]) => key === mbq.filter.value)[1]} of ${linearWord()} for every token and layer`,
    };

    const make = () => {
      const run = mbq.run, filter = mbq.filter, { T, layers } = run;
      cells = mbq.cells(run, filter);
      const style = mbq.valueStyle(filter, cells), gap = T * layers <= CELL_GAP_LIMIT ? 1 : 0;
      const rows = Array.from({ length: layers }, (_, y) => cells.z.subarray(y * T, (y + 1) * T));
      // Colours, not numbers with a scale: Plotly warns in the console about every number, bar by bar.
      const paint = (values) => Array.from(values, (v) => mbq.css(mbq.shade(style.palette, (v - style.low) / (style.high - style.low))));
      const layout = baseLayout(layers), span = [Math.min(0, style.low), Math.max(0, style.high)];
      const range = filter.value === "bits" ? [0, 8.4] : span;
      Object.assign(layout, { uirevision: run.id });
      Object.assign(layout.xaxis, { range: [-0.5, Math.max(T, 24) - 0.5], ...mbq.tokenTicks(run, div.clientWidth * 0.8) });
      Object.assign(layout.yaxis, { range: [-0.5, layers - 0.5], fixedrange: layers < 20 });
      const marks = filter.value === "bits" ? { tickvals: [0, 4, 8] } : { dtick: null, nticks: 3 };
      const word = { bits: "mean bits", score: "mean score", margin: "mean margin", error: "mean error" }[filter.value];
      Object.assign(layout.xaxis2, { range, fixedrange: true, ...marks, title: { text: word, font: { size: 11 } } });
      Object.assign(layout.yaxis2, { range, fixedrange: true, ...marks, title: { text: "mean", font: { size: 11 } } });
      mbq.legend(legend, style);
      return {
        data: [
          { type: "heatmap", z: rows, zmin: style.low, zmax: style.high, colorscale: "mbq:" + style.palette, showscale: false, xgap: gap, ygap: gap, hoverinfo: "none", zsmooth: false },
          { type: "bar", y: cells.top, yaxis: "y2", marker: { color: paint(cells.top) }, hoverinfo: "none" },
          { type: "bar", orientation: "h", x: cells.right, xaxis: "x2", marker: { color: paint(cells.right) }, hoverinfo: "none" },
        ],
        layout,
      };
    };
    // Before Plotly is there: the same picture on the canvas, without its axes.
    const early = () => {
      const { layout } = make();
      frame.style.minHeight = layout.height + "px";
      canvas.hidden = false;
      const panes = mbq.plainPanes(layout, div.clientWidth);
      mbq.paintPreview(canvas, { _fullLayout: panes }, mbq.run, cells, mbq.valueStyle(mbq.filter, cells));
    };
    const draw = () => {
      if (!mbq.run) return;
      canvas.hidden = true;
      if (!drawn && div.clientWidth) early();
      mbq.plot(div, make);
    };
    mbq.onDrawn(div, () => {
      drawn = true;
      canvas.hidden = true;
      frame.style.minHeight = "";
      mbq.frames(div);
      mbq.keepZoom(div);
    });
    const soon = mbq.paced(draw);

    const preview = () => {
      badge.hidden = !mbq.preview;
      if (!div._fullLayout || div.mbqStale || (mbq.filter.value !== "bits" && mbq.filter.value !== "margin")) return soon();
      cells = mbq.cells(mbq.run, mbq.filter);
      canvas.hidden = false;
      mbq.paintPreview(canvas, div, mbq.run, cells, mbq.valueStyle(mbq.filter, cells));
      clearTimeout(settle);
      settle = setTimeout(soon, SETTLE);
    };

    const refresh = () => {
      const run = mbq.run, able = run && run.errors;
      values.inputs.error.disabled = !able;
      values.inputs.error.parentElement.title = able ? "" : "Errors are recorded by “Analyze text”";
      if (!able && mbq.filter.value === "error") {
        values.inputs.bits.checked = true;
        return mbq.setFilter({ value: "bits" });
      }
      slices.hidden = mbq.filter.value !== "score" && mbq.filter.value !== "margin";
      badge.hidden = !mbq.preview;
      soon();
    };
    for (const name of ["run", "columns", "filter", "done", "scale"]) mbq.on(name, refresh);
    mbq.on("depths", preview);

    const pointer = (event) => {
      const at = mbq.run && cells && mbq.cellAt(div, event);
      if (!at) return null;
      const token = Math.round(at.x), layer = Math.round(at.y);
      return token >= 0 && token < mbq.run.T && layer >= 0 && layer < mbq.run.layers ? { layer, token } : null;
    };
    div.addEventListener("pointermove", (event) => {
      const cell = pointer(event);
      mbq.hover(cell);
      if (!cell) return mbq.tip(null);
      const value = cells.z[cell.layer * mbq.run.T + cell.token], word = VALUES.find(([key]) => key === mbq.filter.value)[1];
      mbq.tip([mbq.describe(cell), `layer ${cell.layer}, ${linearWord()}: ${mbq.fixed(value)} ${word}`], event.clientX, event.clientY);
    });
    const linearWord = () => (mbq.filter.linears === "all" ? "all seven linears" : mbq.filter.linears);
    div.addEventListener("pointerleave", () => {
      mbq.hover(null);
      mbq.tip(null);
    });
    mbq.onTap(div, (event) => {
      const cell = pointer(event);
      if (cell) mbq.pin(cell);
    });
    if (mbq.run) refresh();
  };
})();
