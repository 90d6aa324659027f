"""The engine loop runs on its own thread: batched, stoppable, and ended with its reader."""

import threading

import pytest
from fake_engine import FakeEngine

from app.runner import batches
from mobiquant_core.errors import Cancelled


def loop_of(engine, tokens=50):
    ids = engine.encode("one two")
    return lambda cancel: engine.generate(ids, budget=4.0, max_new_tokens=tokens, cancel=cancel)


def test_steps_arrive_in_order_and_coalesced():
    engine = FakeEngine(layers=1, delay=0.002)
    got = list(batches(loop_of(engine), threading.Event(), interval=0.05, seconds=10))
    positions = [step.position for batch in got for step in batch]
    assert positions == [0, *range(3, 53)]
    assert len(got[0]) == 1 and len(got) < 25


def test_stop_ends_within_one_token():
    engine, cancel = FakeEngine(layers=1, delay=0.02), threading.Event()
    stream = batches(loop_of(engine), cancel, interval=0.01, seconds=10)
    next(stream)
    next(stream)
    cancel.set()
    taken = engine.steps_taken
    list(stream)
    assert engine.steps_taken <= taken + 1


def test_a_reader_that_goes_away_stops_the_engine():
    engine, cancel = FakeEngine(layers=1, delay=0.01), threading.Event()
    stream = batches(loop_of(engine, 1000), cancel, interval=0.01, seconds=60)
    next(stream)
    stream.close()
    assert cancel.is_set()
    taken = engine.steps_taken
    for thread in threading.enumerate():
        if thread.name == "engine-run":
            thread.join(60)
    assert engine.steps_taken <= taken + 1


def test_the_deadline_stops_a_run():
    engine, cancel = FakeEngine(layers=1, delay=0.02), threading.Event()
    list(batches(loop_of(engine, 1000), cancel, interval=0.02, seconds=0.2))
    assert cancel.is_set() and engine.steps_taken < 100


def test_a_fault_reaches_the_reader_after_the_steps_before_it():
    engine, cancel = FakeEngine(layers=1, delay=0.001, fail_at=3), threading.Event()
    got = []
    with pytest.raises(RuntimeError):
        for batch in batches(loop_of(engine), cancel, interval=0.01, seconds=10):
            got += batch
    assert len(got) == 4 and cancel.is_set()


def test_a_cancelled_loop_just_ends():
    def loop(_):
        raise Cancelled("Stopped.")
        yield

    assert list(batches(loop, threading.Event(), interval=0.01, seconds=1)) == []
