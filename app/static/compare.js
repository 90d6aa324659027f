// Compare: two runs under one colour scale, their difference, and what each loses against full precision.
// Maps are averaged here, so that the choice of linears is instant; sentences and curves come from app/views/compare.py.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const PRESETS = [
    ["uniform 4.0 against routed 4.0", { a: ["uniform", 4], b: ["router", 4], match: true }],
    ["layer 3.0 against router 3.0", { a: ["layer", 3], b: ["router", 3], match: true }],
    ["router: 3 against 6 bits", { a: ["router", 3], b: ["router", 6], match: false }],
    ["random 3.0 against router 3.0", { a: ["random", 3], b: ["router", 3], match: true }],
  ];
  const TEXTS = [
    ["forced", "A writes, B reads the same", "Token axes align, so every token can be compared"],
    ["given", "both read the prompt", "No text is generated"],
    ["free", "both write", "Same seed; after the first differing token the texts are different texts"],
  ];

  function side(name, policy, bits) {
    const box = el("fieldset", "mbq-side"), select = el("select"), input = el("input");
    box.append(el("legend", "", `Run ${name}`));
    for (const [key, text] of Object.entries(mbq.config.policies)) select.append(Object.assign(el("option", "", text), { value: key }));
    select.value = policy;
    select.setAttribute("aria-label", `Policy of run ${name}`);
    Object.assign(input, { type: "number", min: 2, max: 8, step: 0.1, value: bits });
    input.setAttribute("aria-label", `Bit budget of run ${name}`);
    box.append(select, input, el("span", "unit", "bits"));
    return { box, set: ([p, b]) => ((select.value = p), (input.value = b)), get: () => ({ policy: select.value, bits: input.valueAsNumber, mode: "global" }) };
  }

  function strip(name) {
    const box = el("div", "mbq-compare-strip"), list = el("div", "mbq-strip-tokens"), title = el("h3");
    const open = el("button", "mbq-link", "show in Allocate");
    open.type = "button";
    const head = el("div", "mbq-compare-head");
    head.append(title, open);
    box.append(head, list);
    list.tabIndex = 0;
    list.setAttribute("role", "group");
    return { box, list, title, open, chips: [], name };
  }

  mbq.views.compare = (root, tools) => {
    const head = mbq.heading("Compare two runs", "Same model, same text, two ways to spend bits. Each token’s colour and number is the average bits per weight it got; both runs share one scale.");
    const presets = el("div", "mbq-examples mbq-row"), form = el("div", "mbq-tools mbq-compare-form"), go = el("button", "mbq-button", "Compare"), state = el("span", "mbq-note");
    const a = side("A", "uniform", 4), b = side("B", "router", 4);
    let text = "forced", data = null, runs = null, linears = "all";
    const texts = mbq.choice("Text", TEXTS, text, (key) => (text = key));
    const match = mbq.toggle("bring B to the bits that A spends", true, () => {});
    go.type = "button";
    state.setAttribute("role", "status");
    presets.append(el("span", "kind", "Try"));
    for (const [name, wish] of PRESETS) {
      const chip = el("button", "", name);
      chip.type = "button";
      chip.addEventListener("click", () => {
        a.set(wish.a);
        b.set(wish.b);
        match.input.checked = wish.match;
        ask();
      });
      presets.append(chip);
    }
    form.append(a.box, b.box, texts, match, go, state);
    const empty = el("p", "mbq-empty", "Choose two settings, or one of the suggestions, and press Compare. The prompt above is the text."), body = el("div", "mbq-compare-body");
    const sentence = el("p", "mbq-sentence"), table = el("table", "mbq-table mbq-compare-table"), legend = el("div", "mbq-legend"), warning = el("p", "mbq-warning");
    sentence.setAttribute("aria-live", "polite");
    const strips = [strip("A"), strip("B")];
    const filter = mbq.choice("Linears", [["all", "all"], ["attention", "attention"], ["mlp", "MLP"], ...mbq.projections.map((p) => [p, mbq.short(p), p])], "all", (key) => {
      linears = key;
      mbq.inTurn(drawMaps());
    });
    let stretched = false;
    const stretch = mbq.toggle("stretch colours to these two runs", false, (on) => {
      stretched = on;
      draw();
    });
    stretch.title = "Off: the same colour means the same bits everywhere in the studio";
    // One scale for both runs: 2 to 8 bits, or from the poorest to the richest token of either.
    const scale = () => {
      if (!stretched) return { palette: "bits", low: 2, high: 8, ticks: [2, 4, 6, 8] };
      const all = runs.flatMap((run) => Array.from(mbq.tokenBits(run))).sort((x, y) => x - y), at = (share) => all[Math.round(share * (all.length - 1))];
      const low = Math.floor(at(0.02) * 10) / 10, high = Math.max(Math.ceil(at(0.98) * 10) / 10, low + 0.4);
      return { palette: "bits", low, high, ticks: [low, (low + high) / 2, high], label: (v) => String(Math.round(v * 10) / 10) };
    };
    const bar = el("div", "mbq-tools"), grid = el("div", "mbq-compare-grid");
    bar.append(filter);
    const chart = (title, label, wide) => {
      const cell = el("div", wide ? "wide" : ""), heading = el("h3", "", title), note = el("p", "mbq-note"), div = el("div", "mbq-plot");
      div.setAttribute("role", "group");
      div.setAttribute("aria-label", label);
      cell.append(heading, note, div);
      grid.append(cell);
      return { cell, div, heading, note };
    };
    const maps = [chart("A", "Bits by layer and token, run A"), chart("B", "Bits by layer and token, run B")];
    const difference = chart("Difference: B − A", "Difference of bits by layer and token, B minus A", true);
    const loss = chart("Loss of every token", "Loss of every token in both runs and in full precision"), kl = chart("Distance from full precision", "Divergence from full precision of the prediction made from every token");
    const diffLegend = el("div", "mbq-legend");
    difference.note.after(diffLegend);
    kl.note.textContent = "KL(full precision ‖ run) of the prediction made from each token, in nats. Lower is better.";
    const top = el("div", "mbq-compare-top");
    const key = el("div", "mbq-key");
    key.append(legend, stretch);
    top.append(table, key);
    body.append(sentence, warning, top, strips[0].box, strips[1].box, bar, grid);
    body.hidden = true;
    root.append(head, presets, form, empty, body);

    const ask = () => {
      if (root.classList.contains("waiting")) return;
      root.classList.add("waiting");
      go.disabled = true;
      state.textContent = mbq.status?.state === "live" ? "Starting …" : "Waiting for the model …";
      tools.trigger("compare", { a: a.get(), b: b.get(), text, match: match.input.checked });
    };
    const settle = (words) => {
      root.classList.remove("waiting");
      go.disabled = false;
      state.textContent = words;
    };
    go.addEventListener("click", ask);
    mbq.on("progress", (message) => root.classList.contains("waiting") && (state.textContent = message.text));
    mbq.on("failed", (message) => message.what === "compare" && settle(""));

    const name = (run) => `${run.meta.policy}, ${mbq.fixed(run.meta.requestedBits, 2).replace(/0$/, "")} bits asked`;
    const drawTable = () => {
      const s = data.summary, unmeasured = s.kl.includes(null), head = el("tr"), rows = [["measured bits", s.measured, 2, "16"], ["perplexity of the text", s.loss.map((v) => (v === null ? null : Math.exp(v))), 2, s.referenceLoss === null ? "–" : mbq.fixed(Math.exp(s.referenceLoss))], ["mean KL to full precision", s.kl, 4, "0"]];
      head.append(el("th", "", ""), ...["A", "B"].map((n, i) => Object.assign(el("th", "", `${n} · ${runs[i].meta.policy}`), { scope: "col" })), Object.assign(el("th", "", "full precision"), { scope: "col" }));
      table.replaceChildren(el("caption", "", `Measured over ${s.tokens[0]}${s.tokens[1] === s.tokens[0] ? "" : " and " + s.tokens[1]} tokens.${data.text === "forced" ? ` A chose these words, which flatters A’s perplexity${unmeasured ? "." : ": judge by the KL."}` : ""}${unmeasured ? " Full precision is not kept with this model: there is nothing to measure a KL against." : ""}`), Object.assign(el("thead")), Object.assign(el("tbody")));
      table.tHead.append(head);
      for (const [label, values, digits, whole] of rows) {
        const row = el("tr"), fair = data.sameText && values !== s.measured && !values.includes(null) && !(data.text === "forced" && values !== s.kl), best = fair ? Math.min(...values) : null;
        row.append(Object.assign(el("th", "", label), { scope: "row" }));
        for (const value of values) row.append(el("td", value === best && values[0] !== values[1] ? "number best" : "number", value === null ? "–" : mbq.fixed(value, digits)));
        row.append(el("td", "number", whole));
        table.tBodies[0].append(row);
      }
    };
    const drawStrip = (place, run) => {
      const bits = mbq.tokenBits(run), part = document.createDocumentFragment(), apart = data.firstDifference, { low, high } = scale();
      place.title.textContent = `${place.name} · ${name(run)}, ${mbq.fixed(run.measured)} measured`;
      place.list.setAttribute("aria-label", `Tokens of run ${place.name} with their bits`);
      place.chips = run.texts.map((token, t) => {
        const chip = el("span", "mbq-token"), rgb = mbq.shade("bits", (bits[t] - low) / (high - low));
        chip.append(el("b", "", mbq.visible(token)), el("i", "", bits[t].toFixed(1)));
        chip.style.backgroundColor = mbq.css(rgb);
        chip.style.color = mbq.inkOn(rgb);
        chip.dataset.t = t;
        if (t < run.promptTokens) chip.classList.add("prompt");
        if (t > 0 && !/^\s/.test(token)) chip.classList.add("joined");
        if (t === apart) {
          part.append(el("span", "mbq-part", "≠"));
          chip.classList.add("first-different");
          chip.title = "first differing token";
        }
        part.append(chip);
        return chip;
      });
      place.list.replaceChildren(part);
    };
    const point = (t) => {
      for (const place of strips) {
        place.list.querySelector(".hovered")?.classList.remove("hovered");
        if (t !== null && (t < data.common || data.sameText)) place.chips[t]?.classList.add("hovered");
      }
    };
    for (const place of strips) {
      place.list.addEventListener("pointermove", (event) => {
        const chip = event.target.closest?.(".mbq-token"), t = chip ? Number(chip.dataset.t) : null;
        point(t);
        const line = (run, i) => `${"AB"[i]}: ${run.T > t ? place.chips.length && strips[i].chips[t].lastChild.textContent : "–"} bits`;
        mbq.tip(t === null ? null : [`token ${t} “${chip.firstChild.textContent}”`, runs.map(line).join(", ")], event.clientX, event.clientY);
      });
      place.list.addEventListener("pointerleave", () => {
        point(null);
        mbq.tip(null);
      });
      place.open.addEventListener("click", () => {
        mbq.receive(place.name === "A" ? data.a : data.b);
        mbq.openTab("allocate");
      });
    }

    const axes = (layout, run, T, div) => {
      Object.assign(layout.xaxis, { range: [-0.5, Math.max(T, 16) - 0.5], ...mbq.tokenTicks({ T, texts: run.texts }, div.clientWidth * 0.9) });
      Object.assign(layout.yaxis, { range: [-0.5, run.layers - 0.5], dtick: Math.max(1, Math.ceil(run.layers / 10)), fixedrange: true });
      return layout;
    };
    const heat = (run, T, z, style, unit, div) => {
      const layout = axes(structuredClone(mbq.config.layouts.compareMap), run, T, div), gap = div.clientWidth > 7 * T ? 1 : 0;
      const words = run.texts.slice(0, T).map((t) => mbq.label(t));
      div.mbqNames = { x: (t) => `${t} “${mbq.visible(run.texts[t])}”` };
      return {
        data: [{ type: "heatmap", z, customdata: Array.from(z, () => words), zmin: style.low, zmax: style.high, colorscale: "mbq:" + style.palette, showscale: false, xgap: gap, ygap: gap, hovertemplate: `layer %{y}, token %{x} “%{customdata}”<br>%{z:.2f} ${unit}<extra></extra>` }],
        layout,
      };
    };
    const rows = (cells, T, run, n = T) => Array.from({ length: run.layers }, (_, y) => cells.z.subarray(y * T, y * T + n));
    const bitsOf = (run) => mbq.cells(run, { linears, value: "bits", slice: 0 });
    const drawMaps = () => {
      const draws = maps.map(({ div, heading }, i) => () => {
        heading.textContent = `${"AB"[i]} · ${name(runs[i])}`;
        mbq.plot(div, () => heat(runs[i], runs[i].T, rows(bitsOf(runs[i]), runs[i].T, runs[i]), scale(), "bits", div));
      });
      draws.push(() => mbq.plot(difference.div, () => {
        const [x, y] = runs, n = data.common, za = rows(bitsOf(x), x.T, x, n), zb = rows(bitsOf(y), y.T, y, n);
        const z = zb.map((row, l) => row.map((v, t) => v - za[l][t]));
        const reach = Math.max(0.5, ...z.map((row) => row.reduce((m, v) => Math.max(m, Math.abs(v)), 0)));
        mbq.legend(diffLegend, { palette: "diverging", low: -reach, high: reach, ticks: [-reach, 0, reach], unit: "bits, B − A" });
        return heat(x, n, z, { palette: "diverging", low: -reach, high: reach }, "bits more in B", difference.div);
      }));
      return draws;
    };
    const curve = (place, key) => mbq.plot(place.div, () => {
      const figure = structuredClone(data.figures[key]), run = runs[0].T >= runs[1].T ? runs[0] : runs[1];
      Object.assign(figure.layout.xaxis, mbq.tokenTicks(run, place.div.clientWidth * 0.85));
      return mbq.fitted(figure, place.div);
    });
    const draw = () => {
      body.hidden = false;
      empty.hidden = true;
      sentence.textContent = data.sentence;
      warning.hidden = data.sameText;
      warning.textContent = data.firstDifference === null ? "The texts have different lengths: maps of A and B show each its own text." : `The texts differ from token ${data.firstDifference} on (marked ≠). Beyond it A and B read different words, so their maps and curves must not be compared there; choose “A writes, B reads the same” for aligned tokens.`;
      mbq.legend(legend, { ...scale(), unit: "bits per weight, same scale for A and B" });
      difference.note.textContent = data.sameText ? "Positive: B read more bits than A for this token in this layer." : `Only the first ${data.common} tokens, which both runs share.`;
      drawTable();
      loss.note.textContent = `Nats, given the tokens before. Lower is better${data.summary.referenceLoss === null ? "." : "; the dotted line is the 16-bit model."}`;
      strips.forEach((place, i) => drawStrip(place, runs[i]));
      const known = data.figures.kl.data.length > 0;
      kl.cell.hidden = !known;
      loss.cell.classList.toggle("wide", !known);
      mbq.inTurn([...drawMaps(), () => curve(loss, "loss"), () => known && curve(kl, "kl")]);
    };
    mbq.on("compare", (message) => {
      data = message;
      runs = [mbq.readRun(JSON.parse(message.a)), mbq.readRun(JSON.parse(message.b))];
      settle("");
      draw();
    });
    mbq.on("theme", () => data && draw());
  };
})();
