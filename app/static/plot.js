// Plotly with the page's manners: colours by role, no upload button, hover and pin through the store.
// It loads the Plotly that ships with the Python package and keeps its own reference to it.
(function () {
  "use strict";
  const mbq = window.mbq;
  const drawn = new Set();
  // Plotly comes by itself. Its five megabytes are fetched at once, but running them blocks the page for most of a
  // second: that waits until the text, the numbers and the first colours have been painted.
  let Plotly = null, asked = false;
  document.head.append(Object.assign(document.createElement("link"), { rel: "preload", as: "script", href: mbq.config.plotly }));
  function load() {
    if (asked) return;
    asked = true;
    const script = document.createElement("script");
    script.src = mbq.config.plotly;
    script.onload = () => {
      Plotly = window.Plotly;
      const waiting = [...document.querySelectorAll(".mbq-plot")].filter((div) => div.mbqMake);
      mbq.inTurn(waiting.map((div) => () => mbq.plot(div, div.mbqMake)));
    };
    document.head.append(script);
  }
  const afterPaint = (fn) => requestAnimationFrame(() => setTimeout(fn, 0));
  mbq.on("server", () => setTimeout(load, 1500));

  const CONFIG = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
    showSendToCloud: false,
    showEditInChartStudio: false,
    responsive: true,
    scrollZoom: false,
    doubleClick: "reset",
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "png", scale: 2, filename: "mobiquant" },
  };

  // `mbq:ink` -> a colour, `mbq:bits.2` -> one of a palette, `mbq:bits` -> a colour scale; as theme.resolve does.
  mbq.resolve = (value) => {
    if (Array.isArray(value)) return value.map(mbq.resolve);
    if (ArrayBuffer.isView(value)) return value;
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, mbq.resolve(item)]));
    }
    if (typeof value !== "string" || !value.startsWith("mbq:")) return value;
    const [name, index] = value.slice(4).split("."), found = mbq.colours()[name];
    if (index !== undefined) return found[Number(index)];
    return Array.isArray(found) ? mbq.plotScale(name) : found;
  };

  // A redraw that asks for a frame, and while a run grows leaves the page three times as long as drawing took.
  mbq.paced = (draw) => {
    let waiting = false, ended = 0, cost = 0;
    return () => {
      if (waiting) return;
      waiting = true;
      const rest = mbq.run?.state === "running" ? ended + 3 * cost - performance.now() : 0;
      const frame = () => requestAnimationFrame(() => {
        waiting = false;
        const start = performance.now();
        draw();
        ended = performance.now();
        cost = ended - start;
      });
      if (rest > 0) setTimeout(frame, rest);
      else frame();
    };
  };

  // Where a page has a <base>, Plotly writes the page's whole address into every clip path, and the
  // chart goes blank when a permalink changes that address. Without one it writes bare fragments, which always hold.
  function withoutBase(draw) {
    const base = document.querySelector("base"), next = base && base.nextSibling, parent = base && base.parentNode;
    if (base) base.remove();
    draw();
    if (base) parent.insertBefore(base, next);
  }

  // Draws or redraws; `make` returns {data, layout} and is asked again when the ground changes.
  mbq.plot = (div, make) => {
    div.mbqMake = make;
    mbq.tableFor(div);
    if (!Plotly) {
      if (div.offsetParent) afterPaint(load);
      return;
    }
    if (!div.isConnected || div.offsetParent === null) {
      div.mbqStale = true;
      watchVisible(div);
      return;
    }
    div.mbqStale = false;
    const { data, layout } = make(), zoom = div.mbqZoom;
    if (zoom && zoom.run === mbq.run?.id) for (const axis of zoom.axes) layout[axis[0]].range = axis[1];
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: "mbq:line", activecolor: "mbq:accent" };
    withoutBase(() => Plotly.react(div, mbq.resolve(data), mbq.resolve(layout), CONFIG));
    drawn.add(div);
    for (const fn of (div.mbqFirst || []).splice(0)) fn();
  };
  // Once, after the first drawing; a chart in a closed tab is drawn when the tab opens.
  mbq.onDrawn = (div, fn) => (div.mbqFirst = div.mbqFirst || []).push(fn);

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && entry.target.mbqStale && entry.target.mbqMake) mbq.plot(entry.target, entry.target.mbqMake);
    }
  });
  const watched = new WeakSet();
  function watchVisible(div) {
    if (watched.has(div)) return;
    watched.add(div);
    seen.observe(div);
  }

  // A chart as a picture file, on the ground's own colour; a chart that was never drawn has none.
  mbq.image = (div, format, filename) => {
    if (!Plotly || !div.mbqMake) return Promise.reject(new Error("This chart has not been drawn yet."));
    const { data, layout } = div.mbqMake(), ground = mbq.colours().ground;
    const figure = { data: mbq.resolve(data), layout: { ...mbq.resolve(layout), paper_bgcolor: ground, plot_bgcolor: ground }, config: CONFIG };
    return Plotly.downloadImage(figure, { format, filename, width: Math.max(div.clientWidth, 900), height: layout.height, scale: 2 });
  };

  mbq.on("theme", () => {
    for (const div of drawn) if (div.mbqMake) mbq.plot(div, div.mbqMake);
  });

  // Ticks for a token axis: words while they fit, positions beyond that.
  mbq.tokenTicks = (run, width) => {
    const fit = Math.max(Math.floor(width / 15), 4);
    // Slanted words cost two layouts a drawing: while the run grows, positions will do.
    if (run.T <= fit && run.state !== "running") {
      const at = Array.from({ length: run.T }, (_, i) => i);
      return { tickmode: "array", tickvals: at, ticktext: at.map((i) => mbq.label(run.texts[i], 10)), tickangle: -60, title: { text: "" } };
    }
    return { tickmode: "auto", tickvals: null, ticktext: null, tickangle: 0, nticks: 12, title: { text: "token position", font: { size: 12 } } };
  };

  // Pointer position over a cartesian pane -> data coordinates, from Plotly's own axis objects.
  mbq.cellAt = (div, event, xName = "xaxis", yName = "yaxis") => {
    const full = div._fullLayout;
    if (!full || !full[xName]) return null;
    const box = div.getBoundingClientRect(), x = full[xName], y = full[yName];
    const px = event.clientX - box.left - x._offset, py = event.clientY - box.top - y._offset;
    if (px < 0 || py < 0 || px > x._length || py > y._length) return null;
    return { x: x.p2c(px), y: y.p2c(py) };
  };

  // A press without a drag. Plotly covers the page while a button is down, so the release is heard on the window.
  mbq.onTap = (div, fn) => {
    div.addEventListener("pointerdown", (down) => {
      const up = (event) => Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 4 && fn(event);
      window.addEventListener("pointerup", up, { once: true, capture: true });
    }, true);
  };

  // Keeps what a reader zoomed to while the run grows; Plotly itself gives it up when a range changes under it.
  mbq.keepZoom = (div) => {
    div.on("plotly_relayout", (change) => {
      const axes = ["xaxis", "yaxis"].filter((name) => Object.keys(change).some((key) => key.startsWith(name + ".range")));
      if (axes.length) div.mbqZoom = { run: mbq.run.id, axes: axes.map((name) => [name, div.layout[name].range.slice()]) };
    });
    div.on("plotly_doubleclick", () => {
      div.mbqZoom = null;
      mbq.plot(div, div.mbqMake);
    });
  };

  // Frames over the hovered and pinned cell: plain elements, so that moving them never redraws a chart.
  mbq.frames = (div, rowOf = (cell) => cell.layer) => {
    const holder = mbq.el("div", "mbq-frames"), column = mbq.el("div", "column"), hover = mbq.el("div", "hover"), pin = mbq.el("div", "pin");
    holder.append(column, hover, pin);
    div.parentElement.append(holder);
    const place = (element, cell, whole) => {
      const full = div._fullLayout;
      element.hidden = true;
      if (!cell || !full || !full.xaxis) return;
      const { xaxis: x, yaxis: y } = full, row = rowOf(cell);
      const left = x.c2p(cell.token - 0.5), right = x.c2p(cell.token + 0.5);
      const top = whole ? 0 : y.c2p(row + 0.5), bottom = whole ? y._length : y.c2p(row - 0.5);
      if (right <= 0 || left >= x._length || bottom <= 0 || top >= y._length || (!whole && cell.layer === null)) return;
      element.hidden = false;
      const l = Math.max(left, 0), t = Math.max(top, 0);
      Object.assign(element.style, {
        left: x._offset + l + "px", top: y._offset + t + "px",
        width: Math.max(Math.min(right, x._length) - l, 3) + "px", height: Math.max(Math.min(bottom, y._length) - t, 3) + "px",
      });
    };
    const update = () => {
      place(hover, mbq.hovered, mbq.hovered && mbq.hovered.layer === null);
      place(pin, mbq.pinned, false);
      place(column, mbq.pinned, true);
    };
    mbq.on("hover", update);
    mbq.on("pin", update);
    div.on("plotly_afterplot", update);
    div.on("plotly_relayout", update);
    return update;
  };

  mbq.describe = (cell) => {
    const run = mbq.run;
    return `token ${cell.token} “${mbq.visible(run.texts[cell.token])}”` + (cell.token < run.promptTokens ? ", prompt" : ", generated");
  };
})();
