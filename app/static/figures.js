// Figures from Python: legends below the chart on a narrow page, and many charts one after the other.
(function () {
  "use strict";
  const mbq = window.mbq;
  const NARROW = 480, LINE = 20;

  // Each chart in a task of its own, so that no batch of them keeps the page from answering.
  mbq.inTurn = (draws) => {
    const next = () => {
      const draw = draws.shift();
      if (!draw) return;
      draw();
      setTimeout(next, 0);
    };
    next();
  };

  mbq.fitted = (figure, div) => {
    if (div.clientWidth > NARROW || !figure.layout.showlegend) return figure;
    const room = LINE * figure.data.length + 14, { margin, height } = figure.layout;
    Object.assign(figure.layout, {
      height: height + room, margin: { ...margin, t: 12, r: 8, b: margin.b + room },
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    });
    return figure;
  };
})();
