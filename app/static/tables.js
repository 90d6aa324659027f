// The numbers of every chart as a table, behind a button under it: for screen readers, for copying, for checking.
// It reads the figure that the chart is drawn from; text enters through textContent only. `plot.js` calls it.
(function () {
  "use strict";
  const mbq = window.mbq, el = mbq.el;
  const ROWS = 200, COLUMNS = 48;
  const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&#34;": '"', "&#39;": "'", "&#36;": "$" };
  let made = 0;

  // Labels are written for Plotly, which knows a few tags: here they become the text that a reader sees.
  const plain = (text) => String(text).replace(/<br\s*\/?>/g, ", ").replace(/<\/?(b|i|sub|sup|extra)>/g, "").replace(/&(amp|lt|gt|#34|#39|#36);/g, (entity) => ENTITIES[entity]).trim();
  const show = (value) => {
    if (typeof value !== "number") return value === null || value === undefined ? "–" : plain(value);
    if (Number.isInteger(value)) return mbq.fixed(value, 0);
    return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1).replaceAll("-", "−") : mbq.fixed(value, Math.abs(value) < 1 ? 3 : 2);
  };
  // As many decimals as the largest number needs, the same in the whole table, so that columns can be compared.
  function formatOf(rows) {
    let largest = 0, whole = true;
    for (const row of rows) for (const v of row) {
      if (typeof v !== "number" || !Number.isFinite(v)) continue;
      largest = Math.max(largest, Math.abs(v));
      whole &&= Number.isInteger(v);
    }
    const digits = whole ? 0 : largest < 1 ? 3 : largest < 1000 ? 2 : 1;
    return (v) => (typeof v === "number" && Number.isFinite(v) && (v === 0 || Math.abs(v) >= 0.001) ? mbq.fixed(v, digits) : show(v));
  }
  const list = (values) => (values && typeof values !== "string" && values.length !== undefined ? values : null);
  const titleOf = (axis, otherwise) => plain(axis?.title?.text || otherwise);

  function namesOf(values, axis, count, own) {
    const ticks = list(axis?.tickvals), words = list(axis?.ticktext), spelled = {};
    if (ticks && words) ticks.forEach((at, i) => (spelled[at] = words[i]));
    return Array.from({ length: count }, (_, i) => {
      const value = list(values) ? values[i] : i;
      return own ? own(i) : show(spelled[value] ?? value);
    });
  }

  // Rows run along the longer side, so that a long text reads downwards.
  function heatmap(trace, layout, own) {
    const height = trace.z.length, width = height ? trace.z[0].length : 0, turned = width > height;
    const x = namesOf(trace.x, layout.xaxis, width, own?.x), y = namesOf(trace.y, layout.yaxis, height, own?.y);
    const across = titleOf(turned ? layout.yaxis : layout.xaxis, turned ? "row" : "column"), down = titleOf(turned ? layout.xaxis : layout.yaxis, turned ? (own?.x ? "token" : "column") : "row");
    const [rows, columns] = turned ? [x, y] : [y, x], value = own?.value || ((v) => v);
    const format = formatOf(Array.from(trace.z, (row) => Array.from(row, value)));
    return {
      head: [down, ...columns.map((name) => (/^[−\d.]+$/.test(name) ? `${across} ${name}` : name))],
      count: rows.length,
      row: (i) => [rows[i], ...columns.map((_, k) => format(value(turned ? trace.z[k][i] : trace.z[i][k])))],
    };
  }

  // Traces over the same places share a row for each; all others become lines of (series, place, value).
  function series(traces, layout) {
    const lying = traces.some((trace) => trace.orientation === "h"), axis = lying ? layout.yaxis : layout.xaxis;
    const values = (trace) => list(lying ? trace.x : trace.y) || [];
    const places = (trace) => list(lying ? trace.y : trace.x) || Array.from(values(trace), (_, i) => i);
    const along = titleOf(axis, "kind"), measured = titleOf(lying ? layout.xaxis : layout.yaxis, "value");
    const first = traces.length ? Array.from(places(traces[0])) : [], named = namesOf(first, axis, first.length);
    if (traces.every((trace) => String(Array.from(places(trace))) === String(first))) {
      const format = formatOf(traces.map((trace) => Array.from(values(trace))));
      return { head: [along, ...traces.map((trace) => plain(trace.name || measured))], count: first.length, row: (i) => [named[i], ...traces.map((trace) => format(values(trace)[i]))] };
    }
    // Dots that were moved apart beside a named tick belong to that tick.
    const placeOf = (trace, i) => namesOf([list(axis?.ticktext) ? Math.round(places(trace)[i]) : places(trace)[i]], axis, 1)[0];
    const format = formatOf(traces.map((trace) => Array.from(values(trace))));
    const flat = traces.flatMap((trace) => Array.from(values(trace), (value, i) => [placeOf(trace, i), plain(trace.name || (trace.type === "bar" ? "mean" : "")), plain(list(trace.text)?.[i] ?? ""), format(value)]));
    const used = [0, 1, 2, 3].filter((k) => flat.some((row) => row[k]));
    const trim = (row) => used.map((k) => row[k]);
    return { head: trim([along, "series", "what", measured]), count: flat.length, row: (i) => trim(flat[i]) };
  }

  function contents(div) {
    const { data, layout } = div.mbqMake(), map = data.find((trace) => trace.type === "heatmap" || trace.type === "surface");
    return map ? heatmap(map, layout, div.mbqNames) : series(data.filter((trace) => list(trace.x) || list(trace.y)), layout);
  }

  function build(div, title) {
    const caption = div.mbqNames?.caption?.() ?? title;
    const { head, count, row } = contents(div), columns = Math.min(head.length, COLUMNS), rows = Math.min(count, ROWS);
    const table = el("table"), top = el("tr"), body = el("tbody"), left = [];
    if (rows < count) left.push(`the first ${rows} of ${count} rows`);
    if (columns < head.length) left.push(`the first ${columns} of ${head.length} columns`);
    table.append(el("caption", "", caption + (left.length ? ` (${left.join(", ")}; “Learn & data” has all of them as CSV)` : "")));
    for (const name of head.slice(0, columns)) top.append(Object.assign(el("th", "", name), { scope: "col" }));
    table.append(el("thead"), body);
    table.tHead.append(top);
    for (let i = 0; i < rows; i++) {
      const line = el("tr"), [name, ...cells] = row(i);
      line.append(Object.assign(el("th", "", name), { scope: "row" }), ...cells.slice(0, columns - 1).map((text) => el("td", "", text)));
      body.append(line);
    }
    return table;
  }

  function captionOf(div) {
    const near = div.closest("section, .mbq-card, .mbq-view");
    return div.getAttribute("aria-label") || near?.querySelector("h2, h3")?.textContent || "Chart";
  }

  // Puts the button under a chart once; later calls renew an open table.
  mbq.tableFor = (div) => {
    if (div.mbqTable) return div.mbqTable();
    const place = div.closest(".mbq-plotbox") || div;
    if (!place.parentElement) return;
    const box = el("div", "mbq-datatable"), button = el("button", "mbq-data-toggle", "Data table"), region = el("div", "mbq-data-scroll");
    const caption = captionOf(div);
    Object.assign(button, { type: "button", title: "The numbers of this chart as a table" });
    region.id = "mbq-data-" + ++made;
    Object.assign(region, { hidden: true, tabIndex: 0 });
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "Data: " + caption);
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-controls", region.id);
    button.setAttribute("aria-label", "Data table: " + caption);
    const renew = () => region.replaceChildren(build(div, caption));
    button.addEventListener("click", () => {
      region.hidden = !region.hidden;
      button.setAttribute("aria-expanded", String(!region.hidden));
      if (!region.hidden) renew();
      else region.replaceChildren();
    });
    // While a run grows the table stands still: it is renewed at the end.
    div.mbqTable = () => !region.hidden && mbq.run?.state !== "running" && renew();
    box.append(button, region);
    place.after(box);
  };
})();
