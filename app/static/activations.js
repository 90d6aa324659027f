// Activation outliers: max |h| of the residual stream, token by layer, and the top three per layer.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  mbq.views.activations = (root) => {
    const head = mbq.heading("Activation outliers: the largest |h| of every token", "h is the residual stream before layer 0 and after each layer. Colour is max |h| over channels, on a logarithmic scale. A few tokens, mostly the first, carry values hundreds of times the median: massive activations.");
    const split = el("div", "mbq-two"), left = el("div"), right = el("div"), sentence = el("p", "mbq-sentence"), legend = el("div", "mbq-legend");
    const mapBox = el("div", "mbq-plotbox"), map = el("div", "mbq-plot"), curves = el("div", "mbq-plot");
    map.setAttribute("role", "group");
    map.setAttribute("aria-label", "Heat map of the largest residual magnitude by token and layer");
    curves.setAttribute("role", "group");
    curves.setAttribute("aria-label", "Three largest residual magnitudes per layer against the median");
    mapBox.append(map);
    left.append(el("h3", "", "Token × layer"), legend, mapBox);
    right.append(el("h3", "", "Top three of each layer against the median"), curves);
    split.append(left, right);
    root.append(head, sentence, split);
    let rows = null;
    map.mbqNames = { x: (t) => `${t} “${mbq.visible(mbq.run.texts[t])}”`, y: (r) => (r ? `after layer ${r - 1}` : "embedding"), value: (v) => 10 ** v };

    // Row 0 is the embedding, row r the stream after layer r - 1.
    const streamTicks = (R) => {
      const step = Math.max(1, Math.ceil(R / 13)), at = [0];
      for (let r = 1; r < R; r += step) at.push(r);
      return { tickmode: "array", tickvals: at, ticktext: at.map((r) => (r ? String(r - 1) : "emb.")), dtick: null };
    };
    const drawMap = () => {
      const run = mbq.run, { T, R } = run, scale = mbq.logScale(run.residualMax.subarray(0, T * R), "max |h|");
      rows = Array.from({ length: R }, (_, r) => Float32Array.from({ length: T }, (_, t) => Math.log10(Math.max(run.residualMax[t * R + r], 1e-6))));
      mbq.legend(legend, scale);
      const layout = structuredClone(mbq.config.layouts.magnitude), gap = T * R <= 10000 ? 1 : 0;
      Object.assign(layout, { uirevision: run.id });
      Object.assign(layout.xaxis, { range: [-0.5, Math.max(T, 24) - 0.5], ...mbq.tokenTicks(run, map.clientWidth * 0.9) });
      Object.assign(layout.yaxis, { range: [-0.5, R - 0.5], ...streamTicks(R) });
      return { data: [{ type: "heatmap", z: rows, zmin: scale.low, zmax: scale.high, colorscale: "mbq:heat", showscale: false, xgap: gap, ygap: gap, hoverinfo: "none" }], layout };
    };
    // The three largest values over all tokens and channels of each depth, and the median token's median.
    const topThree = (run) => {
      const out = [[], [], []], median = [];
      for (let r = 0; r < run.R; r++) {
        const all = [], middles = [];
        for (let t = 0; t < run.T; t++) {
          for (let k = 0; k < 3; k++) all.push([run.residualTop3[(t * run.R + r) * 3 + k], t]);
          middles.push(run.residualMedian[t * run.R + r]);
        }
        all.sort((a, b) => b[0] - a[0]);
        for (let k = 0; k < 3; k++) out[k].push(all[k]);
        middles.sort((a, b) => a - b);
        median.push(middles[middles.length >> 1]);
      }
      return { out, median };
    };
    const drawCurves = () => {
      const run = mbq.run, { out, median } = topThree(run), layout = structuredClone(mbq.config.layouts.curves);
      layout.uirevision = run.id;
      Object.assign(layout.xaxis, streamTicks(run.R));
      const names = ["largest", "second", "third"], looks = ["solid", "solid", "solid"], shades = ["mbq:second", "mbq:accent", "mbq:line"];
      const data = out.map((list, k) => ({
        type: "scatter", mode: "lines+markers", name: names[k], y: list.map((pair) => pair[0]), line: { color: shades[k], dash: looks[k], width: 1.8 }, marker: { size: 5, symbol: ["circle", "square", "diamond"][k] },
        text: list.map(([, t], r) => `token ${t} “${mbq.label(run.texts[t])}”, ${r ? "after layer " + (r - 1) : "embedding"}`), hovertemplate: "%{text}<br>|h| %{y:.4~g}<extra></extra>",
      }));
      data.push({ type: "scatter", mode: "lines", name: "median", y: median, line: { color: "mbq:ink", dash: "dot", width: 1.5 }, hovertemplate: "median |h| %{y:.3~g}<extra></extra>" });
      return { data, layout };
    };
    const say = (run) => {
      const { out, median } = topThree(run);
      let best = 0;
      for (let r = 1; r < run.R; r++) if (out[0][r][0] / median[r] > out[0][best][0] / median[best]) best = r;
      const [value, token] = out[0][best], times = Math.round(value / median[best]);
      const place = best ? `after layer ${best - 1}` : "at the embedding";
      sentence.textContent = `Largest against its median: “${mbq.visible(run.texts[token])}” at position ${token}, ${place}: |h| = ${mbq.fixed(value, value < 10 ? 2 : 0)}, ${times} times the median of ${mbq.fixed(median[best], 2)}.`;
    };

    const draw = () => {
      if (!mbq.run) return;
      mbq.plot(map, drawMap);
      if (mbq.run.state !== "running") {
        mbq.plot(curves, drawCurves);
        say(mbq.run);
      }
    };
    const soon = mbq.paced(draw);
    for (const name of ["run", "columns", "done"]) mbq.on(name, soon);
    mbq.onDrawn(map, () => {
      mbq.frames(map, (cell) => cell.layer + 1);
      mbq.keepZoom(map);
    });

    const pointer = (event) => {
      const at = mbq.run && map._fullLayout && mbq.cellAt(map, event);
      if (!at) return null;
      const token = Math.round(at.x), row = Math.round(at.y);
      return token >= 0 && token < mbq.run.T && row >= 0 && row < mbq.run.R ? { row, token } : null;
    };
    map.addEventListener("pointermove", (event) => {
      const cell = pointer(event);
      mbq.hover(cell && { layer: Math.max(cell.row - 1, 0), token: cell.token });
      mbq.tip(cell && [mbq.describe(cell), `${cell.row ? "after layer " + (cell.row - 1) : "embedding"}: max |h| ${mbq.fixed(mbq.run.residualMax[cell.token * mbq.run.R + cell.row])}`], event.clientX, event.clientY);
    });
    map.addEventListener("pointerleave", () => {
      mbq.hover(null);
      mbq.tip(null);
    });
    mbq.onTap(map, (event) => {
      const cell = pointer(event);
      if (cell) mbq.pin({ layer: Math.max(cell.row - 1, 0), token: cell.token });
    });
    if (mbq.run) soon();
  };
})();
