"""Calibration: from a model and token windows to ranges, routers and thresholds.

`calibrate` is the one entry; an effort is a function of its own file. It reads token ids, never text.
"""

from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from mobiquant_core.calibrate.fast import calibrate_fast
from mobiquant_core.calibrate.full import calibrate_full
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import PreTrainedModel, Progress
from mobiquant_core.errors import ConfigError, PromptError

EFFORTS = {"fast": ("sketch", "none"), "full": ("mlp",)}
"""Effort -> the routers it can fit."""


def calibrate(
    model: PreTrainedModel,
    token_windows: Int[Tensor, "windows tokens"],
    config: MobiQuantConfig = MobiQuantConfig(),  # noqa: B008 - frozen
    *,
    router: str = "sketch",
    effort: str = "fast",
    progress: Progress | None = None,
    resume_dir: Path | None = None,
    other_windows: Int[Tensor, "windows tokens"] | None = None,
) -> Calibration:
    """Fits a full-precision model, which is left as it was; every window starts with BOS.

    `other_windows`: text of another kind, as long, which the effort `full` shows to its routers alone.
    """
    if token_windows.dim() != 2 or token_windows.shape[0] < 1 or token_windows.shape[1] < 8:
        raise PromptError(
            f"Calibration needs token windows of at least 8 tokens, not the shape {tuple(token_windows.shape)}. "
            "Give a longer text."
        )
    if other_windows is not None and other_windows.shape[1:] != token_windows.shape[1:]:
        raise PromptError(
            f"Windows of other text have the shape {tuple(other_windows.shape)}; {token_windows.shape[1]} tokens each "
            "are needed, as in the windows of the text. Cut both alike."
        )
    if effort not in EFFORTS:
        raise ConfigError(f"The calibration effort {effort!r} is unknown. Known: {', '.join(EFFORTS)}.")
    if router not in EFFORTS[effort]:
        able = " or ".join(EFFORTS[effort])
        raise ConfigError(f"The effort {effort!r} cannot fit the router {router!r}. Choose {able}.")
    if effort == "full":
        return calibrate_full(model, token_windows, config, None, progress or _ignore, resume_dir, other_windows)
    return calibrate_fast(model, token_windows, config, router, progress or _ignore)


def _ignore(message: str, share: float) -> None:
    """Where nobody asked for progress."""
