// Arithmetic on the run: depths under another budget, and weight-averaged maps over chosen linears.
// Pure functions of the run's typed arrays; no drawing, no page.
(function () {
  "use strict";
  const mbq = window.mbq;
  const ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"];
  const MLP = ["gate_proj", "up_proj", "down_proj"];
  mbq.projections = [...ATTENTION, ...MLP];
  mbq.linearGroups = { all: mbq.projections, attention: ATTENTION, mlp: MLP };

  mbq.thresholdAt = (run, budget) => {
    const grid = run.budgetGrid;
    let low = 0;
    while (low < grid.length - 2 && grid[low + 1] < budget - 1e-6) low++;
    const a = run.thresholdGrid[low], b = run.thresholdGrid[low + 1];
    const t = (budget - grid[low]) / (grid[low + 1] - grid[low]);
    if (t >= 0.999) return b;
    if (t <= 0.001) return a;
    return Number.isFinite(a) && Number.isFinite(b) ? a + t * (b - a) : t < 0.5 ? a : b;
  };

  // What the score of a token and linear was compared with: the preview's, else that token's own, which the budget
  // controller may have moved, else (in older recordings) the one of the requested budget.
  mbq.thresholdOf = (run, t, l) => {
    if (mbq.preview && mbq.preview.run === run.id) return mbq.preview.threshold;
    const rows = run.meta.thresholdRows;
    return rows ? run.tokenThresholds[t * rows + (rows > 1 ? l : 0)] : run.thresholds[l];
  };

  // Depths of every recorded decision under one threshold: 1 + scores above it (scores fall over slices).
  mbq.depthsUnder = (run, threshold, out) => {
    const { scores, E } = run, n = run.T * run.L;
    if (!out || out.length < n) out = new Uint8Array(Math.max(n, 1024) * 2);
    for (let i = 0, s = 0; i < n; i++, s += E) {
      let depth = 1;
      while (depth <= E && scores[s + depth - 1] > threshold) depth++;
      out[i] = depth;
    }
    return out;
  };

  mbq.depths = (run = mbq.run) => (mbq.preview && mbq.preview.run === run.id ? mbq.preview.depths : run.depths);

  function members(run, linears) {
    const wanted = mbq.linearGroups[linears] || [linears];
    const list = [];
    run.projectionOf.forEach((name, index) => wanted.includes(name) && list.push(index));
    return list;
  }

  function valueOf(run, filter) {
    const { E } = run, e = Math.min(filter.slice, E - 1), depths = mbq.depths(run);
    const bits = Float32Array.from([0, ...run.meta.bitsByDepth]);
    if (filter.value === "score") return (t, l) => run.scores[(t * run.L + l) * E + e];
    if (filter.value === "margin") return (t, l) => run.scores[(t * run.L + l) * E + e] - mbq.thresholdOf(run, t, l);
    if (filter.value === "error" && run.errors) return (t, l) => run.errors[t * run.L + l];
    return (t, l) => bits[depths[t * run.L + l]];
  }

  // {z: Float32Array [layers x T], top [T], right [layers], low, high} of the value and linears of a filter.
  mbq.cells = (run, filter) => {
    const { T, layers } = run, list = members(run, filter.linears), value = valueOf(run, filter);
    const z = new Float32Array(layers * T), top = new Float32Array(T), right = new Float32Array(layers);
    const share = new Float64Array(layers);
    let whole = 0;
    for (const l of list) {
      share[run.layerOf[l]] += run.weightOf[l];
      whole += run.weightOf[l];
    }
    for (const l of list) {
      const row = run.layerOf[l] * T, part = run.weightOf[l] / share[run.layerOf[l]], all = run.weightOf[l] / whole;
      for (let t = 0; t < T; t++) {
        const v = value(t, l);
        z[row + t] += part * v;
        top[t] += all * v;
      }
    }
    let low = Infinity, high = -Infinity;
    for (let y = 0; y < layers; y++) {
      let sum = 0;
      for (let t = 0; t < T; t++) {
        const v = z[y * T + t];
        sum += v;
        if (v < low && Number.isFinite(v)) low = v;
        if (v > high && Number.isFinite(v)) high = v;
      }
      right[y] = sum / Math.max(T, 1);
    }
    return { z, top, right, low, high };
  };

  // Weight-averaged bits of each token over all linears, under the depths on show.
  mbq.tokenBits = (run) => {
    const { T, L } = run, depths = mbq.depths(run), bits = [0, ...run.meta.bitsByDepth];
    const out = new Float32Array(T);
    let whole = 0;
    for (let l = 0; l < L; l++) whole += run.weightOf[l];
    for (let t = 0; t < T; t++) {
      let sum = 0;
      for (let l = 0; l < L; l++) sum += run.weightOf[l] * bits[depths[t * L + l]];
      out[t] = sum / whole;
    }
    return out;
  };

  mbq.mean = (array, n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += array[i];
    return n ? sum / n : 0;
  };

  // --- what-if: at most one recomputation per frame, however fast the slider moves.
  let asked, scratch = null, waiting = false;
  mbq.setPreview = (budget) => {
    asked = budget;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const run = mbq.run;
      if (!run) return;
      if (asked === null) {
        if (!mbq.preview) return;
        mbq.preview = null;
      } else {
        const threshold = mbq.thresholdAt(run, asked);
        scratch = mbq.depthsUnder(run, threshold, scratch);
        mbq.preview = { run: run.id, budget: asked, threshold, depths: scratch };
      }
      mbq.emit("depths", mbq.preview);
    });
  };
})();
