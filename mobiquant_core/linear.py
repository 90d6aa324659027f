"""The quantized linear: codes in place of a weight, a depth per token in place of one precision.

It asks the current routing pass for depths, or for a product that is made together with others, and a kernel for its
own; it holds no state of a call.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mobiquant_core import routing
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.dense_cache import DenseCache
from mobiquant_core.kernels import dispatch
from mobiquant_core.packing import PackedWeight, unpack
from mobiquant_core.slicing import SlicedWeight, dequantize, slice_weight


class MobiLinear(nn.Module):
    """y_k = gain[k - 1] * (W_k x) + bias + shift[k - 1], with W_k the weight of the first k slices.

    Gain and shift are per depth and output: they fit the readout of coarse depths and leave the codes alone.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: MobiQuantConfig,
        *,
        bias: bool = False,
        shift: bool = False,
        gain: bool = False,
        index: int = 0,
        layer: int = 0,
        projection: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        groups = -(-in_features // config.group_size)
        self.in_features, self.out_features, self.config = in_features, out_features, config
        self.index, self.layer, self.projection = index, layer, projection
        self.cache: DenseCache | None = None
        self.packed: PackedWeight | None = None
        self.shared: PackedWeight | None = None
        padded = groups * config.group_size
        codes = torch.zeros(out_features, padded, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_edge = _constant(torch.zeros(out_features, groups, dtype=torch.float16, device=device))
        self.weight_step = _constant(torch.zeros(out_features, groups, dtype=torch.float16, device=device))
        self.bias = _constant(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.shift = _constant(torch.zeros(config.depths, out_features, device=device)) if shift else None
        self.gain = _constant(torch.ones(config.depths, out_features, device=device)) if gain else None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        config: MobiQuantConfig,
        low: Float[Tensor, "out groups"] | None = None,
        high: Float[Tensor, "out groups"] | None = None,
        shift: Float[Tensor, "depths out"] | None = None,
        gain: Float[Tensor, "depths out"] | None = None,
        rounding: UInt8[Tensor, "out bytes"] | None = None,
    ) -> "MobiLinear":
        """The quantized form of a linear, on the same device; `low` and `high` are clipped group ranges."""
        weight = linear.weight.data
        sliced = slice_weight(weight, config, low, high, rounding)
        made = cls(linear.in_features, linear.out_features, config, device="meta")
        made.weight = nn.Parameter(sliced.codes, requires_grad=False)
        made.weight_edge, made.weight_step = _constant(sliced.edge), _constant(sliced.step)
        made.bias = None if linear.bias is None else _constant(linear.bias.data)
        made.shift = None if shift is None else _constant(shift.to(weight.device, torch.float32))
        made.gain = None if gain is None else _constant(gain.to(weight.device, torch.float32))
        return made

    @property
    def weights(self) -> int:
        """How many weights it stands for."""
        return self.in_features * self.out_features

    @property
    def sliced(self) -> SlicedWeight:
        if self.packed is not None:
            return SlicedWeight(*unpack(self.packed), self.in_features, self.config)
        return SlicedWeight(self.weight, self.weight_edge, self.weight_step, self.in_features, self.config)

    def use_planes(self, packed: PackedWeight, shared: PackedWeight) -> None:
        """From now on products read `packed`, a part of `shared`; the codes wait in host memory for saving."""
        self.packed, self.shared = packed, shared
        self.weight.data = self.weight.data.cpu()

    def dense(self, depth: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in_features"]:
        """The weight at `depth`, gain included; kept by the model's cache where it is on the CPU and there is room."""
        if self.cache is None or self.packed is not None or self.weight.device.type != "cpu":
            return self._read(depth, dtype)
        return self.cache.get((self.index, depth, dtype), lambda: self._read(depth, dtype))

    def _read(self, depth: int, dtype: torch.dtype) -> Float[Tensor, "out in_features"]:
        if self.packed is not None and dtype in (torch.bfloat16, torch.float16):
            return dispatch.dense(self.packed, depth, dtype, self.gain)
        if self.gain is None:
            return dequantize(self.sliced, depth, dtype)
        return (dequantize(self.sliced, depth) * self.gain[depth - 1].unsqueeze(1)).to(dtype)

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        # Only linears with common planes are multiplied together.
        together = None if self.shared is None else routing.product(self, x)
        if together is not None:
            return together
        depths = routing.current_pass().depths(self, x)
        tokens = x.reshape(-1, self.in_features)
        if isinstance(depths, int):
            if self.packed is None or not dispatch.whole_prompt(self.packed, tokens):
                y = F.linear(x, self.dense(depths, x.dtype), self.bias)
                return y if self.shift is None else y + self.shift[depths - 1].to(y.dtype)
            depths = torch.full((tokens.shape[0],), depths, dtype=torch.uint8, device=x.device)
        return self.at_depths(tokens, depths).view(*x.shape[:-1], self.out_features)

    def at_depths(
        self, x: Float[Tensor, "tokens in_features"], depths: UInt8[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Every token at its own depth."""
        if self.packed is not None:
            return dispatch.mixed_planes(x, self.packed, depths, self.bias, self.shift, self.gain)
        return dispatch.mixed_linear(
            x, self.sliced, depths, self.bias, self.shift, dense=lambda depth: self.dense(depth, x.dtype)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MobiLinear":
        """Moves between devices as any module, but group edges and steps stay fp16: codes mean nothing with others."""
        kept = {
            name: value.data
            for name in ("weight_edge", "weight_step", "shift", "gain")
            if (value := getattr(self, name)) is not None
        }
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                moved.data = before.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, slices={self.config.slice_bits}"


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
