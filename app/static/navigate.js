// Tabs by name, and the address of the state on show: ?p=&bits=&policy=&seed=&view=&sel=, long prompts behind the #.
// The server reads the query when the page opens (app/permalink.py); the fragment never leaves the browser.
(function () {
  "use strict";
  const mbq = window.mbq;
  const LONGEST_PROMPT = 300;
  const tabButton = (id) => document.getElementById(`mbq-tab-${id}-button`);

  mbq.tabNow = () => document.querySelector('#mbq-tabs button[role=tab][aria-selected="true"]')?.id.replace(/^mbq-tab-|-button$/g, "") || "allocate";
  mbq.openTab = (id) => {
    const button = tabButton(id);
    if (button) return button.click();
    // On a narrow page Gradio keeps the tabs that do not fit behind its own menu.
    const title = mbq.config.tabs[id], entry = [...document.querySelectorAll("#mbq-tabs .overflow-dropdown button")].find((b) => b.textContent.trim() === title);
    entry?.click();
  };

  // Runs `fn` when a place comes on show, which is when its tab is opened, even below the edge of the window.
  mbq.onShown = (element, fn) => new ResizeObserver(() => element.offsetParent && fn()).observe(element);

  const value = (selector) => document.querySelector(selector)?.value ?? "";
  mbq.settings = () => {
    const label = value("#mbq-policy input"), policy = Object.entries(mbq.config.policies).find(([, text]) => text === label)?.[0] || "router";
    return { prompt: value("#mbq-prompt textarea"), bits: Number(value("#mbq-budget input[type=number]")) || 3.5, policy, seed: Number(value("#mbq-seed input")) || 0, tokens: Number(value("#mbq-new-tokens input[type=number]")) || 64, temperature: Number(value("#mbq-temperature input[type=number]") || 0.8) };
  };
  mbq.permalink = () => {
    const now = mbq.settings(), query = new URLSearchParams(), long = now.prompt.length > LONGEST_PROMPT;
    if (!long) query.set("p", now.prompt);
    query.set("bits", now.bits);
    query.set("policy", now.policy);
    query.set("seed", now.seed);
    query.set("view", mbq.tabNow());
    if (mbq.pinned) query.set("sel", `${mbq.pinned.layer}.${mbq.pinned.token}`);
    for (const name of ["present", "__theme"]) if (given.has(name)) query.set(name, given.get(name));
    return location.origin + location.pathname + "?" + query + (long ? "#" + new URLSearchParams({ p: now.prompt }) : "");
  };

  const given = new URLSearchParams(location.search), hidden = new URLSearchParams(location.hash.slice(1));
  const sel = /^(\d{1,4})\.(\d{1,5})$/.exec(given.get("sel") || "");
  mbq.on("run", () => {
    if (!sel || mbq.navigated) return;
    mbq.navigated = true;
    mbq.pin({ layer: Number(sel[1]), token: Number(sel[2]) });
  });
  mbq.on("server", () => {
    const prompt = hidden.get("p");
    // After the server's own values have arrived.
    if (prompt) setTimeout(() => mbq.setPrompt(prompt.slice(0, 100000)), 600);
  });

  // The address follows the state, so that reload and bookmark bring it back.
  let started = false;
  const follow = () => started && history.replaceState(history.state, "", mbq.permalink());
  for (const name of ["pin", "done"]) mbq.on(name, () => setTimeout(follow, 0));
  document.addEventListener("pointerdown", () => (started = true), true);
  document.addEventListener("keydown", () => (started = true), true);
  document.addEventListener("click", (event) => event.target.closest("#mbq-tabs [role=tab]") && setTimeout(follow, 50));
})();
