"""Comparisons and agreement through the handlers: what is asked is checked, what is answered is whole."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_engine import FakeEngine

from app.api import endpoint
from app.data_room import DataRoom
from app.studies import Studies
from mobiquant_core.ledger import LedgerRow
from mobiquant_core.trace_file import SIZE_LIMIT

SIDES = {"a": {"policy": "uniform", "bits": 4.0}, "b": {"policy": "router", "bits": 3.0}}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(layers=3, delay=0.0, reference="16 bit")


def messages(stream) -> list[dict]:
    return [json.loads(text) for text in stream]


def compare(studio, visitor, prompt="Once upon a time", **asked):
    event = SimpleNamespace(_data={**SIDES, **asked})
    return messages(Studies(studio).compare(prompt, 0, 8, 0.8, visitor, event))


def test_b_reads_what_a_wrote(studio, visitor):
    *progress, answer = compare(studio, visitor, text="forced")
    assert {message["kind"] for message in progress} == {"progress"}
    assert answer["sameText"] and answer["firstDifference"] is None and answer["common"] == 13
    a, b = json.loads(answer["a"]), json.loads(answer["b"])
    assert a["columns"]["ids"] == b["columns"]["ids"] and a["meta"]["promptTokens"] == 5
    assert answer["summary"]["referenceLoss"] > 0
    assert studio.sessions.find(a["run"]).trace.tokens == 13


def test_a_given_text_is_not_continued(studio, visitor):
    answer = compare(studio, visitor, text="given")[-1]
    assert answer["common"] == 5 and answer["sameText"]


def test_matching_brings_b_to_the_bits_of_a(studio, visitor):
    loose = compare(studio, visitor)[-1]["summary"]["measured"]
    tight = compare(studio, visitor, match=True)[-1]["summary"]["measured"]
    assert abs(tight[0] - tight[1]) < min(abs(loose[0] - loose[1]), 0.2)


def test_without_full_precision_nothing_is_claimed(studio, visitor, engine):
    engine.reference = None
    answer = compare(studio, visitor)[-1]
    assert answer["summary"]["kl"] == [None, None] and answer["figures"]["kl"]["data"] == []
    assert "on the same 13 tokens" in answer["sentence"]


@pytest.mark.parametrize(
    "asked",
    [{"a": {"policy": "x", "bits": 4}}, {"a": {"policy": "router", "bits": 9}}, {"b": None}, {"b": 7},
     {"text": "novel"}, {"a": {"policy": "router", "bits": "4"}}],
)  # fmt: skip
def test_bad_wishes_are_refused_in_one_line(studio, visitor, asked):
    with pytest.raises(gr.Error) as refusal:
        compare(studio, visitor, **asked)
    assert "\n" not in str(refusal.value)


def test_an_empty_prompt_is_refused(studio, visitor):
    with pytest.raises(gr.Error, match="prompt is empty"):
        compare(studio, visitor, prompt=" ")


def test_agreement_is_measured_on_the_run_on_show(studio, visitor):
    run = json.loads(compare(studio, visitor)[-1]["b"])["run"]
    answer = messages(Studies(studio).agree(visitor, SimpleNamespace(_data={"run": run})))[-1]
    assert answer["kind"] == "agreement" and answer["run"] == run and answer["policy"] == "router"
    assert len(answer["measured"]) == 2 and answer["figures"]["confusion"]["data"]


def test_agreement_with_another_model_is_refused(studio, visitor, engine):
    run = json.loads(compare(studio, visitor)[-1]["b"])["run"]
    engine.model_name = "other"
    with pytest.raises(gr.Error, match="run on show is of fake"):
        list(Studies(studio).agree(visitor, SimpleNamespace(_data={"run": run})))


@pytest.fixture
def run_id(studio, visitor) -> str:
    return json.loads(compare(studio, visitor)[-1]["b"])["run"]


def test_the_lab_answers_with_figures_and_sentences(studio, run_id):
    answer = DataRoom(studio).lab({"run": run_id})
    assert set(answer) == {"scores", "layers", "kinds", "point"}
    assert answer["point"]["lossAbove"] is not None
    json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize("asked", [None, 3, {}, {"run": 5}, {"run": "unknown"}])
def test_unknown_runs_get_one_line(studio, asked):
    room = DataRoom(studio)
    assert "no longer kept" in room.lab(asked)["error"]
    assert "error" in room.export(asked)


def test_files_of_a_run(studio, run_id):
    room = DataRoom(studio)
    answers = {kind: room.export({"run": run_id, "format": kind}) for kind in ("csv", "json", "html")}
    assert answers["csv"]["name"] == "mobiquant-router-3.0bit.csv"
    assert answers["html"]["text"].startswith("<!doctype html>")
    reopened = room.opened(answers["json"]["text"])
    assert reopened.trace.tokens == studio.sessions.find(run_id).trace.tokens and reopened.state == "recorded"
    assert "Choose one of" in room.export({"run": run_id, "format": "exe"})["error"]


@pytest.mark.parametrize("text", [None, 5, "", "{}", "é", "x" * (SIZE_LIMIT + 1)])
def test_files_that_are_no_runs_are_refused(studio, text):
    from mobiquant_core.errors import MobiQuantError

    with pytest.raises(MobiQuantError):
        DataRoom(studio).opened(text)


def test_the_ledger_sets_every_part_beside_the_16_bit_model(studio, run_id, engine):
    rows = [LedgerRow("slices", 100, 100, (25, 50, 75, 100)), LedgerRow("embeddings", 10, 20, (4,) * 4),
            LedgerRow("routers", 5, 10, (10,) * 4)]  # fmt: skip
    engine.quantized = SimpleNamespace(memory_ledger=lambda: rows, config=SimpleNamespace(bits_by_depth=(2, 4, 6, 8)))
    answer = DataRoom(studio).ledger({})
    assert [row["whole"] for row in answer["rows"]] == [200, 4, 0]
    assert answer["rows"][1]["stored"] == 20


def test_no_ledger_without_a_model(studio, engine, run_id):
    assert "error" in DataRoom(studio).ledger()


def test_the_public_endpoint_gives_text_and_bits(studio):
    answer = endpoint(studio)("Once upon a time", bits=3.0, max_new_tokens=6)
    assert len(answer["tokens"]) == 11 and answer["requested_bits"] == 3.0
    assert answer["text"] == "".join(token["text"] for token in answer["tokens"][5:])
    with pytest.raises(gr.Error, match="outside 2 to 8"):
        endpoint(studio)("Once", bits=1)
