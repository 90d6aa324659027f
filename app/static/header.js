// The page's first line: name, what this is, the model's status, light or dark.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const POLL_FAST = 600, POLL_SLOW = 20000;

  mbq.views.header = (root) => {
    const bar = el("header", "mbq-bar"), mark = el("span", "mbq-mark");
    for (let depth = 0; depth < 4; depth++) mark.append(el("i", "d" + depth));
    mark.setAttribute("aria-hidden", "true");
    const name = el("div", "mbq-name");
    name.append(el("h1", "", "MoBiQuant Studio"), el("p", "", "One model, any number of bits: a router decides, token by token, how precisely each weight is read."));
    const chip = el("span", "mbq-chip"), text = el("span", "", "Recorded run");
    chip.setAttribute("role", "status");
    chip.append(el("i"), text);
    const ground = el("button", "mbq-ground");
    ground.type = "button";
    const labelGround = () => {
      const dark = mbq.ground() === "dark";
      ground.textContent = dark ? "☀" : "☾";
      ground.setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
      ground.title = ground.getAttribute("aria-label");
    };
    ground.addEventListener("click", () => {
      document.body.classList.toggle("dark");
      localStorage.setItem("mbq-ground", mbq.ground());
    });
    bar.append(mark, name, chip, ground);
    root.append(bar);
    const wanted = localStorage.getItem("mbq-ground");
    if (wanted && !location.search.includes("__theme")) document.body.classList.toggle("dark", wanted === "dark");
    labelGround();
    mbq.on("theme", labelGround);

    const show = (status) => {
      mbq.status = status;
      chip.className = "mbq-chip " + status.state;
      chip.title = status.state === "failed" ? status.text : "";
      const percent = Math.round(100 * status.fraction);
      text.textContent = {
        recorded: "Recorded run",
        loading: `Loading ${percent} %` + (status.text ? ` · ${status.text}` : ""),
        live: `Live · ${status.device} · ${status.path === "kernels" ? "kernels" : "reference path"}`,
        failed: "Model not loaded: recorded run only",
      }[status.state];
      mbq.emit("status", status);
    };
    mbq.refreshStatus = async () => show(await mbq.server.status({}));
    mbq.on("server", async function poll(server) {
      let next = POLL_FAST;
      try {
        show(await server.status({}));
        if (mbq.status.state === "live" || mbq.status.state === "failed") next = POLL_SLOW;
      } catch {
        chip.className = "mbq-chip failed";
        text.textContent = "Server not reachable";
        next = 3000;
      }
      setTimeout(() => poll(server), next);
    });
  };

  mbq.views.footer = (root) => {
    root.append(el("p", "mbq-foot", "Click a token or a cell to pin it; arrow keys move the pin, Esc lets it go. Nothing on this page is fetched from or sent to another server."));
  };
})();
