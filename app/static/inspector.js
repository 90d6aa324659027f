// What one token got in one layer: seven linears x slices, every score beside its threshold, the next tokens.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  function slices(run, token, linear) {
    const cell = el("td", "slices"), depth = mbq.depths()[token * run.L + linear], stops = mbq.colours().bits;
    for (let k = 0; k <= run.E; k++) {
      const box = el("i", k < depth ? "on" : "");
      if (k < depth) box.style.backgroundColor = stops[Math.round((k * (stops.length - 1)) / run.E)];
      cell.append(box);
    }
    cell.setAttribute("aria-label", `${depth} of ${run.E + 1} slices`);
    return cell;
  }

  // A tiny axis: a dot per residual slice, filled where the slice is on, a line at the threshold.
  function axis(run, token, linear, low, high) {
    const cell = el("td", "axis"), line = el("span", "line"), depth = mbq.depths()[token * run.L + linear];
    const threshold = mbq.thresholdOf(run, token, linear);
    const place = (v) => (high > low ? Math.min(Math.max((v - low) / (high - low), 0), 1) * 100 : 50) + "%";
    const mark = el("span", "threshold");
    mark.style.left = place(threshold);
    line.append(mark);
    const said = [];
    for (let e = 0; e < run.E; e++) {
      const score = run.scores[(token * run.L + linear) * run.E + e], dot = el("span", e + 1 < depth ? "dot on" : "dot", String(e + 2));
      dot.style.left = place(score);
      line.append(dot);
      said.push(`slice ${e + 2}: score ${mbq.fixed(score)}`);
    }
    cell.append(line);
    cell.title = `${said.join(", ")}; threshold ${mbq.fixed(threshold)}`;
    return cell;
  }

  mbq.views.inspector = (root) => {
    const title = el("h2", "", "Inspector"), sub = el("p"), head = el("div", "mbq-heading");
    head.append(title, sub);
    const body = el("div", "mbq-inspector-body");
    root.append(head, body);
    root.setAttribute("aria-label", "Inspector of the pinned cell");
    let waiting = false;

    const table = (run, { layer, token }) => {
      const list = [];
      run.layerOf.forEach((l, index) => l === layer && list.push(index));
      const at = (l) => Array.from({ length: run.E }, (_, e) => run.scores[(token * run.L + l) * run.E + e]);
      const all = list.flatMap((l) => [...at(l), mbq.thresholdOf(run, token, l)]).filter(Number.isFinite);
      const low = Math.min(...all), high = Math.max(...all), pad = (high - low) * 0.08 || 1;
      const out = el("table", "mbq-linears"), caption = el("caption", "", "Seven linears: slices read, and each slice’s score against the threshold (line)");
      const row = el("tr"), names = ["linear", "slices", "bits", "score → threshold", ...(run.errors ? ["error"] : [])];
      row.append(...names.map((name) => Object.assign(el("th", "", name), { scope: "col" })));
      out.append(caption, Object.assign(el("thead")), el("tbody"));
      out.tHead.append(row);
      for (const l of list) {
        const line = el("tr"), depth = mbq.depths()[token * run.L + l];
        line.append(Object.assign(el("th", "", mbq.short(run.projectionOf[l])), { scope: "row", title: run.projectionOf[l] }));
        line.append(slices(run, token, l), el("td", "number", String(run.meta.bitsByDepth[depth - 1])), axis(run, token, l, low - pad, high + pad));
        if (run.errors) {
          const error = run.errors[token * run.L + l];
          line.append(el("td", "number", Number.isFinite(error) ? (error < 0.001 ? error.toExponential(0) : mbq.fixed(100 * error, 1) + " %") : "–"));
        }
        out.tBodies[0].append(line);
      }
      return out;
    };

    const next = (run, token) => {
      const box = el("div", "mbq-next");
      box.append(el("h3", "", "Most likely next tokens after this one"));
      run.topTexts[token].forEach((text, k) => {
        const share = run.topProbabilities[token * 5 + k], row = el("div", "row"), bar = el("span", "bar"), fill = el("i");
        fill.style.width = Math.max(100 * share, 0.5) + "%";
        bar.append(fill);
        const chosen = token + 1 < run.T && run.texts[token + 1] === text;
        row.append(el("span", "word" + (chosen ? " chosen" : ""), mbq.visible(text)), bar, el("span", "number", mbq.fixed(100 * share, 1) + " %"));
        box.append(row);
      });
      return box;
    };

    const facts = (run, { token }) => {
      const list = el("dl", "mbq-facts");
      const fact = (name, value, hint) => {
        const pair = el("div");
        pair.append(el("dt", "", name), el("dd", "", value));
        pair.title = hint;
        list.append(pair);
      };
      fact("token average", mbq.fixed(mbq.tokenBits(run)[token]) + " bits", "Over all layers, weighted by size");
      if (Number.isFinite(run.loss[token])) fact("surprise", mbq.fixed(run.loss[token]) + " nats", "Loss of this token given the ones before it");
      if (run.referenceKl && Number.isFinite(run.referenceKl[token])) fact("KL to 16-bit", mbq.fixed(run.referenceKl[token], 3) + " nats", "Divergence of the prediction made from this token, full precision to this run");
      return list;
    };

    const draw = () => {
      waiting = false;
      const run = mbq.run, cell = mbq.pinned;
      root.classList.toggle("idle", !cell);
      if (!run || !cell || cell.token >= run.T) {
        title.textContent = "Inspector";
        sub.textContent = "Click a token or a cell of the map.";
        const steps = el("ul", "mbq-hints");
        for (const text of ["It shows which of the four 2-bit slices each of the layer’s seven linears read for that token.", "A slice is read when its router score is above the threshold; a lower budget means a higher threshold.", "Arrow keys then move left and right over tokens, up and down over layers."]) steps.append(el("li", "", text));
        body.replaceChildren(steps);
        return;
      }
      title.textContent = `Layer ${cell.layer} · “${mbq.visible(run.texts[cell.token])}”`;
      sub.textContent = `Token ${cell.token}, ${cell.token < run.promptTokens ? "prompt" : "generated"}${mbq.preview ? " · preview" : ""}`;
      body.replaceChildren(facts(run, cell), table(run, cell), next(run, cell.token));
    };
    const soon = () => {
      if (!waiting) requestAnimationFrame(draw);
      waiting = true;
    };
    for (const name of ["run", "pin", "depths", "done", "theme"]) mbq.on(name, soon);
    draw();
  };
})();
