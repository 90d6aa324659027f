"""Which models may be loaded, and what a failed or second load leaves in use."""

import threading

import pytest
from fake_engine import FakeEngine

from app import models
from app.backend import Core, EngineSlot
from app.settings import Settings
from mobiquant_core.errors import MobiQuantError, UnsupportedModelError


def test_on_this_machine_any_model_may_be_named():
    assert models.check_model(" /home/me/model ", Settings()) == "/home/me/model"
    assert models.allows_any(Settings(host="localhost"))


def test_on_a_public_address_only_the_model_of_the_server():
    settings = Settings(host="0.0.0.0")  # noqa: S104 - the case under test
    assert models.check_model("demo", settings) == "demo"
    with pytest.raises(UnsupportedModelError, match="Choose one of: demo"):
        models.check_model("/etc", settings)


def test_a_list_allows_what_it_names_and_the_started_model():
    settings = Settings(host="0.0.0.0", allowed_models="a/b, c/d")  # noqa: S104
    assert models.allowed_names(settings) == ("demo", "a/b", "c/d")
    assert models.check_model("c/d", settings) == "c/d"
    assert models.allows_any(Settings(host="0.0.0.0", allowed_models="*"))  # noqa: S104
    assert not models.allows_any(Settings(allowed_models="a/b"))


@pytest.mark.parametrize("name", [None, 3, "", "  ", "a" * 301, "a\0b", "a\nb"])
def test_names_that_are_none(name):
    with pytest.raises(UnsupportedModelError):
        models.check_model(name, Settings())


def settled(slot: EngineSlot) -> None:
    for thread in threading.enumerate():
        if thread.name == "engine-loader":
            thread.join(10)


def test_a_failed_switch_keeps_the_model_in_use():
    def load(name, _device, _progress):
        if name == "broken":
            raise MobiQuantError("broken is not here.")
        return FakeEngine(layers=1, delay=0, model_name=name)

    slot = EngineSlot(Core(load, lambda *_: None), "first", "cpu")
    slot.start()
    settled(slot)
    slot.switch("broken")
    settled(slot)
    assert (slot.status.state, slot.status.text, slot.status.problem) == ("live", "first", "broken is not here.")
    slot.switch("second")
    settled(slot)
    assert (slot.status.text, slot.status.problem, slot.peek().model_name) == ("second", "", "second")


def test_one_load_at_a_time():
    go = threading.Event()
    slot = EngineSlot(Core(lambda *_: go.wait(10) and FakeEngine(layers=1), lambda *_: None), "first", "cpu")
    slot.start()
    with pytest.raises(MobiQuantError, match="already"):
        slot.switch("second")
    go.set()
    settled(slot)
    assert slot.status.state == "live"
