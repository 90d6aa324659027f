// Seven scenes that explain the studio on whatever run is on show. The tour and the present mode play them.
// A scene sets the page's state itself, needs no model, and leaves nothing behind when the next one starts.
(function () {
  "use strict";
  const mbq = window.mbq;

  const extreme = (better) => {
    const run = mbq.run, bits = mbq.tokenBits(run);
    let best = 1;
    for (let t = 2; t < run.T; t++) if (/[\p{L}\p{N}]/u.test(run.texts[t]) && better(bits[t], bits[best])) best = t;
    return { token: best, word: `“${mbq.visible(run.texts[best])}”`, bits: mbq.fixed(bits[best], 1) };
  };
  const toLayer = (token) => mbq.pin({ token, layer: Math.min(2, mbq.run.layers - 1) });

  mbq.scenes = [
    {
      title: "Every token was computed with a different number of bits", tab: "allocate", target: "#mbq-strip",
      text: () => `Each chip is a token. Its colour and number are the average bits the model read per weight to process it: ${mbq.fixed(mbq.run.measured)} on average here, instead of 16.`,
    },
    {
      title: "Which token was worth most, and why?", tab: "allocate", target: "#mbq-strip",
      enter: () => toLayer(extreme((a, b) => a > b).token),
      text: () => {
        const most = extreme((a, b) => a > b), least = extreme((a, b) => a < b);
        return `${most.word} got ${most.bits} bits, ${least.word} only ${least.bits}. The router looks at the token’s activations and guesses how much more bits would lower the loss.`;
      },
    },
    {
      title: "Rows are layers", tab: "allocate", target: "#mbq-map",
      enter: () => toLayer(extreme((a, b) => a > b).token),
      text: () => `The same token gets different bits in each of the ${mbq.run.layers} layers, and in each of their seven linears. Click any cell; the inspector shows its slices and scores.`,
    },
    {
      title: "Lower the budget: who loses bits first?", tab: "allocate", target: "#mbq-controls", enter: () => mbq.setPreview(2.5), leave: () => mbq.setPreview(null),
      text: () => "The page has just re-thresholded the recorded scores for 2.5 bits: a preview, without running the model. Drag the slider yourself; tokens whose number stays high are those the router protects.",
    },
    {
      title: "Is it better than treating all tokens alike?", tab: "compare", target: "#mbq-compare",
      text: () => "Compare runs two policies on the same words at the same average bits, and measures the distance of each from the 16-bit model. Try “uniform 4.0 against routed 4.0”.",
    },
    {
      title: "Guess first: are the fragile tokens the same at 2 and at 4 bits?", tab: "migration", target: "#mbq-migration",
      text: () => "Rank the tokens by how much 2 bits hurt them, then by how much 4 bits do. The lines cross: the outliers migrate. That is why one calibration has to serve all widths at once.",
    },
    {
      title: "Take it with you", tab: "learn", target: "#mbq-data",
      text: () => "Save the run, the figures, or a link that opens this very state. Everything stays on this machine. That was the tour; it can be started again from the first line of the page.",
    },
  ];
})();
