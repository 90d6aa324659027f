// Plays the scenes: as an offered tour in a corner, or large and by arrow keys with ?present=1.
// Arrow keys step, Esc ends; the panel is a dialog that leaves the page usable.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el, present = new URLSearchParams(location.search).get("present") === "1";
  let at = -1, panel = null, lit = null, opener = null;

  function build() {
    panel = el("section", "mbq-tour");
    panel.setAttribute("role", "dialog");
    panel.setAttribute("aria-labelledby", "mbq-tour-title");
    panel.tabIndex = -1;
    const count = el("span", "mbq-note count"), title = el("h2"), text = el("p"), row = el("div", "row");
    title.id = "mbq-tour-title";
    const button = (name, className, fn) => {
      const made = el("button", className, name);
      made.type = "button";
      made.addEventListener("click", fn);
      row.append(made);
      return made;
    };
    const back = button("Back", "mbq-quiet", () => go(at - 1)), next = button("Next", "mbq-button", () => go(at + 1)), end = button("End", "mbq-quiet", stop);
    panel.append(count, title, text, row);
    Object.assign(panel, { parts: { count, title, text, back, next, end } });
    document.body.append(panel);
  }

  function dim(target) {
    lit?.classList.remove("mbq-lit");
    lit = target && document.querySelector(target);
    if (!lit) return;
    lit.classList.add("mbq-lit");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    setTimeout(() => lit?.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" }), 120);
  }

  function go(to) {
    const scenes = mbq.scenes;
    if (at >= 0) scenes[at].leave?.();
    if (to >= scenes.length && !present) return stop();
    at = Math.min(Math.max(to, 0), scenes.length - 1);
    const scene = scenes[at], { count, title, text, back, next } = panel.parts;
    mbq.openTab(scene.tab);
    mbq.pin(null);
    scene.enter?.();
    count.textContent = `${at + 1} of ${scenes.length}`;
    title.textContent = scene.title;
    text.textContent = scene.text();
    back.disabled = at === 0;
    next.textContent = at === scenes.length - 1 && !present ? "Done" : "Next";
    dim(scene.target);
    panel.focus({ preventScroll: true });
  }

  function stop() {
    if (at >= 0) mbq.scenes[at].leave?.();
    at = -1;
    lit?.classList.remove("mbq-lit");
    panel?.remove();
    panel = null;
    document.body.classList.remove("mbq-touring");
    opener?.focus();
  }

  mbq.tour = () => {
    if (!mbq.run || panel) return;
    opener = document.activeElement;
    document.body.classList.add("mbq-touring");
    build();
    go(0);
  };

  // Before the store's own keys: while the panel is open, arrows belong to it, except inside fields.
  document.addEventListener("keydown", (event) => {
    if (!panel || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, textarea, select, [role=listbox]")) return;
    if (!present && !panel.contains(event.target)) return;
    const move = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 }[event.key];
    if (event.key === "Escape") stop();
    else if (move) go(at + move);
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  mbq.on("server", () => {
    const button = el("button", "mbq-quiet mbq-tour-start", present ? "Present" : "Tour · 90 s");
    button.type = "button";
    button.addEventListener("click", mbq.tour);
    document.querySelector(".mbq-bar .mbq-ground")?.before(button);
    if (!present) return;
    document.body.classList.add("mbq-present");
    const begin = () => setTimeout(mbq.tour, 400);
    if (mbq.run) begin();
    else mbq.on("run", begin);
  });
})();
