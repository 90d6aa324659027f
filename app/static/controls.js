// Around Gradio's own controls: example chips, the slider's scale and preview, which button makes sense now.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  function setText(input, text) {
    if (!input) return;
    const owner = input.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(owner.prototype, "value").set.call(input, text);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  mbq.setPrompt = (text) => setText(document.querySelector("#mbq-prompt textarea"), text);
  mbq.setBudget = (bits) => setText(document.querySelector("#mbq-budget input[type=number]"), String(bits));

  mbq.views.examples = (root) => {
    const row = el("div", "mbq-row");
    let kind = null;
    for (const [family, name, text] of mbq.config.examples) {
      if (family !== kind) row.append(el("span", "kind", family === "story" ? "Stories" : "Articles"));
      kind = family;
      const chip = el("button", "", name);
      chip.type = "button";
      chip.title = text;
      chip.addEventListener("click", () => mbq.setPrompt(text));
      row.append(chip);
    }
    root.append(row);
  };

  // The scale under the slider, and what releasing it will do.
  mbq.views.ticks = (root) => {
    const scale = el("div", "mbq-scale"), note = el("p", "mbq-slider-note");
    for (const [bits, word] of [[2, "rough"], [4, ""], [6, ""], [8, "precise"]]) {
      const tick = el("span");
      tick.style.left = ((bits - 2) / 6) * 100 + "%";
      tick.append(el("b", "", String(bits)), el("i", "", word));
      scale.append(tick);
    }
    root.append(scale, note);
    const say = () => {
      const preview = mbq.preview;
      root.classList.toggle("previewing", !!preview);
      if (!preview) {
        note.textContent = "Drag: the recorded scores are re-thresholded at once, as a preview.";
        return;
      }
      note.replaceChildren(el("b", "mbq-badge", "preview"), document.createTextNode(` ${mbq.fixed(preview.budget, 1)} bits asked, ${mbq.fixed(mbq.mean(mbq.tokenBits(mbq.run), mbq.run.T))} predicted on this text. `));
      const back = el("button", "mbq-link", "Back to the run");
      back.type = "button";
      back.addEventListener("click", () => mbq.setPreview(null));
      note.append(back);
    };
    mbq.on("depths", say);
    mbq.on("run", say);
    say();
  };

  // Gradio runs a typed budget when its field is left; Enter means the same.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("#mbq-budget input[type=number]")) event.target.blur();
  });

  document.addEventListener("input", (event) => {
    if (!event.isTrusted || !event.target.closest("#mbq-budget")) return;
    const budget = Number(event.target.value);
    if (budget >= 2 && budget <= 8) mbq.setPreview(budget);
  });

  // Stop lights up while a run is under way; Generate says that it is.
  function busy(on) {
    document.body.classList.toggle("mbq-busy", on);
    const stop = document.querySelector("#mbq-stop");
    if (stop) stop.setAttribute("aria-disabled", String(!on));
  }
  mbq.on("run", (run) => busy(run.state === "running"));
  mbq.on("done", () => busy(false));
  document.addEventListener("click", (event) => {
    if (event.target.closest("#mbq-generate, #mbq-analyze")) busy(true);
    if (event.target.closest("#mbq-stop")) setTimeout(() => busy(false), 400);
  });
  mbq.on("failed", () => busy(false));
  // Gradio may put the buttons on the page after the recorded run; the first status comes later than both.
  mbq.on("status", () => busy(document.body.classList.contains("mbq-busy")));
})();
