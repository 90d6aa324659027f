// Outlier migration: ranks of tokens over precisions, overlap of the outlier sets, overlap layer by layer.
// The numbers and the sentences come from Python; choosing the whole model or one linear is done here.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const MOST_LINES = 40;

  const u16 = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const f32 = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  mbq.views.migration = (root, tools) => {
    const head = mbq.heading("Outlier migration: which tokens low precision hurts most, and whether they change", "For every precision the tokens are ranked by how much it hurts them. The outlier set is the top 10 %. If the set at 2 bits is not the set at 4 bits, a calibration made for one precision protects the wrong tokens at the other.");
    const bar = el("div", "mbq-tools"), go = el("button", "mbq-button", "Measure on this text"), state = el("span", "mbq-note");
    go.type = "button";
    const options = { error: "relative", skipFirst: true };
    const kind = mbq.choice("Error of a linear", [["relative", "relative", "Squared output error over squared output"], ["absolute", "absolute", "Squared output error: the first token dominates it"]], "relative", (key) => ask({ error: key }));
    const first = mbq.toggle("leave position 0 out", true, (on) => ask({ skipFirst: on }));
    bar.append(go, kind, first, state);
    const sentence = el("p", "mbq-sentence"), body = el("div", "mbq-migration-body"), bar2 = el("div", "mbq-tools"), select = el("label", "mbq-select", "Tokens ranked by ");
    sentence.setAttribute("aria-live", "polite");
    const source = el("select");
    select.append(source);
    bar2.append(select);
    const split = el("div", "mbq-two"), left = el("div"), right = el("div");
    const bump = el("div", "mbq-plot"), overlap = el("div", "mbq-plot"), spearman = el("div", "mbq-plot"), curve = el("div", "mbq-plot");
    const bumpTitle = el("h3", "", "Rank of each outlier token at each precision"), pair = el("div", "mbq-pair"), a = el("div"), b = el("div"), chance = el("p", "mbq-note");
    for (const [div, text] of [[bump, "Ranks of the outlier tokens over 2, 4, 6 and 8 bits"], [overlap, "Overlap of the outlier sets"], [spearman, "Rank correlation of all tokens"], [curve, "Overlap of outlier sets by layer"]]) {
      div.setAttribute("role", "group");
      div.setAttribute("aria-label", text);
    }
    left.append(bumpTitle, el("p", "mbq-note", "One line per token that is in the outlier set (shaded) at some precision. Orange: in the set at the lowest precision; blue: enters later. Crossing lines are migration. The last column ranks the same tokens by their loss at full precision: what is hard anyway."), bump);
    a.append(el("h3", "", "Overlap of the sets"), el("p", "mbq-note", "Share of one precision’s outlier set that is in the other’s."), overlap);
    b.append(el("h3", "", "Rank correlation, all tokens"), el("p", "mbq-note", "Spearman: 1 the same order, 0 unrelated, −1 reversed."), spearman);
    pair.append(a, b);
    right.append(pair, chance, el("h3", "", "Layer by layer: overlap between neighbouring precisions"), el("p", "mbq-note", "Outlier sets by output error, mean of a layer’s seven linears."), curve);
    split.append(left, right);
    body.append(bar2, split);
    body.hidden = true;
    root.append(head, bar, sentence, body);
    let report = null;

    const ask = (change) => {
      Object.assign(options, change);
      if (!mbq.run || root.classList.contains("waiting")) return;
      root.classList.add("waiting");
      go.disabled = true;
      state.textContent = mbq.status?.state === "live" ? "Measuring at every precision …" : "Waiting for the model …";
      tools.trigger("measure", { run: mbq.run.id, ...options });
    };
    const settle = (text) => {
      root.classList.remove("waiting");
      go.disabled = false;
      state.textContent = text;
    };
    go.addEventListener("click", () => ask({}));

    const chosen = () => {
      const S = report.bits.length, T = report.texts.length, at = Number(source.value);
      if (at < 0) return { ranks: report.modelRanks, overlap: report.modelOverlap, spearman: report.modelSpearman, S, T };
      return { ranks: report.linearRanks.subarray(at * S * T, (at + 1) * S * T), overlap: report.linearOverlap.subarray(at * S * S, (at + 1) * S * S), spearman: report.linearSpearman.subarray(at * S * S, (at + 1) * S * S), S, T };
    };
    const best = ({ ranks, S, T }, t) => {
      let low = Infinity;
      for (let s = 0; s < S; s++) if (ranks[s * T + t] > 0) low = Math.min(low, ranks[s * T + t]);
      return low;
    };

    const drawBump = () => {
      const data = chosen(), { ranks, S, T } = data, layout = structuredClone(mbq.config.layouts.bump), pin = mbq.pinned?.token;
      const tokens = Array.from({ length: T }, (_, t) => t).filter((t) => best(data, t) <= report.setSize || t === pin);
      tokens.sort((x, y) => best(data, x) - best(data, y));
      const full = report.bits[S - 1] + 2;
      const lines = tokens.slice(0, MOST_LINES).map((t) => {
        const y = Array.from({ length: S }, (_, s) => ranks[s * T + t] || null), inLow = y[0] && y[0] <= report.setSize, mine = t === pin;
        return {
          type: "scatter", mode: "lines+markers", name: `${t} “${mbq.label(report.texts[t])}”`, x: [...report.bits, full], y: [...y, report.referenceRanks[t] || null], meta: t, line: { color: mine ? "mbq:ink" : inLow ? "mbq:second" : "mbq:accent", width: mine ? 4 : 1.7 }, marker: { size: mine ? 9 : 6 },
          opacity: pin === undefined || mine ? 0.95 : 0.55, hovertemplate: `token ${t} “${mbq.label(report.texts[t])}”<br>rank %{y} of ${T} at %{text}<extra></extra>`, text: [...report.bits.map((bits) => `${bits} bits`), "full precision, by loss"],
        };
      });
      const reach = Math.max(report.setSize, ...lines.flatMap((line) => line.y.filter(Boolean)));
      const last = full, gap = reach / 26, ends = lines.map((line) => line.y[S] || 0), spots = ends.slice();
      const order = spots.map((_, i) => i).sort((i, j) => spots[i] - spots[j]);
      for (let k = 1; k < order.length; k++) spots[order[k]] = Math.max(spots[order[k]], spots[order[k - 1]] + gap);
      layout.annotations = lines.length > 26 ? [] : lines.map((line, i) => ({ x: last, y: spots[i], xanchor: "left", xshift: 10, showarrow: false, text: `${mbq.label(report.texts[line.meta], 12)}`, font: { size: 11.5, color: line.line.color } }));
      layout.shapes = [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: 0.5, y1: report.setSize + 0.5, fillcolor: "mbq:grid", opacity: 0.7, line: { width: 0 }, layer: "below" }];
      Object.assign(layout.xaxis, { tickvals: [...report.bits, full], ticktext: [...report.bits.map(String), "full<br>(loss)"], range: [report.bits[0] - 0.25, last + 0.25] });
      Object.assign(layout.yaxis, { autorange: false, range: [Math.max(reach, ...spots.filter(() => lines.length <= 26)) * 1.03 + 0.5, 0.2] });
      return { data: lines, layout };
    };

    const matrix = (key, low) => () => {
      const { S, ...data } = chosen(), layout = structuredClone(mbq.config.layouts.matrix), at = Array.from({ length: S }, (_, i) => i);
      const z = at.map((i) => at.map((j) => data[key][i * S + j])), names = report.bits.map(String);
      for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { tickvals: at, ticktext: names });
      return {
        data: [{ type: "heatmap", z, zmin: low, zmax: 1, colorscale: low < 0 ? "mbq:diverging" : "mbq:bits", showscale: false, xgap: 2, ygap: 2, texttemplate: "%{z:.2f}", textfont: { size: 13 }, text: at.map((i) => at.map((j) => `${names[i]} and ${names[j]} bits`)), hovertemplate: "%{text}: %{z:.3f}<extra></extra>" }],
        layout,
      };
    };

    const drawCurve = () => {
      const layout = structuredClone(mbq.config.layouts.layerOverlap), S = report.bits.length, layers = 1 + Math.max(...report.linears.map((l) => l[0]));
      const shades = ["mbq:second", "mbq:accent", "mbq:ink"], x = Array.from({ length: layers }, (_, i) => i), data = [];
      for (let s = 0; s + 1 < S; s++) {
        const sum = new Float64Array(layers), n = new Float64Array(layers);
        report.linears.forEach(([layer], l) => {
          sum[layer] += report.linearOverlap[l * S * S + s * S + s + 1];
          n[layer] += 1;
        });
        data.push({ type: "scatter", mode: "lines+markers", name: `${report.bits[s]} and ${report.bits[s + 1]} bits`, x, y: Array.from(sum, (v, i) => v / n[i]), line: { color: shades[s % 3], width: 1.8 }, marker: { size: 6, symbol: ["circle", "square", "diamond"][s % 3] }, hovertemplate: "layer %{x}: %{y:.2f}<extra>%{fullData.name}</extra>" });
      }
      data.push({ type: "scatter", mode: "lines", name: `chance ${mbq.fixed(report.chance)}`, x: [0, layers - 1], y: [report.chance, report.chance], line: { color: "mbq:line", dash: "dash", width: 1.5 }, hoverinfo: "skip" });
      layout.xaxis.dtick = Math.max(1, Math.ceil(layers / 12));
      return { data, layout };
    };

    const draw = () => {
      if (!report) return;
      body.hidden = false;
      sentence.textContent = report.sentences[Number(source.value) + 1];
      chance.textContent = `Two random sets of ${report.setSize} tokens would overlap by ${mbq.fixed(report.chance)} on average: read every number against that.`;
      mbq.plot(bump, drawBump);
      mbq.plot(overlap, matrix("overlap", 0));
      mbq.plot(spearman, matrix("spearman", -1));
      mbq.plot(curve, drawCurve);
    };
    source.addEventListener("change", draw);
    mbq.on("pin", () => report && mbq.plot(bump, drawBump));
    mbq.onDrawn(bump, () => bump.on("plotly_click", (event) => {
      const token = event.points[0]?.data.meta;
      if (Number.isInteger(token)) mbq.pin({ token });
    }));

    mbq.on("migration", (message) => {
      report = message;
      for (const key of ["modelRanks", "linearRanks", "referenceRanks"]) report[key] = u16(message[key]);
      for (const key of ["modelOverlap", "modelSpearman", "linearOverlap", "linearSpearman"]) report[key] = f32(message[key]);
      const kept = source.value || "-1";
      source.replaceChildren(Object.assign(el("option", "", "rise in the whole model’s loss"), { value: "-1" }));
      report.linears.forEach(([layer, name], l) => source.append(Object.assign(el("option", "", `output error of ${mbq.short(name)}, layer ${layer}`), { value: String(l) })));
      source.value = kept;
      settle(`${report.texts.length} tokens, outlier set of ${report.setSize}; ${message.error} error${message.skipFirst ? ", position 0 left out" : ""}`);
      draw();
    });
    mbq.on("failed", (message) => message.what === "migrate" && settle(""));
    mbq.on("done", () => {
      if (!report) return;
      state.textContent = report.run === mbq.run.id ? state.textContent : "These numbers belong to the run before; measure again for this text.";
    });
    // Opening the tab measures at once: a question that has been asked should not need a second click.
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting) && !report && mbq.run && mbq.run.state !== "running") ask({});
    }).observe(go);
  };
})();
