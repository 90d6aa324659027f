"""One decode step as a chain of launches over static buffers; captured once, it serves every budget.

Per layer: prepare, product, attention, product, prepare, product, prepare, product; at the end prepare and the head.
Thresholds live on the device and every product finds its depth itself. It does not know text or threads.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.decode import CANDIDATES
from mobiquant_core.fast_decode.weights import LayerWeights, SiteWeights, StepWeights
from mobiquant_core.kernels import few_tokens, step_launches
from mobiquant_core.kernels.activation import SplitActivations
from mobiquant_core.kernels.few_tokens import RouterParts
from mobiquant_core.kernels.likeliest import Candidates
from mobiquant_core.kernels.step_launches import MODE_AS_IT_IS, MODE_GATE, MODE_NORM, AttentionSizes
from mobiquant_core.kernels.tuning import Tuning, ahead_for
from mobiquant_core.packing import PackedWeight

MOST_HIDDEN = 64


@dataclass(frozen=True)
class Buffers:
    """Everything a step reads and writes besides weights, per linear in canonical order.

    Rows of `control` are (threshold, fixed depth or 0 where the router decides, two numbers that keep rows aligned),
    of `record` (scores of three slices, depth).
    """

    hidden: Tensor
    qkv: Tensor
    attended: Tensor
    gate_up: Tensor
    split: dict[int, SplitActivations]
    dense: dict[int, Tensor]
    keys: Tensor
    values: Tensor
    parts: Tensor
    attention_sums: Tensor
    attention_counts: Tensor
    logits: Tensor
    controls: Tensor
    """`control`, then a row that fixes the head's depth."""
    records: Tensor
    token: Tensor
    position: Tensor
    history: Tensor
    settings: Float[Tensor, "2"]
    """Temperature, and how many candidates may be drawn."""
    uniforms: Float[Tensor, " room"]
    """A number in [0, 1) for each position: it decides what is drawn after it."""
    candidates: Candidates
    prediction: Float[Tensor, " numbers"]
    """As `Candidates` leaves it."""
    residuals: Tensor | None = None
    """[layers + 1, hidden]: the residual stream before layer 0 and after each layer, where it is recorded."""

    @property
    def control(self) -> Float[Tensor, "linears 4"]:
        return self.controls[:-1]

    @property
    def record(self) -> Float[Tensor, "linears 4"]:
        return self.records[:-1]

    @classmethod
    def empty(
        cls, weights: StepWeights, sizes: AttentionSizes, room: int, dtype: torch.dtype, record_residuals: bool = False
    ) -> "Buffers":
        shape, device = weights.shape, weights.embedding.device

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        # Dense products read and write 16 bits; planes add up in fp32.
        wide = dtype if weights.dense else torch.float32
        widths = {shape.hidden, shape.heads * shape.head_dim, shape.feed_forward}
        kv = (shape.layers, shape.kv_heads, room, shape.head_dim)
        head = weights.head.weight
        controls = zeros(shape.linears + 1, 4)
        if isinstance(head, PackedWeight):
            controls[-1, 1] = head.slices
        return cls(
            hidden=zeros(1, shape.hidden, dtype=wide),
            qkv=zeros(1, shape.qkv_rows, dtype=wide),
            attended=zeros(1, shape.heads * shape.head_dim),
            gate_up=zeros(1, 2 * shape.feed_forward, dtype=wide),
            split={width: SplitActivations.empty(1, width, device) for width in widths},
            dense={width: zeros(1, width, dtype=dtype) for width in widths},
            keys=zeros(*kv, dtype=dtype),
            values=zeros(*kv, dtype=dtype),
            parts=zeros(step_launches.MOST_PARTS * 2 * MOST_HIDDEN),
            attention_sums=zeros(sizes.sums),
            attention_counts=zeros(shape.kv_heads, dtype=torch.int32),
            logits=zeros(1, shape.vocabulary, dtype=dtype if isinstance(head, Tensor) else torch.float32),
            controls=controls,
            records=torch.zeros_like(controls),
            token=zeros(1, dtype=torch.int64),
            position=zeros(1, dtype=torch.int32),
            history=zeros(room + 1, dtype=torch.int64),
            settings=zeros(2),
            uniforms=zeros(room),
            candidates=(candidates := Candidates.empty(shape.vocabulary, CANDIDATES, device)),
            prediction=zeros(candidates.numbers),
            residuals=zeros(shape.layers + 1, shape.hidden) if record_residuals else None,
        )


