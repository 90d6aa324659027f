// The page's one store: the run on show, the selection, the preview; views listen, Python only feeds.
// Events: run, columns {from}, depths, done, pin, hover, filter, theme, status, migration.
// It draws nothing. Messages are made by app/wire.py.
(function () {
  "use strict";
  const mbq = (window.mbq = window.mbq || {});
  const listeners = {};
  mbq.config = window.MBQ_CONFIG;
  mbq.views = mbq.views || {};
  mbq.run = null;
  mbq.pinned = null;
  mbq.hovered = null;
  mbq.filter = { linears: "all", value: "bits", slice: 0 };
  mbq.preview = null;

  mbq.on = (name, fn) => (listeners[name] = listeners[name] || []).push(fn);
  mbq.emit = (name, data) => {
    for (const fn of listeners[name] || []) fn(data);
  };

  // --- places: Python put an element on the page, a file in this folder registered the drawing of that name.
  mbq.mountAll = () => {
    for (const [name, element, tools] of (window.mbqMounts || []).splice(0)) {
      const draw = mbq.views[name];
      if (!draw) throw new Error("no drawing is called " + name);
      draw(element.querySelector(".mbq-view") || element, tools);
    }
  };

  // --- arrays
  function bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  const floats = (text) => new Float32Array(bytes(text).buffer);

  function grow(old, used, more) {
    if (old && used + more <= old.length) return old;
    const Type = old ? old.constructor : Float32Array;
    const next = new Type(Math.max(used + more, 2 * used, 256));
    if (old) next.set(old.subarray(0, used));
    return next;
  }

  const WIDTHS = {
    depths: (run) => run.L,
    scores: (run) => run.L * run.E,
    residualMax: (run) => run.R,
    residualTop3: (run) => run.R * 3,
    residualMedian: (run) => run.R,
    topProbabilities: () => 5,
    loss: () => 1,
    errors: (run) => run.L,
    referenceLoss: () => 1,
    referenceKl: () => 1,
    tokenThresholds: (run) => run.meta.thresholdRows,
  };
  const SENT_AS = { tokenThresholds: "thresholds" };

  function append(run, part) {
    for (const [name, width] of Object.entries(WIDTHS)) {
      const sent = part[SENT_AS[name] || name];
      if (sent === undefined) continue;
      const data = name === "depths" ? bytes(sent) : floats(sent);
      const w = width(run);
      if (!run[name]) run[name] = name === "depths" ? new Uint8Array(256) : new Float32Array(256);
      run[name] = grow(run[name], run.T * w, data.length);
      run[name].set(data, run.T * w);
    }
    run.ids.push(...part.ids);
    run.texts.push(...part.texts);
    run.topTexts.push(...part.topTexts);
    run.T += part.n;
  }

  // --- messages
  // A run message -> a run; views that compare runs read theirs with it without showing them.
  mbq.readRun = (message) => {
    const meta = message.meta;
    const linears = meta.linears;
    const run = {
      id: message.run, seq: message.seq, state: message.state, measured: message.measured, meta,
      T: 0, L: linears.length, E: meta.bitsByDepth.length - 1,
      layerOf: Int32Array.from(linears, (l) => l[0]),
      projectionOf: linears.map((l) => l[1]),
      weightOf: Float64Array.from(linears, (l) => l[2]),
      ids: [], texts: [], topTexts: [], promptTokens: meta.promptTokens,
      thresholds: floats(message.arrays.thresholds),
      budgetGrid: floats(message.arrays.budgetGrid),
      thresholdGrid: floats(message.arrays.thresholdGrid),
      prefill: message.timing.prefill, decode: message.timing.decode.slice(),
    };
    run.layers = run.L ? Math.max(...run.layerOf) + 1 : 0;
    run.R = run.layers + 1;
    append(run, message.columns);
    return run;
  };

  const opened = new Set();  // ids: what comes of a run that was never opened here says that its opening was missed

  function open(message) {
    const run = mbq.readRun(message);
    opened.add(run.id);
    const same = mbq.run && mbq.run.id === run.id;
    mbq.run = run;
    if (!same) {
      mbq.preview = null;
      if (mbq.pinned && (mbq.pinned.token >= run.T || mbq.pinned.layer >= run.layers)) mbq.pinned = null;
    }
    mbq.emit("run", run);
    mbq.emit("pin", mbq.pinned);
    if (run.state !== "running") mbq.emit("done", run);
  }

  // The run on show, if this message is the next about it; what was missed before it is asked for.
  function awaited(message) {
    const run = mbq.run, known = opened.has(message.run);
    if (known && (run.id !== message.run || message.seq <= run.seq)) return null;
    if (known && message.seq === run.seq + 1 && !(message.start > run.T)) return run;
    return void resync(message.run);
  }

  function extend(message) {
    const run = awaited(message);
    if (!run) return;
    run.seq = message.seq;
    run.measured = message.measured;
    const from = run.T;
    message.parts.forEach((part, index) => {
      if (message.start + index < run.T) return;
      append(run, part);
      run.decode.push(message.timing.decode[index]);
    });
    if (run.T > from) mbq.emit("columns", { from });
  }

  function finish(message) {
    const run = awaited(message);
    if (!run) return;
    Object.assign(run, { seq: message.seq, measured: message.measured, state: message.state });
    run.meta.notes = message.notes;
    mbq.emit("done", run);
  }

  // A message that arrives while the whole run is on its way may be newer than that: then it is asked for once more.
  // And an answer may be older than what has arrived meanwhile: then there is nothing in it.
  async function resync(id) {
    resync.wanted = id;
    if (resync.pending || !mbq.server) return;
    resync.pending = true;
    try {
      while (resync.wanted !== null) {
        const asked = resync.wanted;
        resync.wanted = null;
        const whole = JSON.parse(await mbq.server.resync({ run: asked }));
        if (whole && (!opened.has(asked) || (mbq.run.id === asked && whole.seq >= mbq.run.seq))) open(whole);
      }
    } finally {
      resync.pending = false;
    }
  }
  mbq.resync = resync;

  mbq.receive = (text) => {
    if (!text) return;
    const message = JSON.parse(text);
    if (message.kind === "run") open(message);
    else if (message.kind === "columns") extend(message);
    else if (message.kind === "done") finish(message);
    else mbq.emit(message.kind, message);
  };

  mbq.views.feed = (element, tools) => {
    mbq.server = tools.server;
    tools.watch("value", () => mbq.receive(tools.props.value));
    mbq.receive(tools.props.value);
    mbq.emit("server", tools.server);
  };

  // --- selection: hover is transient, a pin stays; both are {layer, token} and layer may be null.
  const sameCell = (a, b) => a === b || (a && b && a.layer === b.layer && a.token === b.token);
  mbq.hover = (cell) => {
    if (sameCell(cell, mbq.hovered)) return;
    mbq.hovered = cell;
    mbq.emit("hover", cell);
  };
  mbq.pin = (cell) => {
    const run = mbq.run;
    if (cell && run) {
      const clamp = (v, n) => Math.min(Math.max(v, 0), n - 1);
      cell = { layer: clamp(cell.layer ?? mbq.pinned?.layer ?? run.layers - 1, run.layers), token: clamp(cell.token, run.T) };
    }
    if (sameCell(cell, mbq.pinned)) return;
    mbq.pinned = cell;
    mbq.emit("pin", cell);
  };
  mbq.move = (tokens, layers) => {
    if (!mbq.run) return;
    const at = mbq.pinned || { layer: mbq.run.layers - 1, token: -tokens };
    mbq.pin({ layer: at.layer + layers, token: at.token + tokens });
  };
  mbq.setFilter = (change) => {
    Object.assign(mbq.filter, change);
    mbq.emit("filter", mbq.filter);
  };

  document.addEventListener("keydown", (event) => {
    if (event.target.closest(".mbq-data-scroll, input, textarea, select, [role=listbox], [role=tablist], [role=radiogroup]")) {
      if (!event.target.closest(".mbq-strip-tokens")) return;
    }
    if (event.key === "Escape" && (mbq.pinned || mbq.preview)) {
      mbq.setPreview?.(null);
      return mbq.pin(null);
    }
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    if (!mbq.pinned && !event.target.closest(".mbq-view")) return;
    event.preventDefault();
    mbq.move(step[0], step[1]);
  });
})();
