// Router lab: what the router did over a whole run, and what routing is worth. Figures come from Python.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  function card(root, title, note, label, wide) {
    const box = el("section", "mbq-card mbq-labcard" + (wide ? " wide" : "")), sentence = el("p", "mbq-sentence"), div = el("div", "mbq-plot");
    div.setAttribute("role", "group");
    div.setAttribute("aria-label", label);
    box.append(mbq.heading(title, note), sentence, div);
    root.append(box);
    return { box, sentence, div };
  }

  mbq.views.lab = (root, tools) => {
    root.classList.add("mbq-labgrid");
    const scores = card(root, "Scores and threshold", "The router scores every residual slice of every token and linear. What lies right of the threshold is read; moving the budget moves the line.", "Histogram of router scores for each slice with the threshold");
    const layers = card(root, "Average bits by layer and linear", "Mean over the tokens of the run on show. Where the number stays high, the router finds the linear hard to do without.", "Average bits for each layer and linear");
    const curve = card(root, "Quality against bits", "Perplexity over that of the 16-bit model, on text no calibration saw. Lower is better; 1× is no loss.", "Perplexity ratio against measured bits for each policy");
    const kinds = card(root, "Which kinds of token get more bits", "A dot is a token of the run on show, a bar the mean of its kind.", "Bits by kind of token");
    const agree = card(root, "Router against oracle", "The oracle measures, for every token and slice, how much the output error would really shrink. It is far too slow to use, but it shows how good the router’s guesses are.", "Share of decisions equal to the oracle’s, by layer", true);
    const source = el("p", "mbq-note"), stored = tools.props.value ? JSON.parse(tools.props.value) : { figure: null };
    curve.box.append(source);
    const pair = el("div", "mbq-pair"), left = el("div"), right = el("div"), confusion = el("div", "mbq-plot"), go = el("button", "mbq-button", "Measure on this text"), state = el("span", "mbq-note"), bar = el("div", "mbq-tools");
    go.type = "button";
    state.setAttribute("role", "status");
    confusion.setAttribute("role", "group");
    confusion.setAttribute("aria-label", "Share of decisions by depth of the policy and of the oracle");
    bar.append(go, state);
    left.append(el("h3", "", "Equal depth, layer by layer"), agree.div);
    right.append(el("h3", "", "Depth chosen by each"), confusion);
    pair.append(left, right);
    agree.sentence.before(bar);
    agree.box.append(pair);
    pair.hidden = true;
    let info = null, asked = null, figures = null, drawn = null;

    const drawScores = () => mbq.plot(scores.div, () => {
      const figure = structuredClone(info.scores.figure), preview = mbq.preview && mbq.preview.run === asked ? mbq.preview.threshold : null;
      if (preview !== null && Number.isFinite(preview) && figure.layout.shapes) {
        Object.assign(figure.layout.shapes[0], { x0: preview, x1: preview });
        Object.assign(figure.layout.annotations[0], { x: preview, text: " threshold, preview" });
      }
      return mbq.fitted(figure, scores.div);
    });
    const drawCurve = () => mbq.plot(curve.div, () => {
      const figure = structuredClone(stored.figure), point = info && info.point;
      if (!point) return mbq.fitted(figure, curve.div);
      figure.layout.shapes.push({ type: "line", xref: "x", yref: "paper", x0: point.bits, x1: point.bits, y0: 0, y1: 1, line: { color: "mbq:line", width: 1.5, dash: "dash" } });
      figure.layout.annotations = [{ x: point.bits, y: 1, yref: "paper", yanchor: "top", xanchor: point.bits > 4 ? "right" : "left", showarrow: false, text: ` this run: ${mbq.fixed(point.bits)} bits `, font: { size: 12, color: "mbq:ink" } }];
      if (point.lossAbove !== null) figure.data.push({ type: "scatter", mode: "markers", name: "this run, this text", x: [point.bits], y: [Math.exp(point.lossAbove)], marker: { size: 14, symbol: "star", color: "mbq:ink" }, hovertemplate: "this text: %{y:.3f} × full precision at %{x:.2f} bits<extra></extra>" });
      return mbq.fitted(figure, curve.div);
    });
    const draw = () => {
      for (const [place, key] of [[scores, "scores"], [layers, "layers"], [kinds, "kinds"]]) place.sentence.textContent = info[key].sentence;
      const plain = (place, key) => () => mbq.plot(place.div, () => structuredClone(info[key].figure));
      mbq.inTurn([drawScores, plain(layers, "layers"), () => stored.figure && drawCurve(), plain(kinds, "kinds")]);
    };
    const ask = async () => {
      const run = mbq.run;
      if (!run || run.state === "running" || !root.offsetParent || drawn === run.id || !tools.server) return;
      drawn = asked = run.id;
      const answer = await tools.server.lab({ run: run.id });
      if (asked !== run.id) return;
      if (answer.error) {
        scores.sentence.textContent = answer.error;
        return;
      }
      info = answer;
      draw();
    };
    if (stored.figure) {
      curve.sentence.textContent = stored.sentence;
      source.textContent = `Measured on ${stored.device || "an unnamed device"}` + (stored.command ? ` with “${stored.command}”. The dashed line is the run on show.` : ".");
      drawCurve();
    } else {
      curve.sentence.textContent = "No stored measurement comes with this copy of the studio.";
      source.textContent = "“python -m benchmarks.calibration_study” makes one; put its study.json at assets/results.json and start again.";
      curve.div.hidden = true;
    }
    // Statistics are asked for when the tab is opened, not with every run.
    mbq.onShown(root, ask);
    mbq.on("done", ask);
    mbq.on("depths", () => info && root.offsetParent && drawScores());

    go.addEventListener("click", () => {
      if (!mbq.run || go.disabled) return;
      go.disabled = true;
      state.textContent = mbq.status?.state === "live" ? "The oracle measures every slice of every token …" : "Waiting for the model …";
      tools.trigger("agree", { run: mbq.run.id });
    });
    const settle = (text) => {
      go.disabled = false;
      state.textContent = text;
    };
    mbq.on("failed", (message) => message.what === "agreement" && settle(""));
    mbq.on("agreement", (message) => {
      settle(`${message.policy}: ${mbq.fixed(message.measured[0])} bits spent, oracle: ${mbq.fixed(message.measured[1])}`);
      figures = message.figures;
      agree.sentence.textContent = message.sentence;
      pair.hidden = false;
      mbq.plot(agree.div, () => mbq.fitted(structuredClone(figures.layers), agree.div));
      mbq.plot(confusion, () => structuredClone(figures.confusion));
    });
    mbq.on("done", () => figures && (state.textContent = "These numbers belong to the run before; measure again for this text."));
    ask();
  };
})();
