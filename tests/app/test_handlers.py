"""Events end in messages or in one clear line; the studio survives all of them."""

import base64
import json
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fake_engine import FakeEngine

from app.handlers import SURFACE_CHANNELS
from app.session import Run
from mobiquant_core.errors import PromptError

GENERATE = {"bits": 4.0, "policy": "router", "mode": "global", "seed": 0, "max_new_tokens": 8, "temperature": 0.8}


def run(studio, visitor, prompt="A little fox", **changes):
    values = {**GENERATE, **changes}
    return [json.loads(text) for text in studio.generate(prompt, *values.values(), visitor)]


def test_a_run_opens_grows_and_ends(studio, visitor):
    messages = run(studio, visitor)
    assert messages[0]["kind"] == "run" and messages[0]["state"] == "running"
    assert messages[-1] | {"notes": []} == messages[-1] and messages[-1]["state"] == "done"
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    tokens = messages[0]["columns"]["n"] + sum(len(m["parts"]) for m in messages[1:-1])
    assert tokens == 4 + 8


def test_resync_returns_the_whole_run(studio, visitor):
    messages = run(studio, visitor)
    whole = json.loads(studio.resync({"run": messages[0]["run"]}))
    assert whole["columns"]["n"] == 12 and whole["seq"] == messages[-1]["seq"] and whole["state"] == "done"


def test_resync_while_the_run_goes_on_never_numbers_tokens_that_it_lacks(studio):
    """A page may be given tokens it has, since it skips them; of tokens that are missing it would never know."""
    run = Run("r", trace=None, state="running", measured=4.0)
    parts = [FakeEngine(layers=2).analyze([1, 2, 3][:n], budget=4.0) for n in (1, 2, 3)]

    def assemble():
        seen = parts[run.seq]  # the columns of this moment; then the run goes on and ends before they are packed
        run.trace, run.assemble, run.state, run.seq = parts[2], None, "done", 2
        return seen

    run.assemble = assemble
    first, second = json.loads(studio.opening(run)), json.loads(studio.opening(run))
    assert (first["seq"], first["state"], first["columns"]["n"]) == (0, "running", 1)
    assert (second["seq"], second["state"], second["columns"]["n"]) == (2, "done", 3)


@pytest.mark.parametrize("asked", [None, {}, {"run": 5}, {"run": "other"}, [], "x", {"run": None}])
def test_resync_of_nothing_is_nothing(studio, asked):
    assert studio.resync(asked) is None


def test_same_seed_same_text(studio, visitor):
    first, second = run(studio, visitor), run(studio, visitor)
    words = [[part["texts"] for m in messages[1:-1] for part in m["parts"]] for messages in (first, second)]
    assert words[0] == words[1]


@pytest.mark.parametrize(
    "change", [{"prompt": " "}, {"bits": float("nan")}, {"bits": 9}, {"policy": "?"}, {"seed": -1}]
)
def test_a_refused_run_is_a_toast_and_the_next_one_works(studio, visitor, change):
    with pytest.raises(gr.Error) as caught:
        run(studio, visitor, **change)
    assert "\n" not in str(caught.value.message)
    assert run(studio, visitor)[-1]["kind"] == "done"


def test_an_engine_fault_shows_no_inner_words(studio, visitor, engine, caplog):
    engine.fail_at = 2
    with pytest.raises(gr.Error) as caught:
        run(studio, visitor)
    assert "secret" not in caught.value.message and "secret" in caplog.text
    engine.fail_at = None
    assert run(studio, visitor)[-1]["kind"] == "done"


def test_closing_the_tab_frees_the_engine(studio, visitor, engine):
    engine.delay = 0.02
    stream = studio.generate("A little fox", *{**GENERATE, "max_new_tokens": 200}.values(), visitor)
    next(stream)
    studio.close(visitor)
    taken = engine.steps_taken
    stream.close()
    assert studio.slot.lock.acquire(timeout=60)
    assert engine.steps_taken <= taken + 1


def test_a_stopped_run_says_so(studio, visitor, engine):
    engine.delay = 0.01
    stream = studio.generate("A little fox", *{**GENERATE, "max_new_tokens": 200}.values(), visitor)
    next(stream)
    next(stream)
    studio.stop(visitor)
    last = [json.loads(text) for text in stream][-1]
    assert last["state"] == "stopped"


def test_analysis_records_errors(studio, visitor, engine):
    engine.reference = object()
    (message,) = [json.loads(t) for t in studio.analyze("A little fox ran", 4.0, "router", "global", visitor)]
    assert {"errors", "referenceLoss", "referenceKl"} <= set(message["columns"])


def test_migration_is_measured_on_the_run_on_show(studio, visitor):
    messages = run(studio, visitor)
    event = SimpleNamespace(_data={"run": messages[0]["run"], "error": "absolute", "skipFirst": False})
    (report,) = [json.loads(text) for text in studio.migrate(visitor, event)]
    assert (report["kind"], report["error"], report["skipFirst"]) == ("migration", "absolute", False)
    assert len(report["texts"]) == 12 and len(report["sentences"]) == 1 + 21


@pytest.mark.parametrize("data", [{"run": "gone"}, {}, None, {"run": 3}])
def test_migration_of_an_unknown_run_is_refused(studio, visitor, data):
    with pytest.raises(gr.Error):
        list(studio.migrate(visitor, SimpleNamespace(_data=data)))


def test_magnitudes_are_measured_on_the_run_on_show(studio, visitor):
    messages = run(studio, visitor)
    event = SimpleNamespace(_data={"run": messages[0]["run"], "layer": 2})
    (found,) = [json.loads(text) for text in studio.magnitudes(visitor, event)]
    assert (found["kind"], found["layer"], len(found["channels"])) == ("surface", 2, SURFACE_CHANNELS)
    values = np.frombuffer(base64.b64decode(found["magnitude"]), "<f4").reshape(12, SURFACE_CHANNELS)
    assert values.max() == values[0].max() == 400


@pytest.mark.parametrize("layer", [None, "2", 1.5, True])
def test_magnitudes_of_an_odd_layer_are_refused(studio, visitor, layer):
    messages = run(studio, visitor)
    with pytest.raises(gr.Error, match="whole number"):
        list(studio.magnitudes(visitor, SimpleNamespace(_data={"run": messages[0]["run"], "layer": layer})))


def test_releasing_the_slider_runs_only_where_wanted(studio, visitor):
    assert list(studio.generate_if(False, "A fox", *GENERATE.values(), visitor)) == []
    assert list(studio.generate_if(True, "A fox", *GENERATE.values(), visitor))


def test_an_over_long_prompt_names_the_limit(studio, engine):
    engine.context = 5
    with pytest.raises(PromptError, match="limit is 5"):
        engine.encode("a b c d e f")
