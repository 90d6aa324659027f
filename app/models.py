"""Which models a visitor may load, and the list of small open ones that are offered.

Pure: names in, a decision out. The engine slot loads; the tab shows.
"""

from dataclasses import dataclass

from app.access import LOOPBACK
from app.settings import Settings
from mobiquant_core.errors import UnsupportedModelError

LONGEST_NAME = 300


@dataclass(frozen=True)
class Preset:
    name: str
    title: str
    note: str


PRESETS = (
    Preset("demo", "Bundled model", "comes with the project; no download, no GPU"),
    Preset("HuggingFaceTB/SmolLM2-135M", "SmolLM2 135M", "0.3 GB download; comfortable on a laptop"),
    Preset("Qwen/Qwen3-0.6B", "Qwen3 0.6B", "1.5 GB download; slow on a CPU, live on a GPU"),
    Preset("meta-llama/Llama-3.2-1B", "Llama 3.2 1B", "2.5 GB download; its terms must be accepted on the hub first"),
)


def allows_any(settings: Settings) -> bool:
    """Any model, where the setting says so, or by default on a page that only this machine can open."""
    listed = settings.allowed_models.strip()
    return listed == "*" or (not listed and settings.host.lower() in LOOPBACK)


def allowed_names(settings: Settings) -> tuple[str, ...]:
    """The models that may be chosen where not any may: those listed, and the one the server was started with."""
    listed = [name.strip() for name in settings.allowed_models.split(",")]
    return tuple(dict.fromkeys([settings.model, *(name for name in listed if name and name != "*")]))


def check_model(name: object, settings: Settings) -> str:
    """The name as it may be loaded; UnsupportedModelError says what is possible instead."""
    if not isinstance(name, str) or not name.strip():
        raise UnsupportedModelError("No model was named. Give demo, a model folder, or a hub id.")
    name = name.strip()
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise UnsupportedModelError(f"A model's name has at most {LONGEST_NAME} printable characters. Shorten it.")
    if not allows_any(settings) and name not in allowed_names(settings):
        raise UnsupportedModelError(
            f"{name!r} cannot be loaded on this server. Choose one of: {', '.join(allowed_names(settings))}."
        )
    return name
