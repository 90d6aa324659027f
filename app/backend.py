"""The engine behind the page: loaded in the background, lent to one run at a time.

`Core` is all that the app asks of the quantizer, so that tests put a fake in its place. Nothing here imports
torch before `start`, because the page has to be served first.
"""

import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mobiquant_core.errors import Cancelled, MobiQuantError

logger = logging.getLogger(__name__)
Progress = Callable[[str, float], None]


def _surface(engine: Any, ids: list[int], layer: int, channels: int) -> Any:
    return importlib.import_module("mobiquant_core.outliers").channel_surface(engine, ids, layer, channels)


@dataclass(frozen=True)
class Core:
    """The entry points of `mobiquant_core`: load an engine; measure migration and channel magnitudes with it."""

    load: Callable[[str, str, Progress], Any]
    migration: Callable[..., Any]
    surface: Callable[[Any, list[int], int, int], Any] = _surface


def _load(model: str, device: str, progress: Progress) -> Any:
    # Imported on the loading thread: torch and transformers take seconds, the first picture must not.
    loading = importlib.import_module("mobiquant_core.loading")
    return loading.load_engine(model, device=device, progress=progress)


def _migration(engine: Any, ids: list[int], **options: Any) -> Any:
    return importlib.import_module("mobiquant_core.migration").measure(engine, ids, **options)


REAL_CORE = Core(load=_load, migration=_migration)


@dataclass(frozen=True)
class Status:
    """What the chip says. `state` is recorded, loading, live or failed."""

    state: str
    fraction: float = 0.0
    text: str = ""
    device: str = ""
    path: str = ""
    problem: str = ""
    """Why the model asked for last is not the one in use."""
    reference: bool = True
    """Whether the model in use is kept at full precision as well, for comparisons."""


class EngineSlot:
    """Holds at most one engine, and the lock that lets one run use it."""

    def __init__(self, core: Core, model: str, device: str) -> None:
        self.core = core
        self.model = model
        self.device = device
        self.lock = threading.Lock()
        self._engine: Any = None
        self._path = ""
        self._status = Status("recorded")
        self._settled = threading.Event()
        self._switching = threading.Lock()

    def start(self) -> None:
        """Begins loading once; later calls do nothing."""
        if self._status.state == "recorded":
            self._status = Status("loading", 0.0, "starting")
            threading.Thread(target=self._run, name="engine-loader", daemon=True).start()

    def switch(self, model: str) -> None:
        """Begins loading another model; the one in use serves until then, and stays if the other fails."""
        with self._switching:
            if self._status.state == "loading":
                raise MobiQuantError("A model is being loaded already. Wait until it is ready.")
            self._status = Status("loading", 0.0, "starting")
        threading.Thread(target=self._run, args=(model,), name="engine-loader", daemon=True).start()

    @property
    def status(self) -> Status:
        return self._status

    def engine(self, cancel: threading.Event, seconds: float) -> Any:
        """The engine, waiting for it if it is still loading; an error says why there is none."""
        waited = 0.0
        while not self._settled.wait(0.1):
            waited += 0.1
            if cancel.is_set():
                raise Cancelled("Stopped while the model was loading.")
            if waited > seconds:
                raise MobiQuantError("The model is still loading. The recorded run stays usable; try again soon.")
        if self._engine is None:
            raise MobiQuantError(self._status.text)
        return self._engine

    def peek(self) -> Any:
        """The engine if it is there."""
        return self._engine

    def _progress(self, text: str, fraction: float) -> None:
        self._status = Status("loading", min(max(float(fraction), 0.0), 1.0), text)

    def _run(self, model: str | None = None) -> None:
        model = model or self.model
        try:
            engine = self.core.load(model, self.device, self._progress)
            self._progress("warming", 0.95)
            path = self._warm(engine)
            with self.lock:
                self._engine, self.model, self._path = engine, model, path
            self._status = self._live()
        except MobiQuantError as error:
            self._failed(str(error))
        except Exception:
            logger.exception("loading %r failed", model)
            self._failed(f"The model {model!r} could not be loaded; the server log says why.")
        finally:
            self._settled.set()

    def _live(self, problem: str = "") -> Status:
        engine = self._engine
        where = str(engine.model_name), str(engine.device), self._path
        return Status("live", 1.0, *where, problem, engine.reference is not None)

    def _failed(self, text: str) -> None:
        self._status = Status("failed", 0.0, text, problem=text) if self._engine is None else self._live(text)

    @staticmethod
    def _warm(engine: Any) -> str:
        """Two short runs, so that caches and kernels are ready; returns which path computed them."""
        text = "Once upon a time"
        for _ in engine.generate(engine.encode(text), budget=4.0, policy="router", max_new_tokens=2):
            pass  # a GPU compiles and captures its decode step here
        # From some tokens on, prompts have kernels of their own on a GPU; elsewhere nothing is gained by a longer one.
        times = 16 if str(engine.device).startswith("cuda") else 1
        trace = engine.analyze(engine.encode(" ".join([text] * times)), budget=4.0, policy="router")
        return trace.machine.get("path", "reference")
