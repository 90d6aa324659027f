// Six numbers about the run on show: bits asked and measured, weights read, speed.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  function card(root, title, hint) {
    const box = el("div", "mbq-stat"), value = el("span", "value", "–"), note = el("span", "note", " ");
    box.append(el("span", "title", title), value, note);
    box.title = hint;
    root.append(box);
    return (text, unit, under) => {
      value.replaceChildren(document.createTextNode(text), el("small", "", unit ? " " + unit : ""));
      note.textContent = under || "\u00a0";
    };
  }

  function size(bytes) {
    return bytes >= 1e9 ? [mbq.fixed(bytes / 1e9, 2), "GB"] : [mbq.fixed(bytes / 1e6, bytes < 1e7 ? 2 : 1), "MB"];
  }

  mbq.views.cards = (root) => {
    root.setAttribute("aria-label", "Measured numbers of this run");
    root.setAttribute("role", "group");
    const asked = card(root, "Asked", "The bit budget of this run: average bits per weight over all tokens");
    const measured = card(root, "Measured", "Average bits per weight that were really read, weighted by the size of each linear");
    const read = card(root, "Weights read per token", "Bytes of quantized linears read for one token, with two 16-bit numbers per group; embeddings and norms are not in it");
    const speed = card(root, "Speed", "Tokens decoded per second, views included");
    const each = card(root, "Per token", "Mean time of one decode step");
    const first = card(root, "First token after", "Time to process the prompt");
    // The strip says how a run went; where another tab hides it, this says it for those who listen.
    const said = el("p", "mbq-unseen");
    said.setAttribute("role", "status");
    root.append(said);
    mbq.on("done", (run) => {
      const words = `The run has ended: ${run.T} tokens, ${mbq.fixed(run.measured)} bits on average for ${mbq.fixed(run.meta.requestedBits, 1)} asked.`;
      said.textContent = mbq.tabNow() === "allocate" || run.state === "recorded" ? "" : words;
    });
    let pending = false;

    const draw = () => {
      pending = false;
      const run = mbq.run;
      if (!run) return;
      const preview = mbq.preview, meta = run.meta;
      const bits = preview ? mbq.mean(mbq.tokenBits(run), run.T) : run.measured;
      root.classList.toggle("previewing", !!preview);
      asked(mbq.fixed(preview ? preview.budget : meta.requestedBits, 1), "bits", meta.policy + (meta.kind === "analyze" ? ", given text" : ""));
      const off = bits - (preview ? preview.budget : meta.requestedBits);
      measured(mbq.fixed(bits), "bits", preview ? "preview on this text" : `${off >= 0 ? "+" : "−"}${Math.abs(off).toFixed(2)} from asked, ${run.T} tokens`);
      const weights = run.weightOf.reduce((a, b) => a + b, 0), over = meta.groupOverheadBits;
      const [amount, unit] = size((weights * (bits + over)) / 8);
      read(amount, unit, `${Math.round((100 * (bits + over)) / (8 + over))} % of 8-bit, ${Math.round((100 * (bits + over)) / 16)} % of 16-bit`);
      const total = run.decode.reduce((a, b) => a + b, 0), n = run.decode.length;
      speed(n ? mbq.fixed(n / total, n / total < 100 ? 1 : 0) : "–", n ? "tokens/s" : "", run.state === "recorded" ? "recorded on " + short(meta.machine.device) : n ? `${n} tokens decoded` : "nothing decoded");
      each(n ? mbq.fixed((1000 * total) / n, 1) : "–", n ? "ms" : "", n ? "decode step" : "");
      first(mbq.fixed(1000 * run.prefill, 0), "ms", `${run.promptTokens} prompt tokens`);
    };
    const short = (device) => (device || "another machine").split(",")[0];
    const soon = () => {
      if (!pending) requestAnimationFrame(draw);
      pending = true;
    };
    for (const name of ["run", "columns", "done", "depths"]) mbq.on(name, soon);
    if (mbq.run) soon();
  };
})();
