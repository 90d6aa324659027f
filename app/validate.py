"""Values from the browser -> typed values or one clear error; pure, and used whatever the page's own limits are.

It knows the limits, not the model: what the tokenizer says about a prompt is the engine's business.
"""

import math
from dataclasses import dataclass
from typing import Literal

from app.settings import Settings
from mobiquant_core.errors import BudgetError, ConfigError, PromptError

POLICIES = ("router", "layer", "uniform", "random", "norm", "oracle")
MODES = ("global", "per_linear")
MAX_SEED = 2**31 - 1
Kind = Literal["generate", "analyze"]


@dataclass(frozen=True)
class Request:
    """One checked wish of a visitor."""

    kind: Kind
    prompt: str
    bits: float
    policy: str
    mode: str
    seed: int
    max_new_tokens: int
    temperature: float


def number(value: object, name: str, low: float, high: float, error: type[Exception] = ConfigError) -> float:
    """A finite number within [low, high]; booleans and text are refused."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise error(f"{name} is {value!r}, which is no number. Give one from {low:g} to {high:g}.")
    if not low <= value <= high:
        raise error(f"{name} {value:g} is outside {low:g} to {high:g}. Move it back inside.")
    return float(value)


def whole(value: object, name: str, low: int, high: int) -> int:
    given = number(value, name, low, high)
    if given != int(given):
        raise ConfigError(f"{name} {given:g} is not a whole number. Give one from {low} to {high}.")
    return int(given)


def one_of(value: object, name: str, choices: tuple[str, ...], error: type[Exception] = ConfigError) -> str:
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name} {str(value)[:40]!r} is unknown. Choose one of: {', '.join(choices)}.")
    return value


def prompt_text(value: object, settings: Settings) -> str:
    """The prompt as given, if there is something in it and it is not over-long."""
    if not isinstance(value, str) or not value.strip():
        raise PromptError("The prompt is empty. Type a few words, or pick one of the examples.")
    if len(value) > settings.max_prompt_characters:
        raise PromptError(
            f"The prompt has {len(value):,} characters; the limit is {settings.max_prompt_characters:,}. Shorten it."
        )
    return value


def prompt_length(tokens: int, settings: Settings) -> None:
    if tokens > settings.max_prompt_tokens:
        raise PromptError(f"The prompt has {tokens:,} tokens; the limit is {settings.max_prompt_tokens:,}. Shorten it.")


def check(
    settings: Settings,
    kind: Kind,
    prompt: object,
    bits: object,
    policy: object = "router",
    mode: object = "global",
    seed: object = 0,
    max_new_tokens: object = 64,
    temperature: object = 0.8,
) -> Request:
    """Everything a run needs, in the order in which the page shows it."""
    return Request(
        kind=kind,
        prompt=prompt_text(prompt, settings),
        bits=number(bits, "The bit budget", settings.min_bits, settings.max_bits, BudgetError),
        policy=one_of(policy, "The policy", POLICIES, BudgetError),
        mode=one_of(mode, "The threshold mode", MODES, BudgetError),
        seed=whole(seed, "The seed", 0, MAX_SEED),
        max_new_tokens=whole(max_new_tokens, "New tokens", 1, settings.max_new_tokens),
        temperature=number(temperature, "The temperature", 0.0, 2.0),
    )
