"""The door to transformers: the quantization method, loading of models and tokenizers, a budget set around them.

After `import mobiquant_core`, AutoModelForCausalLM.from_pretrained opens a saved checkpoint. The budget is never part
of the model: `with budget(model, 3.5): model.generate(...)`. It knows transformers' internals so that nobody else must.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils import cached_file, logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from mobiquant_core.architectures import architecture_of
from mobiquant_core.calibration import load_calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, walk_sites
from mobiquant_core.errors import CheckpointError, UnsupportedModelError
from mobiquant_core.linear import MobiLinear
from mobiquant_core.model_folder import QUANT_METHOD, ModelFolder, clean_config
from mobiquant_core.routing import RoutingPass, current_pass

CALIBRATION_FILE = "calibration.safetensors"
_LOAD_ERRORS = (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError)


class MobiQuantHfConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: the slices, and whether per-depth corrections are stored."""

    def __init__(
        self,
        slice_bits: Any = (2, 2, 2, 2),
        group_size: int = 128,
        shift: bool = False,
        gain: bool = False,
        **_: Any,
    ) -> None:
        checked = MobiQuantConfig(tuple(slice_bits), group_size)
        self.quant_method = QUANT_METHOD  # type: ignore[assignment] - transformers takes any registered name
        self.slice_bits = list(checked.slice_bits)
        self.group_size = checked.group_size
        self.shift = bool(shift)
        self.gain = bool(gain)

    @property
    def slices(self) -> MobiQuantConfig:
        return MobiQuantConfig(tuple(self.slice_bits), self.group_size)


class MobiQuantHfQuantizer(HfQuantizer):
    """Puts MobiLinears in place before the weights come, and routers after."""

    serialized_names = {"weight": ["weight", "weight_edge", "weight_step"]}  # noqa: RUF012 - transformers' own shape

    def __init__(self, quantization_config: MobiQuantHfConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise UnsupportedModelError(
                "A 16-bit model cannot be sliced while it is being opened by transformers. "
                "Run `mobiquant quantize MODEL --out DIR` first and open DIR."
            )

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        settings: MobiQuantHfConfig = self.quantization_config  # type: ignore[assignment]
        for _, site, block in walk_sites(model, architecture_of(model.config.model_type)):
            parent = block.get_submodule(site.parent)
            for name in site.projections:
                setattr(parent, name, _empty_linear(parent.get_submodule(name), settings))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        unloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if unloaded:
            raise CheckpointError(f"The checkpoint lacks {unloaded[0]} and {len(unloaded) - 1} more. Save it again.")
        settings: MobiQuantHfConfig = self.quantization_config  # type: ignore[assignment]
        found = cached_file(
            str(model.config.name_or_path), CALIBRATION_FILE, _raise_exceptions_for_missing_entries=False
        )
        calibration = None if found is None else load_calibration(found)
        attach(QuantizedModel(model, settings.slices, calibration))
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class FollowingPass(RoutingPass):
    """A routing pass over many forwards: transformers' own generation decides when each begins."""

    def begin(self, position: int) -> None:
        self._position = position
        self._fixed = self._site = self._x = None


@contextlib.contextmanager
def budget(model: PreTrainedModel, bits: float, policy: str = "router", mode: str = "global") -> Iterator[None]:
    """Everything `model` computes inside spends `bits` per weight on average, in this context only."""
    quantized = quantized_of(model)
    plan = quantized.plan(bits, policy, mode)
    with FollowingPass([site for site in quantized.sites for _ in site.linears], plan):
        yield


def attach(quantized: QuantizedModel) -> None:
    """Let the transformers model find its quantized side, and tell a following pass where a forward begins."""
    if getattr(quantized.model, "mobiquant", None) is None:
        quantized.model.register_forward_pre_hook(_begin_forward, with_kwargs=True)
    quantized.model.mobiquant = quantized  # type: ignore[assignment] - a plain attribute, not a submodule


def quantized_of(model: PreTrainedModel) -> QuantizedModel:
    """The quantized side of a model opened from a checkpoint."""
    quantized = getattr(model, "mobiquant", None)
    if quantized is None:
        raise UnsupportedModelError("This model is not quantized by MobiQuant. Open a checkpoint made by `quantize`.")
    return quantized


def load_model(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model in a checked folder, in evaluation mode; CheckpointError where weights are damaged or missing."""
    try:
        config = AutoConfig.for_model(**clean_config(folder.config))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder.path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            device_map={"": device} if device.type != "cpu" else None,
        )
        model, report = loaded
    except torch.OutOfMemoryError:
        raise
    except _LOAD_ERRORS as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"The weights in {folder.path} could not be loaded: {first_line[:200]}. Get the model again."
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            name = sorted(str(entry) for entry in report[kind])[0]
            raise CheckpointError(
                f"The weights in {folder.path} do not fit its config.json: {kind.replace('_', ' ')}, "
                f"first {name[:100]}. Get the model again."
            )
    return model.eval().requires_grad_(False)


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer of a folder."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except _LOAD_ERRORS as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} has no usable tokenizer: {first_line[:200]}. Get the model again.") from error


def silence() -> None:
    """No progress bars and reports of transformers' own: for programs that tell their progress themselves."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _empty_linear(linear: nn.Module, settings: MobiQuantHfConfig) -> MobiLinear:
    if not isinstance(linear, nn.Linear):
        raise UnsupportedModelError(f"A {type(linear).__name__} stands where a linear projection is expected.")
    return MobiLinear(
        linear.in_features,
        linear.out_features,
        settings.slices,
        bias=linear.bias is not None,
        shift=settings.shift,
        gain=settings.gain,
        device="meta",
        dtype=linear.weight.dtype,
    )


def _begin_forward(_: nn.Module, __: tuple, kwargs: dict) -> None:
    current = current_pass()
    if isinstance(current, FollowingPass):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        current.begin(0 if cache is None else int(cache.get_seq_length()))
