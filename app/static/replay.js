// Replays the run on show token by token at the speed it was made, and says how long the queue is.
// It needs no model: the columns are already here, and come back one by one.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const SLOWEST = 400, FASTEST = 40, QUEUE_POLL = 700;
  let whole = null, timer = 0;

  function end() {
    clearTimeout(timer);
    if (!whole) return;
    const full = whole, stale = mbq.run.id !== full.id;
    whole = null;
    if (!stale) {
      const from = mbq.run.T;
      Object.assign(mbq.run, { T: full.T, texts: full.texts, ids: full.ids, topTexts: full.topTexts, decode: full.decode, state: full.state, measured: full.measured });
      if (full.T > from) mbq.emit("columns", { from });
      mbq.emit("done", mbq.run);
    }
    mbq.emit("replay", null);
  }

  // What had been spent when `T` tokens were there.
  const spent = (run) => mbq.mean(mbq.tokenBits(run), run.T);

  mbq.replay = () => {
    if (whole) return end();
    const full = mbq.run;
    if (!full || full.state === "running" || full.T <= 2) return;
    // A given text has no decoded part: it is replayed from its second token.
    const start = full.promptTokens < full.T ? full.promptTokens : 1;
    mbq.setPreview(null);
    mbq.preview = null;
    whole = full;
    const shown = { ...full, T: start, texts: full.texts.slice(0, start), ids: full.ids.slice(0, start), topTexts: full.topTexts.slice(0, start), decode: [], state: "running" };
    shown.measured = spent(shown);
    mbq.run = shown;
    mbq.pin(null);
    mbq.emit("run", shown);
    const step = () => {
      if (mbq.run !== shown) return end();
      const t = shown.T;
      shown.texts.push(full.texts[t]);
      shown.ids.push(full.ids[t]);
      shown.topTexts.push(full.topTexts[t]);
      const seconds = full.decode[t - full.promptTokens];
      if (seconds !== undefined) shown.decode.push(seconds);
      shown.T = t + 1;
      shown.measured = spent(shown);
      mbq.emit("columns", { from: t });
      mbq.emit("replay", { at: shown.T, of: full.T });
      if (shown.T >= full.T) return end();
      timer = setTimeout(step, Math.min(Math.max(1000 * (seconds ?? 0.12), FASTEST), SLOWEST));
    };
    timer = setTimeout(step, FASTEST);
    mbq.emit("replay", { at: start, of: full.T });
  };

  mbq.views.replay = (root) => {
    const go = el("button", "mbq-quiet", "▶ Replay token by token"), words = el("span", "mbq-note"), queue = el("span", "mbq-note mbq-queue");
    go.type = "button";
    queue.setAttribute("role", "status");
    root.append(go, words, queue);
    go.addEventListener("click", mbq.replay);
    mbq.on("replay", (state) => {
      go.textContent = state ? "■ Stop the replay" : "▶ Replay token by token";
      words.textContent = state ? `token ${state.at} of ${state.of}` : "";
    });
    const able = () => (go.disabled = !whole && (!mbq.run || mbq.run.state === "running"));
    for (const name of ["run", "done"]) mbq.on(name, able);
    able();

    // Runs wait for each other on one model; the page asks for the length of the queue only while it waits.
    let waiting = 0;
    const arrived = () => {
      clearTimeout(waiting);
      waiting = 0;
      queue.textContent = "";
    };
    const look = async () => {
      try {
        const answer = await (await fetch("gradio_api/queue/status")).json();
        if (waiting && answer.queue_size > 0) queue.textContent = `${answer.queue_size} ${answer.queue_size === 1 ? "run waits" : "runs wait"} for the model; the recorded run can be replayed meanwhile.`;
      } catch {
        queue.textContent = "";
      }
      if (waiting) waiting = setTimeout(look, QUEUE_POLL);
    };
    document.addEventListener("click", (event) => {
      if (event.target.closest("#mbq-generate, #mbq-analyze, .mbq-button") && !waiting) waiting = setTimeout(look, QUEUE_POLL);
    });
    for (const name of ["run", "failed", "compare", "agreement", "migration", "progress"]) mbq.on(name, arrived);
  };
})();
