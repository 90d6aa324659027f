// Paints the what-if preview over the map's three panes: pixels straight from typed arrays, no chart redraw.
(function () {
  "use strict";
  const mbq = window.mbq;
  const small = document.createElement("canvas");

  function heat(context, run, cells, style, x, y) {
    const { T, layers } = run, table = mbq.table(style.palette);
    if (small.width !== T || small.height !== layers) Object.assign(small, { width: T, height: layers });
    const brush = small.getContext("2d"), image = brush.createImageData(T, layers), pixels = new Uint32Array(image.data.buffer);
    const scale = 255 / (style.high - style.low);
    for (let row = 0; row < layers; row++) {
      const out = (layers - 1 - row) * T;
      for (let t = 0; t < T; t++) {
        const v = Math.min(Math.max((cells.z[row * T + t] - style.low) * scale, 0), 255) | 0;
        pixels[out + t] = 0xff000000 | (table[3 * v + 2] << 16) | (table[3 * v + 1] << 8) | table[3 * v];
      }
    }
    brush.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    const left = x.c2p(-0.5), right = x.c2p(T - 0.5), top = y.c2p(layers - 0.5), bottom = y.c2p(-0.5);
    context.drawImage(small, x._offset + left, y._offset + top, right - left, bottom - top);
  }

  function bars(context, values, n, style, place) {
    const table = mbq.table(style.palette), scale = 255 / (style.high - style.low);
    for (let i = 0; i < n; i++) {
      const v = 3 * (Math.min(Math.max((values[i] - style.low) * scale, 0), 255) | 0);
      context.fillStyle = `rgb(${table[v]},${table[v + 1]},${table[v + 2]})`;
      context.fillRect(...place(i, values[i]));
    }
  }

  function pane(context, x, y, ground, paint) {
    context.save();
    context.beginPath();
    context.rect(x._offset, y._offset, x._length, y._length);
    context.clip();
    context.fillStyle = ground;
    context.fillRect(x._offset, y._offset, x._length, y._length);
    paint();
    context.restore();
  }

  // What Plotly's layout will be, near enough to paint the first picture before Plotly is there.
  mbq.plainPanes = (layout, width) => {
    const { l, r, t, b } = layout.margin, across = width - l - r, down = layout.height - t - b;
    const horizontal = ({ domain: [low, high], range: [from, to] }) => {
      const length = (high - low) * across;
      return { _offset: l + low * across, _length: length, c2p: (v) => ((v - from) / (to - from)) * length };
    };
    const vertical = ({ domain: [low, high], range: [from, to] }) => {
      const length = (high - low) * down;
      return { _offset: t + (1 - high) * down, _length: length, c2p: (v) => (1 - (v - from) / (to - from)) * length };
    };
    const { xaxis, yaxis, xaxis2, yaxis2 } = layout;
    return { width, height: layout.height, xaxis: horizontal(xaxis), yaxis: vertical(yaxis), xaxis2: horizontal(xaxis2), yaxis2: vertical(yaxis2) };
  };

  mbq.paintPreview = (canvas, div, run, cells, style) => {
    const full = div._fullLayout, ratio = window.devicePixelRatio || 1, { xaxis: x, yaxis: y, xaxis2: x2, yaxis2: y2 } = full;
    const width = Math.round(full.width * ratio), height = Math.round(full.height * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      Object.assign(canvas.style, { width: full.width + "px", height: full.height + "px" });
    }
    const context = canvas.getContext("2d"), ground = mbq.colours().ground;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, full.width, full.height);
    pane(context, x, y, ground, () => heat(context, run, cells, style, x, y));
    pane(context, x, y2, ground, () => {
      const zero = y2._offset + y2.c2p(0), step = x.c2p(1) - x.c2p(0);
      bars(context, cells.top, run.T, style, (i, v) => {
        const end = y2._offset + y2.c2p(v);
        return [x._offset + x.c2p(i - 0.44), Math.min(zero, end), Math.max(step * 0.88, 0.7), Math.abs(zero - end)];
      });
    });
    pane(context, x2, y, ground, () => {
      const zero = x2._offset + x2.c2p(0), step = Math.abs(y.c2p(1) - y.c2p(0));
      bars(context, cells.right, run.layers, style, (i, v) => {
        const end = x2._offset + x2.c2p(v);
        return [Math.min(zero, end), y._offset + y.c2p(i + 0.44), Math.abs(zero - end), step * 0.88];
      });
    });
  };
})();
