"""A studio around the fake engine, and a visitor to talk to it."""

from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from fake_migration import measure
from fake_surface import surface

from app.backend import Core, EngineSlot
from app.handlers import Studio
from app.settings import Settings


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(layers=3, delay=0.001)


@pytest.fixture
def studio(engine: FakeEngine) -> Studio:
    slot = EngineSlot(Core(lambda model, device, progress: engine, measure, surface), "fake", "cpu")
    slot.start()
    return Studio(Settings(), slot)


@pytest.fixture
def visitor():
    """What gradio passes as the request: only the session hash is read."""
    return SimpleNamespace(session_hash="visitor")
