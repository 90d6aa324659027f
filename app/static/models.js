// Any model: presets, a hub id or a folder; progress while it is fetched, sliced, calibrated and warmed.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const POLL = 400;

  mbq.views.models = (root, tools) => {
    const known = JSON.parse(tools.props.value);
    const head = mbq.heading("Load another model", "Any Llama, Mistral, Qwen2, Qwen3 or SmolLM3 checkpoint: it is sliced as it is read, calibrated once on a short text that comes with the project, and kept for the next start. The model in use serves until the new one is ready.");
    const current = el("p", "mbq-sentence"), list = el("div", "mbq-model-list"), form = el("form", "mbq-model-form"), input = el("input"), label = el("label", "", "Hub id or folder"), go = el("button", "mbq-button", "Load");
    const bar = el("div", "mbq-progress"), fill = el("i"), words = el("p", "mbq-note"), problem = el("p", "mbq-warning");
    input.id = "mbq-model-name";
    label.htmlFor = input.id;
    Object.assign(input, { type: "text", maxLength: 300, spellcheck: false, autocomplete: "off", placeholder: "Qwen/Qwen3-0.6B  or  /path/to/model" });
    bar.append(fill);
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", "Loading the model");
    words.setAttribute("role", "status");
    problem.setAttribute("role", "alert");
    bar.hidden = problem.hidden = true;
    for (const { name, title, note } of known.presets) {
      const row = el("button", "mbq-model");
      row.type = "button";
      row.append(el("b", "", title), el("code", "", name), el("span", "", note));
      row.addEventListener("click", () => {
        input.value = name;
        load(name);
      });
      list.append(row);
    }
    form.append(label, input, go);
    form.hidden = !known.any;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      load(input.value);
    });
    root.append(head, current, list, form);
    if (!known.any) root.append(el("p", "mbq-note", "This server offers the models above only. Run the studio yourself to load any other."));
    root.append(bar, words, problem);

    let following = false;
    const busy = (on) => {
      for (const button of root.querySelectorAll("button")) button.disabled = on;
    };
    const say = (text) => {
      problem.hidden = !text;
      problem.textContent = text;
    };
    const show = (status) => {
      const loading = status.state === "loading";
      bar.hidden = !loading;
      fill.style.width = Math.round(100 * status.fraction) + "%";
      bar.setAttribute("aria-valuenow", Math.round(100 * status.fraction));
      busy(loading);
      words.textContent = loading ? `${status.text}, ${Math.round(100 * status.fraction)} %` : "";
      if (status.state === "live") current.textContent = `In use: ${status.text}, on ${status.device}.${status.reference ? "" : " Its full-precision weights are not kept, so nothing can be compared with them."}`;
      if (status.state === "failed") current.textContent = "No model is in use; the recorded run stays usable.";
      if (!loading && status.problem) say(status.problem);
      if (loading && !following) follow();
    };
    const follow = async () => {
      following = true;
      try {
        while (mbq.status?.state === "loading") {
          await new Promise((wake) => setTimeout(wake, POLL));
          await mbq.refreshStatus();
        }
      } finally {
        following = false;
      }
    };
    async function load(name) {
      say("");
      busy(true);
      const answer = await tools.server.load_model({ name });
      if (answer.error) {
        busy(false);
        return say(answer.error);
      }
      await mbq.refreshStatus();
    }
    mbq.on("status", show);
    if (mbq.status) show(mbq.status);
  };
})();
