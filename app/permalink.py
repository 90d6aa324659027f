"""A link that opens the page in a given state: query parameters -> checked values, and back.

Long prompts travel in the fragment, which never reaches a server; the page itself reads that part
(`static/permalink.js`). A value that cannot be used is left at its default, and named in `notes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from app.settings import Settings
from app.validate import MAX_SEED, MODES, POLICIES, number, one_of, prompt_text, whole
from mobiquant_core.errors import BudgetError, MobiQuantError

LONGEST_PROMPT = 300
"""Characters of a prompt that still go into the query; longer ones go into the fragment."""
_LONGEST_VALUE = 10_000


@dataclass(frozen=True)
class Link:
    """None means: leave the page's own value."""

    prompt: str | None = None
    bits: float | None = None
    policy: str | None = None
    mode: str | None = None
    seed: int | None = None
    view: str | None = None
    notes: list[str] = field(default_factory=list)


def parse(query: Mapping[str, str], settings: Settings, views: tuple[str, ...]) -> Link:
    """Every parameter is checked as a request's value is."""
    checks = {
        "p": lambda text: prompt_text(text, settings),
        "bits": lambda text: number(_number(text), "The bit budget", settings.min_bits, settings.max_bits, BudgetError),
        "policy": lambda text: one_of(text, "The policy", POLICIES),
        "mode": lambda text: one_of(text, "The threshold mode", MODES),
        "seed": lambda text: whole(_number(text), "The seed", 0, MAX_SEED),
        "view": lambda text: one_of(text, "The view", views),
    }
    found: dict = {}
    notes: list[str] = []
    for name, check in checks.items():
        text = query.get(name)
        if text is None:
            continue
        try:
            found["prompt" if name == "p" else name] = check(str(text)[:_LONGEST_VALUE])
        except MobiQuantError as error:
            notes.append(str(error))
    return Link(**found, notes=notes)


def build(address: str, *, prompt: str, bits: float, policy: str, seed: int, view: str) -> str:
    """The link for a state, in the form that `parse` reads; a long prompt goes behind the `#`."""
    query = {"bits": f"{bits:g}", "policy": policy, "seed": str(seed), "view": view}
    if len(prompt) <= LONGEST_PROMPT:
        return f"{address}?{urlencode({'p': prompt, **query})}"
    return f"{address}?{urlencode(query)}#{urlencode({'p': prompt})}"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
