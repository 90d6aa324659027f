// |h| of one layer, channel by token: as a map, or as the surface whose few needles are the massive activations.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const f32 = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  mbq.views.surface = (root, tools) => {
    const head = mbq.heading("Inside one layer: channel × token", "|h| of the residual stream after one layer, for the channels with the largest values. Massive activations live in a few channels of a few tokens: bright spots here, needles in 3-D. Measured with all slices, on the run on show.");
    const bar = el("div", "mbq-tools"), select = el("label", "mbq-select", "After layer "), layers = el("select"), go = el("button", "mbq-button", "Measure"), state = el("span", "mbq-note");
    go.type = "button";
    state.setAttribute("role", "status");
    select.append(layers);
    let shape = "map", found = null;
    const kind = mbq.choice("Drawn as", [["map", "map"], ["surface", "3-D"]], "map", (key) => {
      shape = key;
      draw();
    });
    bar.append(select, kind, go, state);
    const sentence = el("p", "mbq-sentence"), legend = el("div", "mbq-legend"), map = el("div", "mbq-plot"), space = el("div", "mbq-plot");
    sentence.setAttribute("aria-live", "polite");
    for (const [div, text] of [[map, "Heat map of residual magnitude by channel and token"], [space, "Surface of residual magnitude by channel and token"]]) {
      div.setAttribute("role", "group");
      div.setAttribute("aria-label", text);
    }
    root.append(head, bar, sentence, legend, map, space);
    legend.hidden = map.hidden = space.hidden = true;

    const fill = () => {
      if (!mbq.run || layers.options.length === mbq.run.layers + 1) return;
      const options = Array.from({ length: mbq.run.layers + 1 }, (_, i) => Object.assign(el("option", "", i ? String(i - 1) : "emb."), { value: String(i - 1) }));
      layers.replaceChildren(...options);
      layers.value = String(mbq.run.layers >> 1);
    };
    const ask = () => {
      fill();
      if (!mbq.run || go.disabled) return;
      go.disabled = true;
      state.textContent = mbq.status?.state === "live" ? "Measuring …" : "Waiting for the model …";
      tools.trigger("measure", { run: mbq.run.id, layer: Number(layers.value) });
    };
    go.addEventListener("click", ask);
    layers.addEventListener("change", ask);

    const C = () => found.channels.length, T = () => found.magnitude.length / found.channels.length;
    const rowsOf = (read) => Array.from({ length: C() }, (_, c) => Float32Array.from({ length: T() }, (_, t) => read(Math.max(found.magnitude[t * C() + c], 1e-6))));
    const scale = () => mbq.logScale(found.magnitude, "|h|");
    const channelTicks = () => {
      const step = Math.max(1, Math.ceil(C() / 8)), at = [];
      for (let c = 0; c < C(); c += step) at.push(c);
      return { tickmode: "array", tickvals: at, ticktext: at.map((c) => String(found.channels[c])) };
    };
    const token = (t) => `${t} “${mbq.label(found.texts[t] ?? "")}”`;
    map.mbqNames = { x: (t) => `${t} “${mbq.visible(found.texts[t] ?? "")}”`, y: (c) => `channel ${found.channels[c]}`, value: (v) => 10 ** v };
    const drawMap = () => {
      const { low, high } = scale(), layout = structuredClone(mbq.config.layouts.channels);
      Object.assign(layout.xaxis, { range: [-0.5, T() - 0.5], title: { text: "token position" } });
      Object.assign(layout.yaxis, { range: [-0.5, C() - 0.5], ...channelTicks() });
      const text = Array.from({ length: C() }, (_, c) => Array.from({ length: T() }, (_, t) => `token ${token(t)}<br>channel ${found.channels[c]}: |h| ${mbq.fixed(found.magnitude[t * C() + c])}`));
      return { data: [{ type: "heatmap", z: rowsOf(Math.log10), zmin: low, zmax: high, colorscale: "mbq:heat", showscale: false, text, hovertemplate: "%{text}<extra></extra>" }], layout };
    };
    const drawSpace = () => {
      const { low, high } = scale(), layout = structuredClone(mbq.config.layouts.surface);
      layout.uirevision = "surface";
      Object.assign(layout.scene.yaxis, channelTicks());
      return { data: [{ type: "surface", z: rowsOf((v) => Math.max(v, 10 ** low)), surfacecolor: rowsOf(Math.log10), cmin: low, cmax: high, colorscale: "mbq:heat", showscale: false, hovertemplate: "token %{x}<br>|h| %{z:.3~g}<extra></extra>" }], layout };
    };
    space.mbqNames = { x: map.mbqNames.x, y: map.mbqNames.y };
    const say = () => {
      let best = 0;
      found.magnitude.forEach((v, i) => v > found.magnitude[best] && (best = i));
      const ordered = Float32Array.from(found.magnitude).sort(), middle = ordered[ordered.length >> 1], at = found.layer < 0 ? "in the embeddings" : `after layer ${found.layer}`;
      sentence.textContent = `The largest |h| ${at} is ${mbq.fixed(found.magnitude[best])}: channel ${found.channels[best % C()]} of token ${Math.floor(best / C())} “${mbq.visible(found.texts[Math.floor(best / C())] ?? "")}”, ${mbq.fixed(found.magnitude[best] / Math.max(middle, 1e-6), 0)} times the median of the ${C()} channels shown.`;
    };
    const draw = () => {
      if (!found) return;
      legend.hidden = false;
      mbq.legend(legend, scale());
      map.hidden = shape !== "map";
      space.hidden = shape !== "surface";
      say();
      mbq.plot(shape === "map" ? map : space, shape === "map" ? drawMap : drawSpace);
    };

    mbq.on("surface", (message) => {
      found = { run: message.run, layer: message.layer, channels: message.channels, magnitude: f32(message.magnitude), texts: mbq.run?.id === message.run ? mbq.run.texts.slice() : [] };
      go.disabled = false;
      state.textContent = `${T()} tokens, ${C()} channels`;
      draw();
    });
    mbq.on("failed", (message) => {
      if (message.what !== "surface") return;
      go.disabled = false;
      state.textContent = "";
    });
    mbq.on("run", fill);
    mbq.on("done", () => found && found.run !== mbq.run.id && (state.textContent = "This is the run before; measure again for this text."));
    // As in the migration tab: opening it asks, wherever on the tab this card begins.
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting) && !found && mbq.run && mbq.run.state !== "running") ask();
    }, { rootMargin: "9999px" }).observe(go);
  };
})();
