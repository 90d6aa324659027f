"""Loading in the background: progress, failure and waiting."""

import threading

import pytest
from fake_engine import FakeEngine

from app.backend import Core, EngineSlot
from mobiquant_core.errors import Cancelled, MobiQuantError, UnsupportedModelError


def slot_of(load) -> EngineSlot:
    return EngineSlot(Core(load, lambda *_, **__: None), "fake", "cpu")


def test_the_chip_goes_from_recorded_over_loading_to_live():
    gate = threading.Event()

    def load(_model, _device, progress):
        progress("Reading weights", 0.4)
        gate.wait(5)
        return FakeEngine(layers=1)

    slot = slot_of(load)
    assert slot.status.state == "recorded"
    slot.start()
    while slot.status.text != "Reading weights":
        pass
    assert (slot.status.state, slot.status.fraction) == ("loading", 0.4)
    gate.set()
    assert slot.engine(threading.Event(), 5).model_name == "fake"
    assert (slot.status.state, slot.status.device, slot.status.path) == ("live", "cpu", "reference")
    assert not slot.status.reference  # full precision is not kept


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 5), ("cuda:0", 65)])
def test_only_a_gpu_warms_up_with_a_prompt_that_has_kernels_of_its_own(monkeypatch, device, tokens):
    engine, analyzed = FakeEngine(layers=1, device=device), []
    whole = engine.analyze
    monkeypatch.setattr(engine, "analyze", lambda ids, **asked: analyzed.append(len(ids)) or whole(ids, **asked))
    slot = slot_of(lambda *_: engine)
    slot.start()
    slot.engine(threading.Event(), 5)
    assert analyzed == [tokens]


def test_an_unknown_model_is_said_in_the_cores_words():
    def load(*_):
        raise UnsupportedModelError("The model 'x' was not found. Give demo, a folder or a hub id.")

    slot = slot_of(load)
    slot.start()
    with pytest.raises(MobiQuantError, match="'x' was not found"):
        slot.engine(threading.Event(), 5)
    assert slot.status.state == "failed"


def test_a_fault_while_loading_shows_no_inner_words(caplog):
    def load(*_):
        raise RuntimeError("secret /path")

    slot = slot_of(load)
    slot.start()
    with pytest.raises(MobiQuantError) as caught:
        slot.engine(threading.Event(), 5)
    assert "secret" not in str(caught.value) and "secret" in caplog.text


def test_waiting_can_be_stopped_and_ends():
    def load(*_):
        threading.Event().wait(1)
        raise MobiQuantError("Given up.")

    slot = slot_of(load)
    slot.start()
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        slot.engine(stopped, 5)
    with pytest.raises(MobiQuantError, match="still loading"):
        slot.engine(threading.Event(), 0.15)
