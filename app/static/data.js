// Files, links and code of the run on show; the memory ledger; the speed measured on this machine so far.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const RUN_FILE_LIMIT = 5000000;

  function save(name, mime, text) {
    const link = el("a");
    link.href = URL.createObjectURL(new Blob([text], { type: mime }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  const button = (text, fn, className = "mbq-quiet") => {
    const made = el("button", className, text);
    made.type = "button";
    made.addEventListener("click", fn);
    return made;
  };
  const section = (root, title, note, wide) => {
    const box = el("section", wide ? "mbq-card wide" : "mbq-card");
    box.append(mbq.heading(title, note));
    root.append(box);
    return box;
  };
  const amount = (bytes) => (bytes >= 1e9 ? mbq.fixed(bytes / 1e9) + " GB" : bytes >= 1e6 ? mbq.fixed(bytes / 1e6, 1) + " MB" : mbq.fixed(bytes / 1e3, 1) + " kB");
  const row = (values, head) => {
    const line = el("tr");
    values.forEach((value, i) => line.append(Object.assign(el(head || i === 0 ? "th" : "td", i ? "number" : "", value), i === 0 || head ? { scope: head ? "col" : "row" } : {})));
    return line;
  };
  const scrolling = (table) => {
    const box = el("div", "mbq-scroll");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Table");
    box.append(table);
    return box;
  };
  const table = (caption) => {
    const made = el("table", "mbq-table");
    made.append(el("caption", "", caption), el("thead"), el("tbody"));
    return made;
  };

  function files(root, tools, say) {
    const box = section(root, "Save this run", "The run on show, as files other programs read."), bar = el("div", "mbq-row");
    const fetchFile = async (format) => {
      if (!mbq.run) return say("Nothing has run yet.");
      say("Preparing …");
      const answer = await tools.server.run_file({ run: mbq.run.id, format });
      if (answer.error) return say(answer.error);
      save(answer.name, answer.mime, answer.text);
      say(`Saved ${answer.name}.`);
    };
    bar.append(button("Table (CSV)", () => fetchFile("csv")), button("Run file (JSON)", () => fetchFile("json")), button("Page with figures (HTML)", () => fetchFile("html")));
    const pictures = el("div", "mbq-row"), choice = el("select"), label = el("label", "mbq-select", "Figure ");
    label.append(choice);
    const list = () => {
      const kept = choice.value, drawn = [...document.querySelectorAll(".mbq-plot")].filter((div) => div.mbqMake);
      choice.replaceChildren(...drawn.map((div, i) => Object.assign(el("option", "", div.getAttribute("aria-label").split(";")[0]), { value: String(i) })));
      choice.value = kept || "0";
      return drawn;
    };
    const picture = async (format) => {
      const div = list()[Number(choice.value)];
      if (!div) return say("No figure has been drawn yet.");
      try {
        await mbq.image(div, format, "mobiquant-" + choice.selectedOptions[0].textContent.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40));
        say(`Saved a ${format.toUpperCase()} picture.`);
      } catch (error) {
        say(error.message);
      }
    };
    choice.addEventListener("pointerdown", list);
    choice.addEventListener("focus", list);
    pictures.append(label, button("PNG", () => picture("png")), button("SVG", () => picture("svg")));
    mbq.onShown(box, list);
    const open = el("label", "mbq-select mbq-open", "Open a saved run "), input = el("input");
    Object.assign(input, { type: "file", accept: ".json,application/json" });
    open.append(input);
    input.addEventListener("change", async () => {
      const file = input.files[0];
      input.value = "";
      if (!file) return;
      if (file.size > RUN_FILE_LIMIT) return say(`This file has ${file.size.toLocaleString("en")} bytes; a run file has at most 5,000,000.`);
      say("Opening …");
      tools.trigger("reopen", { text: await file.text() });
    });
    mbq.on("failed", (message) => message.what === "open" && say("The file could not be opened."));
    mbq.on("done", (run) => run.state === "recorded" && say("This run is on show."));
    box.append(bar, pictures, open);
    return box;
  }

  const python = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  function code() {
    const now = mbq.settings();
    return ["from gradio_client import Client", "", `client = Client(${python(location.origin + location.pathname)})`, "answer = client.predict(", `    prompt=${python(now.prompt)},`, `    bits=${now.bits}, policy="${now.policy}", seed=${now.seed},`, `    max_new_tokens=${now.tokens}, temperature=${now.temperature},`, '    api_name="/generate",', ")", 'print(answer["text"], answer["measured_bits"])'].join("\n");
  }

  function sharing(root, say) {
    const box = section(root, "Share the state, or call it from Python", "The link opens this page with the same prompt, budget, policy, seed, view and pinned cell. A long prompt stays behind the # and is never sent to the server.");
    const link = el("input"), copy = async (text, what) => {
      try {
        await navigator.clipboard.writeText(text);
        say(`Copied the ${what}.`);
      } catch {
        say("The browser does not allow copying here; select the text instead.");
      }
    };
    Object.assign(link, { type: "text", readOnly: true, className: "mbq-field" });
    link.setAttribute("aria-label", "Link to this state");
    link.addEventListener("focus", () => link.select());
    const bar = el("div", "mbq-row"), block = el("pre", "mbq-code");
    block.tabIndex = 0;
    block.setAttribute("aria-label", "Python code for these settings");
    block.setAttribute("role", "region");
    bar.append(link, button("Copy link", () => copy(link.value, "link")));
    box.append(bar, block, button("Copy code", () => copy(block.textContent, "code")));
    const refresh = () => {
      link.value = mbq.permalink();
      block.textContent = code();
    };
    mbq.onShown(box, refresh);
    for (const name of ["done", "pin"]) mbq.on(name, () => box.offsetParent && refresh());
    document.addEventListener("input", () => box.offsetParent && setTimeout(refresh, 50));
  }

  function memory(root, tools) {
    const box = section(root, "Memory of the model in use", "What one decoded token has to read from memory at each depth, and what is stored, beside the same model in 16 bits. Embeddings, norms and routers are counted, in the bytes of the stored format: a CPU holds its 16-bit parts in 32.", true), words = el("p", "mbq-note", "The ledger is filled when the model is loaded.");
    const ledger = table("Bytes read per decoded token");
    const place = scrolling(ledger);
    place.hidden = true;
    box.append(words, place);
    let model = null;
    const fill = async () => {
      if (!box.offsetParent || mbq.status?.state !== "live" || model === mbq.status.text || !tools.server) return;
      const wanted = mbq.status.text, answer = await tools.server.ledger({});
      if (answer.error) return (words.textContent = answer.error);
      model = wanted;
      ledger.tHead.replaceChildren(row(["part", "weights", "stored", ...answer.bits.map((b) => `read at ${b} bits`), "16-bit model"], true));
      const lines = [], sum = { stored: 0, read: answer.bits.map(() => 0), whole: 0 };
      for (const part of answer.rows) {
        const whole = part.whole;
        sum.stored += part.stored;
        part.read.forEach((value, i) => (sum.read[i] += value));
        sum.whole += whole;
        lines.push(row([part.part, part.weights.toLocaleString("en"), amount(part.stored), ...part.read.map(amount), whole ? amount(whole) : "–"]));
      }
      const last = row(["all", "", amount(sum.stored), ...sum.read.map(amount), amount(sum.whole)]);
      last.className = "sum";
      ledger.tBodies[0].replaceChildren(...lines, last);
      words.textContent = `${answer.model}: one token at ${answer.bits[0]} bits reads ${Math.round((100 * sum.read[0]) / sum.whole)} % of what the 16-bit model reads, at ${answer.bits.at(-1)} bits ${Math.round((100 * sum.read.at(-1)) / sum.whole)} %.`;
      place.hidden = false;
    };
    mbq.on("status", fill);
    mbq.onShown(box, fill);
  }

  // Counted from the start: the place for the table is made only when its tab is first opened.
  const measured = new Map();
  mbq.on("done", (run) => {
    if (run.state === "recorded" || !run.decode.length) return;
    const total = run.decode.reduce((a, b) => a + b, 0), n = run.decode.length;
    measured.set(run.id, [run.meta.policy, mbq.fixed(run.meta.requestedBits, 1), mbq.fixed(run.measured), String(n), mbq.fixed(n / total, 1), mbq.fixed((1000 * total) / n, 1), mbq.fixed(1000 * run.prefill, 0), run.meta.machine.device || "–"]);
  });

  function speed(root) {
    const box = section(root, "Speed measured in this session", "Every run that decoded tokens since the page was opened; nothing is estimated.", true), words = el("p", "mbq-note", "No run yet. Press Generate."), times = table("Decode speed by run"), place = scrolling(times);
    place.hidden = true;
    times.tHead.append(row(["policy", "bits asked", "measured", "tokens", "tokens/s", "ms/token", "prompt ms", "device"], true));
    box.append(words, place);
    const fill = () => {
      if (!measured.size) return;
      times.tBodies[0].replaceChildren(...Array.from(measured.values(), (values) => row(values)));
      words.hidden = true;
      place.hidden = false;
    };
    mbq.on("done", fill);
    fill();
  }

  mbq.views.data = (root, tools) => {
    const grid = el("div", "mbq-datagrid"), status = el("p", "mbq-note mbq-data-status");
    status.setAttribute("role", "status");
    const say = (text) => (status.textContent = text);
    root.append(grid);
    const box = files(grid, tools, say);
    box.append(status);
    sharing(grid, say);
    memory(grid, tools);
    speed(grid);
  };
})();
