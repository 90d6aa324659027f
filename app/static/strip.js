// The text itself: one chip per token, its ground and number saying how many bits it was given.
// Token text enters by textContent only. One chip has the keyboard focus (roving tabindex).
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;

  mbq.views.strip = (root) => {
    const head = el("div", "mbq-strip-head"), title = mbq.heading("How many bits each token got");
    const legend = el("div", "mbq-legend"), badge = el("b", "mbq-badge", "preview");
    badge.hidden = true;
    title.querySelector("h2").append(" ", badge);
    title.append(el("p", "", "Every chip is one token (a word or part of one). Its colour and number are the average bits per weight the model read to process it; underlined chips are the prompt."));
    const key = el("div", "mbq-key"), stretch = mbq.toggle("stretch colours to this run", false, mbq.stretch);
    stretch.title = "Off: the same colour means the same bits in every run";
    key.append(legend, stretch);
    head.append(title, key);
    const list = el("div", "mbq-strip-tokens"), sentence = el("p", "mbq-sentence");
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Tokens with their average bits");
    sentence.setAttribute("aria-live", "polite");
    root.append(head, list, sentence);
    const empty = el("p", "mbq-empty", "Nothing has run yet. Type a prompt and press Generate.");
    let chips = [], shown = [], looks = {}, tops = null, rest = 0, focus = 0;

    const lookOf = (bits) => {
      const rgb = mbq.shade("bits", mbq.bitShare(bits));
      return { ground: mbq.css(rgb), ink: mbq.inkOn(rgb), text: bits.toFixed(1) };
    };
    // While the budget is dragged only the chips in sight are painted; the others follow when it rests.
    const inSight = () => {
      const top = list.scrollTop - 60, bottom = list.scrollTop + list.clientHeight + 20;
      if (!tops) tops = chips.map((chip) => chip.offsetTop);
      return (t) => tops[t] >= top && tops[t] <= bottom;
    };
    const paint = (from = 0, wanted = null) => {
      const run = mbq.run, bits = mbq.tokenBits(run);
      for (let t = from; t < run.T; t++) {
        const value = Math.round(bits[t] * 10);
        if (shown[t] === value || (wanted && !wanted(t))) continue;
        shown[t] = value;
        const look = looks[value] || (looks[value] = lookOf(value / 10)), chip = chips[t];
        chip.style.backgroundColor = look.ground;
        if (chip.mbqInk !== look.ink) chip.style.color = chip.mbqInk = look.ink;
        chip.lastChild.firstChild.data = look.text;
      }
      return bits;
    };

    const add = (from) => {
      const run = mbq.run, part = document.createDocumentFragment();
      for (let t = from; t < run.T; t++) {
        const text = run.texts[t], chip = el("span", "mbq-token"), number = el("i", "", "–");
        chip.append(el("b", "", mbq.visible(text)), number);
        chip.dataset.t = t;
        chip.setAttribute("role", "option");
        chip.tabIndex = t === focus ? 0 : -1;
        if (t < run.promptTokens) chip.classList.add("prompt");
        if (t > 0 && !/^\s/.test(text)) chip.classList.add("joined");
        part.append(chip);
        if (text.includes("\n")) part.append(el("br"));
        chips.push(chip);
      }
      list.append(part);
      tops = null;
    };

    const say = (bits) => {
      const run = mbq.run;
      let best = -1, worst = -1;
      for (let t = 1; t < run.T; t++) {
        if (!/[\p{L}\p{N}]/u.test(run.texts[t])) continue;
        if (best < 0 || bits[t] > bits[best]) best = t;
        if (worst < 0 || bits[t] < bits[worst]) worst = t;
      }
      if (best < 0 || bits[best] - bits[worst] < 0.05) {
        sentence.textContent = `All tokens got about ${mbq.fixed(mbq.mean(bits, run.T), 1)} bits: this policy does not look at tokens.`;
        return;
      }
      const asked = mbq.preview ? mbq.preview.budget : run.meta.requestedBits;
      sentence.textContent = `At ${mbq.fixed(asked, 1)} bits on average, “${mbq.visible(run.texts[best])}” got ${mbq.fixed(bits[best], 1)} bits and “${mbq.visible(run.texts[worst])}” only ${mbq.fixed(bits[worst], 1)}.`;
    };

    const label = () => {
      const run = mbq.run;
      chips.forEach((chip, t) => chip.setAttribute("aria-label", `Token ${t}, ${mbq.visible(run.texts[t])}, ${(shown[t] / 10).toFixed(1)} bits${t < run.promptTokens ? ", prompt" : ""}`));
    };

    const drawLegend = () => mbq.legend(legend, mbq.bitStyle());
    const restart = () => {
      // The chips are made anew: whoever was among them with the keyboard stays there.
      const held = list.contains(document.activeElement);
      chips = [];
      shown = [];
      focus = 0;
      list.replaceChildren();
      badge.hidden = !mbq.preview;
      add(0);
      say(paint());
      if (mbq.run.state !== "running") label();
      mark();
      if (held) chips[focus]?.focus({ preventScroll: true });
    };
    const select = (name, cell) => {
      list.querySelector("." + name)?.classList.remove(name);
      if (cell && chips[cell.token]) chips[cell.token].classList.add(name);
    };
    const mark = () => {
      list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
      select("pinned", mbq.pinned);
      const chip = mbq.pinned && chips[mbq.pinned.token];
      if (!chip) return;
      chip.setAttribute("aria-selected", "true");
      rove(mbq.pinned.token);
      if (list.contains(document.activeElement)) chip.focus({ preventScroll: false });
    };
    const rove = (t) => {
      if (chips[focus]) chips[focus].tabIndex = -1;
      focus = t;
      if (chips[t]) chips[t].tabIndex = 0;
    };

    mbq.on("run", restart);
    mbq.on("columns", ({ from }) => {
      add(from);
      paint(from);
    });
    mbq.on("done", () => {
      say(paint());
      label();
    });
    mbq.on("depths", (preview) => {
      badge.hidden = !preview;
      say(paint(0, preview ? inSight() : null));
      clearTimeout(rest);
      rest = setTimeout(paint, 160);
    });
    new ResizeObserver(() => (tops = null)).observe(list);
    const recolour = () => {
      shown = [];
      looks = {};
      drawLegend();
      if (mbq.run) paint();
    };
    mbq.on("theme", recolour);
    mbq.on("scale", recolour);
    mbq.on("pin", mark);
    mbq.on("hover", (cell) => select("hovered", cell));

    const at = (event) => {
      const chip = event.target.closest?.(".mbq-token");
      return chip ? Number(chip.dataset.t) : null;
    };
    list.addEventListener("pointermove", (event) => {
      const t = at(event);
      mbq.hover(t === null ? null : { layer: null, token: t });
      mbq.tip(t === null ? null : [mbq.describe({ token: t }), `${(shown[t] / 10).toFixed(1)} bits per weight on average`], event.clientX, event.clientY);
    });
    list.addEventListener("pointerleave", () => {
      mbq.hover(null);
      mbq.tip(null);
    });
    list.addEventListener("click", (event) => at(event) !== null && mbq.pin({ token: at(event) }));
    list.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        mbq.pin({ token: focus });
      } else if (event.key === "Home" || event.key === "End") {
        event.preventDefault();
        mbq.pin({ token: event.key === "Home" ? 0 : mbq.run.T - 1 });
      }
    });
    drawLegend();
    if (mbq.run) restart();
    else list.append(empty);
  };
})();
