"""The page reads back exactly what was recorded, whatever floats are in it."""

import base64
import json

import numpy as np
from fake_engine import FakeEngine

from app import wire


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_a_run_message_holds_every_column_token_major():
    engine = FakeEngine(layers=2)
    trace = engine.analyze(engine.encode("one two three"), budget=4.0, errors=True, reference=True)
    message = json.loads(wire.run_message(trace, "r", 0, state="done", measured=4.0))
    columns, tokens, linears = message["columns"], trace.tokens, len(trace.linears)
    depths = np.frombuffer(base64.b64decode(columns["depths"]), "u1").reshape(tokens, linears)
    np.testing.assert_array_equal(depths.T, trace.columns.depths)
    scores = floats(columns["scores"]).reshape(tokens, linears, 3)
    np.testing.assert_array_equal(scores.swapaxes(0, 1), trace.columns.scores)
    assert message["meta"]["thresholdRows"] == 1
    np.testing.assert_array_equal(floats(columns["thresholds"]), trace.columns.thresholds[0])
    np.testing.assert_array_equal(floats(columns["errors"]).reshape(tokens, linears).T, trace.columns.errors)
    assert np.isnan(floats(columns["loss"])[0])
    assert message["meta"]["linears"][8] == [1, "k_proj", 131072]


def test_infinite_thresholds_survive():
    engine = FakeEngine(layers=2)
    trace = engine.analyze(engine.encode("one two"), budget=2.0)
    message = json.loads(wire.run_message(trace, "r", 0, state="done", measured=2.0))
    assert floats(message["arrays"]["thresholds"])[0] == np.inf
    assert floats(message["arrays"]["thresholdGrid"])[-1] == -np.inf


def test_runs_without_thresholds_of_tokens_say_so():
    engine = FakeEngine(layers=2)
    trace = engine.analyze(engine.encode("one two"), budget=4.0)
    trace.columns.thresholds = None
    message = json.loads(wire.run_message(trace, "r", 0, state="done", measured=4.0))
    assert message["meta"]["thresholdRows"] == 0 and "thresholds" not in message["columns"]


def test_deltas_are_numbered_and_say_where_they_start():
    engine = FakeEngine(layers=2, delay=0)
    steps = list(engine.generate(engine.encode("one two"), budget=4.0, max_new_tokens=3))
    message = json.loads(wire.columns_message(steps[2:], "r", 5, 4.1))
    assert (message["seq"], message["start"], len(message["parts"])) == (5, 4, 2)
    assert len(message["timing"]["decode"]) == 2


def test_equal_messages_are_made_unequal():
    message = wire.failed_message("generate")
    first, second = wire.marked(message), wire.marked(message)
    assert first != second
    assert {key: json.loads(first)[key] for key in ("kind", "what")} == json.loads(message)


def test_hostile_token_text_stays_text():
    engine = FakeEngine(layers=2)
    trace = engine.analyze(engine.encode("</script><img onerror=x> \ud800"), budget=4.0)
    message = wire.run_message(trace, "r", 0, state="done", measured=4.0)
    message.encode("ascii")
    assert json.loads(message)["columns"]["texts"] == trace.columns.token_texts