class Step:
    """The launches of one token. `run` may be captured in a graph.

    `dependent` lets every kernel start while the one before it ends; `asm=False` runs the plain Triton twins.
    """

    def __init__(
        self,
        weights: StepWeights,
        room: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        dependent: bool = True,
        asm: bool = True,
        tuning: dict[tuple[int, int], Tuning] | None = None,
        record_residuals: bool = False,
    ) -> None:
        shape = weights.shape
        self.weights, self.shape, self.room = weights, shape, room
        # Only cards from compute capability 9.0 know launches that overlap.
        overlap = torch.cuda.is_available() and torch.cuda.get_device_capability(weights.embedding.device) >= (9, 0)
        self.dependent, self.asm, self.tuning = dependent and overlap, asm, tuning or {}
        self.ahead = ahead_for(weights.embedding.device)
        self.sizes = AttentionSizes(shape.heads, shape.kv_heads, shape.head_dim, shape.window, shape.norm_eps)
        self.buffers = Buffers.empty(weights, self.sizes, room, dtype, record_residuals)

    def run(self) -> None:
        """From buffers.token at buffers.position to the next token, drawn as buffers.settings say."""
        self.predict(self.forward())

    def forward(self) -> Float[Tensor, " vocabulary"]:
        """The prediction made from buffers.token at buffers.position; both stay as they are. The next overwrites it."""
        b = self.buffers
        step_launches.embed(self.weights.embedding, b.token, b.hidden)
        for index, layer in enumerate(self.weights.layers):
            self._layer(index, layer)
        last = self._residual(self.shape.layers)
        self._prepare(self.weights.head, b.hidden, self.weights.final_norm, self.shape.hidden, MODE_NORM, last)
        self._product(self.weights.head, self.shape.hidden, MODE_NORM, b.logits)
        return b.logits.view(-1)

    def predict(self, logits: Float[Tensor, " vocabulary"]) -> None:
        """The likeliest tokens and the next one; the position moves on."""
        b = self.buffers
        b.candidates.find(logits, b.prediction)
        b.candidates.draw(b.prediction, b.token, b.position, b.history, b.settings, b.uniforms)

    def _residual(self, row: int) -> Tensor | None:
        """Where the residual stream before a layer is kept, by whoever reads it first."""
        return None if self.buffers.residuals is None else self.buffers.residuals[row]

    def _layer(self, index: int, layer: LayerWeights) -> None:
        b, shape = self.buffers, self.shape
        width = shape.heads * shape.head_dim
        before = self._residual(index)
        self._prepare(layer.attention_input, b.hidden, layer.attention_norm, shape.hidden, MODE_NORM, before)
        self._product(layer.attention_input, shape.hidden, MODE_NORM, b.qkv)
        parts = self._attention(index, layer, width)
        if not parts:
            self._prepare(layer.attention_output, b.attended, None, width, MODE_AS_IT_IS)
        self._product(layer.attention_output, width, MODE_AS_IT_IS, b.hidden, parts, add=True)
        self._prepare(layer.mlp_input, b.hidden, layer.mlp_norm, shape.hidden, MODE_NORM)
        self._product(layer.mlp_input, shape.hidden, MODE_NORM, b.gate_up)
        self._prepare(layer.mlp_output, b.gate_up, None, shape.feed_forward, MODE_GATE)
        self._product(layer.mlp_output, shape.feed_forward, MODE_GATE, b.hidden, add=True)

    def _prepare(
        self, site: SiteWeights, source: Tensor, norm: Tensor | None, width: int, mode: int, copy: Tensor | None = None
    ) -> None:
        """The site's input from raw activations: bytes and router parts, or 16-bit values for a dense weight."""
        b, direction = self.buffers, site.router and site.router.direction
        if isinstance(site.weight, Tensor):
            eps = self.shape.norm_eps
            step_launches.dense_input(source, norm, b.dense[width], eps, mode, self.dependent, copy)
            return
        step_launches.prepare(
            source, norm, direction, b.split[width], b.parts, width, site.hidden, mode, self.dependent, site.sketch,
            copy,
        )  # fmt: skip

    def _product(
        self, site: SiteWeights, width: int, mode: int, out: Tensor, parts: int = 0, *, add: bool = False
    ) -> None:
        """out (+)= the site's weight times its prepared input."""
        b, weight = self.buffers, site.weight
        if isinstance(weight, Tensor):
            _dense_product(weight, b.dense[width], site.bias, out, add)
            return
        own = slice(site.first_linear, site.first_linear + len(weight.sections))
        router = RouterParts(
            b.parts, site.router and site.router.small, b.controls[own], b.records[own],
            parts or step_launches.part_count(width), site.hidden, mode, self.shape.norm_eps, site.sketch,
            site.followers, site.follows,
        )  # fmt: skip
        tuning = self.tuning.get((weight.out_features, weight.groups))
        few_tokens.multiply_routed(
            weight, b.split[width], router, out, site.bias, site.shift, site.gain,
            add=add, dependent=self.dependent, asm=self.asm, tuning=tuning,
        )  # fmt: skip

    def _attention(self, index: int, layer: LayerWeights, width: int) -> int:
        """Attention of the newest token; how many router parts of the output projection it prepared, 0 for none."""
        b, site = self.buffers, layer.attention_output
        fused = isinstance(site.weight, PackedWeight) and self.sizes.fills_groups
        weight, later = layer.mlp_input.weight, None
        if self.dependent and self.ahead and isinstance(weight, PackedWeight):
            later = weight, self.ahead
        step_launches.attend(
            self.sizes, b.qkv, (b.keys[index], b.values[index]), self.weights.rotary,
            (layer.query_norm, layer.key_norm), b.position, (b.attention_sums, b.attention_counts), b.attended,
            (site.router and site.router.direction, b.split[width], b.parts, site.hidden if fused else 0, site.sketch),
            dependent=self.dependent, exact=not self.asm, later=later,
        )  # fmt: skip
        return self.shape.kv_heads if fused else 0


def _dense_product(weight: Tensor, x: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    if add:
        torch.addmm(out, x, weight.t(), out=out)
        return
    torch.mm(x, weight.t(), out=out)
    if bias is not None:
        out += bias
