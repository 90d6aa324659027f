// Colours of the ground in use, and the legends that explain them. Colours come from app/views/theme.py.
(function () {
  "use strict";
  const mbq = window.mbq;
  const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const tables = {};

  mbq.ground = () => (document.body.classList.contains("dark") ? "dark" : "light");
  mbq.colours = () => mbq.config.grounds[mbq.ground()];

  // 256 RGB triples of a palette: Uint8Array, three bytes a colour.
  mbq.table = (name) => {
    const key = mbq.ground() + name;
    if (tables[key]) return tables[key];
    const stops = mbq.colours()[name].map(parse), out = new Uint8Array(768);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
      for (let c = 0; c < 3; c++) out[i * 3 + c] = Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]));
    }
    return (tables[key] = out);
  };

  mbq.shade = (name, share) => {
    const table = mbq.table(name), i = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
    return [table[i], table[i + 1], table[i + 2]];
  };
  mbq.css = (rgb) => `rgb(${rgb[0]},${rgb[1]},${rgb[2]})`;

  // The scale of bits: 2 to 8 for every run, so that runs compare; or stretched over this run's tokens on request.
  mbq.bitScale = { low: 2, high: 8, stretched: false };
  mbq.stretch = (on) => {
    mbq.bitScale.stretched = on;
    mbq.fitScale();
    mbq.emit("scale", mbq.bitScale);
  };
  mbq.fitScale = () => {
    const scale = mbq.bitScale, run = mbq.run;
    Object.assign(scale, { low: 2, high: 8 });
    if (!scale.stretched || !run || !run.T) return;
    const bits = mbq.tokenBits(run).sort();
    scale.low = Math.max(2, Math.floor(bits[Math.floor(0.02 * (run.T - 1))] * 10) / 10);
    scale.high = Math.min(8, Math.max(Math.ceil(bits[Math.ceil(0.98 * (run.T - 1))] * 10) / 10, scale.low + 0.4));
  };
  mbq.bitTicks = () => {
    const { low, high, stretched } = mbq.bitScale;
    return stretched ? [low, (low + high) / 2, high] : [2, 4, 6, 8];
  };
  mbq.bitShare = (bits) => (bits - mbq.bitScale.low) / (mbq.bitScale.high - mbq.bitScale.low);

  const linear = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  mbq.luminance = (rgb) => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
  // Black or white, whichever contrasts more; the crossing is where both give 4.58 to 1.
  mbq.inkOn = (rgb) => (mbq.luminance(rgb) > 0.179 ? "#000000" : "#ffffff");

  mbq.plotScale = (name) => {
    const stops = mbq.colours()[name];
    return stops.map((colour, i) => [i / (stops.length - 1), colour]);
  };

  mbq.bitStyle = () => ({ palette: "bits", low: mbq.bitScale.low, high: mbq.bitScale.high, ticks: mbq.bitTicks(), label: (v) => String(Math.round(v * 10) / 10), unit: "bits per weight" });

  // What each value of the map is called, drawn with and bounded by.
  mbq.valueStyle = (filter, cells) => {
    if (filter.value === "bits") return mbq.bitStyle();
    if (filter.value === "margin") {
      const reach = Math.max(Math.abs(cells.low), Math.abs(cells.high)) || 1;
      return { palette: "diverging", low: -reach, high: reach, ticks: [-reach, 0, reach], unit: "score − threshold (above 0: slice on)" };
    }
    const low = Number.isFinite(cells.low) ? cells.low : 0, high = cells.high > low ? cells.high : low + 1;
    if (filter.value === "score") return { palette: "bits", low, high, ticks: [low, high], unit: "router score, log loss reduction per weight" };
    return { palette: "heat", low: 0, high, ticks: [0, high / 2, high], unit: "squared output error over squared output" };
  };

  mbq.on("run", mbq.fitScale);
  mbq.on("done", () => mbq.bitScale.stretched && mbq.stretch(true));

  new MutationObserver(() => {
    if (mbq.ground() === mbq.lastGround) return;
    mbq.lastGround = mbq.ground();
    mbq.emit("theme", mbq.lastGround);
  }).observe(document.documentElement, { subtree: true, attributes: true, attributeFilter: ["class"], childList: false });
})();
