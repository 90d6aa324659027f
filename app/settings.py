"""Every limit and address of the app, frozen; the only reader of the environment and of flags.

A field `port` is set by `--port` or by `MOBIQUANT_PORT`; the flag wins. It knows nothing of gradio.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobiquant_core.errors import ConfigError

ENV_PREFIX = "MOBIQUANT_"
REPOSITORY = Path(__file__).resolve().parents[1]


class Settings(BaseModel):
    """What a deployment may change. Limits are upper bounds that `validate` applies again to every request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "demo"
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    allowed_hosts: str = ""
    """More names the Host header may carry, comma separated; needed behind a proxy."""
    root_path: str = ""
    traces: Path = REPOSITORY / "assets" / "traces"
    results: Path = REPOSITORY / "assets" / "results.json"
    allowed_models: str = ""
    """Models that visitors may load, comma separated; * for any. Empty: any on this machine only, else just `model`."""

    min_bits: float = 2.0
    max_bits: float = 8.0
    max_prompt_characters: int = Field(8_000, ge=1)
    max_prompt_tokens: int = Field(1_024, ge=2)
    max_new_tokens: int = Field(256, ge=1)
    max_migration_tokens: int = Field(512, ge=5)
    run_seconds: float = Field(60.0, gt=0)
    """A run is stopped, not failed, when it lasts longer."""
    queue_size: int = Field(32, ge=1)
    sessions: int = Field(64, ge=1)
    session_bytes: int = Field(64_000_000, ge=1_000_000)
    updates_per_second: float = Field(12.0, gt=0, le=60)


def settings_from(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Flags over environment over defaults; ConfigError names the setting that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Open MoBiQuant Studio in a browser.")
    parser.add_argument("--model", help="demo (the bundled one), a local folder, or a hub id")
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--host", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 picks a free one")
    flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    named = {
        name: environment[ENV_PREFIX + name.upper()]
        for name in Settings.model_fields
        if ENV_PREFIX + name.upper() in environment
    }
    try:
        return Settings(**{**_hosted(environment), **named, **flags})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{ENV_PREFIX}{name.upper()}={first.get('input')!r} cannot be used: {first['msg']}. "
            "Correct it and start again."
        ) from None


def _hosted(environment: Mapping[str, str]) -> dict[str, str]:
    """A hosted Space has its own proxy: the server listens to the outside, and names are the proxy's care."""
    return {"host": "0.0.0.0", "allowed_hosts": "*"} if environment.get("SPACE_ID") else {}  # noqa: S104 - see above
