// Small builders of elements. Text always enters through textContent, never as markup.
(function () {
  "use strict";
  const mbq = window.mbq;
  const VISIBLE = { "\n": "⏎", "\r": "␍", "\t": "⇥", "\0": "␀" };

  mbq.el = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // The same rules as app/views/text.py.
  mbq.visible = (text) => {
    const shown = text.replace(/[\n\r\t\0]/g, (c) => VISIBLE[c]);
    return shown.replace(/^ +| +$/g, "") || (shown ? "␣" : "∅");
  };
  const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;", $: "&#36;" };
  mbq.escapeLabel = (text) => text.replace(/[&<>"'$]/g, (c) => ESCAPES[c]);
  mbq.label = (text, limit = 14) => {
    const shown = [...mbq.visible(text)];
    return mbq.escapeLabel(shown.length <= limit ? shown.join("") : shown.slice(0, limit - 1).join("") + "…");
  };
  mbq.fixed = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : value > 0 ? "∞" : value < 0 ? "−∞" : "–");
  mbq.short = (name) => name.replace("_proj", "");

  let groups = 0;
  // A row of radio buttons: [[value, label]...]; native inputs, so the keyboard works by itself.
  mbq.choice = (title, options, value, onChange) => {
    const box = mbq.el("fieldset", "mbq-choice"), name = "mbq-choice-" + ++groups;
    box.append(mbq.el("legend", "", title));
    box.setAttribute("role", "radiogroup");
    box.inputs = {};
    for (const [key, text, hint] of options) {
      const label = mbq.el("label"), input = mbq.el("input");
      Object.assign(input, { type: "radio", name, value: key, checked: key === value });
      input.addEventListener("change", () => onChange(key));
      if (hint) label.title = hint;
      label.append(input, mbq.el("span", "", text));
      box.append(label);
      box.inputs[key] = input;
    }
    return box;
  };

  mbq.toggle = (text, checked, onChange) => {
    const label = mbq.el("label", "mbq-toggle"), input = mbq.el("input");
    Object.assign(input, { type: "checkbox", checked });
    input.addEventListener("change", () => onChange(input.checked));
    label.append(input, mbq.el("span", "", text));
    label.input = input;
    return label;
  };

  mbq.heading = (title, note) => {
    const head = mbq.el("div", "mbq-heading");
    head.append(mbq.el("h2", "", title));
    if (note) head.append(mbq.el("p", "", note));
    return head;
  };

  // One tooltip for all views.
  let tip = null;
  mbq.tip = (lines, x, y) => {
    if (!tip) document.body.append((tip = mbq.el("div", "mbq-tip")));
    tip.hidden = !lines;
    if (!lines) return;
    tip.replaceChildren(...lines.map((line, i) => mbq.el("div", i ? "" : "first", line)));
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  };

  mbq.legend = (element, style) => {
    const stops = mbq.colours()[style.palette].join(",");
    const bar = mbq.el("span", "mbq-legend-bar"), ticks = mbq.el("span", "mbq-legend-ticks");
    bar.style.background = `linear-gradient(90deg,${stops})`;
    for (const tick of style.ticks) {
      const mark = mbq.el("span", "", style.label ? style.label(tick) : mbq.fixed(tick, Number.isInteger(tick) ? 0 : 2));
      const share = (tick - style.low) / (style.high - style.low);
      mark.style.left = 100 * share + "%";
      if (share < 0.04 || share > 0.96) mark.className = share < 0.5 ? "first" : "last";
      ticks.append(mark);
    }
    const scale = mbq.el("span", "mbq-legend-scale");
    scale.append(bar, ticks);
    element.replaceChildren(scale, mbq.el("span", "mbq-legend-unit", style.unit));
  };
  // A logarithmic colour scale of magnitudes: from their tenth part, below which all is alike, to the largest.
  mbq.logScale = (values, unit) => {
    const positive = Float32Array.from(values).filter((v) => v > 0 && Number.isFinite(v)).sort();
    const low = Math.log10(positive[Math.floor(positive.length / 10)] || 1e-3), high = Math.max(Math.log10(positive.at(-1) || 1), low + 0.1);
    const step = Math.ceil((high - low) / 4), ticks = [];
    for (let p = Math.ceil(low); p <= Math.floor(high); p += step) ticks.push(p);
    return { palette: "heat", low, high, ticks, label: (p) => String(10 ** p >= 1 ? 10 ** p : (10 ** p).toFixed(-p)), unit: `${unit}, logarithmic` };
  };
})();
