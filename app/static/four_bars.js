// The stored outlier-migration experiment: four bars, what they say, and where they come from.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  mbq.views.four_bars = (root, tools) => {
    const stored = tools.props.value ? JSON.parse(tools.props.value) : { figure: null };
    const sentence = el("p", "mbq-sentence"), div = el("div", "mbq-plot"), source = el("p", "mbq-note", stored.source || "");
    div.setAttribute("role", "group");
    div.setAttribute("aria-label", "Perplexity of models calibrated for one width and read at another");
    root.append(mbq.heading("What migration costs: calibrated at one width, read at another", "A calibration fitted for 3 bits protects the tokens that 3 bits hurts. Read at 4 bits, other tokens are hurt. An outlier token is one of the tenth of each text with the largest relative error at 3 bits, linear by linear."), sentence, div, source);
    if (!stored.figure) {
      sentence.textContent = "No stored experiment comes with this copy of the studio; “python -m benchmarks.calibration_study --bars 3 4” makes one.";
      div.hidden = true;
      return;
    }
    sentence.textContent = stored.sentence;
    mbq.plot(div, () => structuredClone(stored.figure));
  };
})();
