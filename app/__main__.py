"""Flags and environment -> settings -> page -> server. The model loads after the page is served."""

import logging
import os
import sys
from pathlib import Path

if not __package__:
    # A hosted Space runs this file by its path; the packages lie one folder up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
# Before gradio is imported: it reads this once.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from starlette.middleware import Middleware

from app import access, layout, recorded
from app.backend import REAL_CORE, Core, EngineSlot
from app.handlers import Studio
from app.settings import Settings, settings_from
from mobiquant_core.errors import ConfigError


def serve(settings: Settings, core: Core = REAL_CORE, *, block: bool = True):
    """Starts the server, then the model; returns (page, address). `block` keeps the main thread until Ctrl-C."""
    slot = EngineSlot(core, settings.model, settings.device)
    first = recorded.first_trace(settings.traces)
    page = layout.build(Studio(settings, slot, first), recorded.opening(first))
    allowed = access.allowed_names(settings.host, settings.allowed_hosts)
    _, address, _ = page.launch(
        server_name=settings.host,
        server_port=settings.port or None,
        root_path=settings.root_path or None,
        app_kwargs={"middleware": [Middleware(access.HostCheck, allowed=allowed)]},
        prevent_thread_lock=True,
        **layout.launch_options(),
    )
    slot.start()
    sys.stdout.write(f"MoBiQuant Studio is at {address}  (Ctrl-C ends it)\n")
    sys.stdout.flush()
    if block:
        page.block_thread()
    return page, address


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve(settings_from(arguments, os.environ))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
