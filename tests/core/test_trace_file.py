"""The run file: what is written comes back, anything else is refused by one kind of error."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import sample_trace

from mobiquant_core.errors import CheckpointError
from mobiquant_core.trace import Columns, RunSettings, Trace
from mobiquant_core.trace_file import SIZE_LIMIT, dump_trace, load_trace, parse_trace, save_trace

GOOD = dump_trace(sample_trace())


def _assert_same(loaded, trace):
    for name in ("settings", "linears", "bits_by_depth", "prompt_tokens", "timing", "machine", "notes"):
        assert getattr(loaded, name) == getattr(trace, name), name
    for name in ("token_ids", "token_texts", "top_texts"):
        assert getattr(loaded.columns, name) == getattr(trace.columns, name), name
    np.testing.assert_array_equal(loaded.columns.depths, trace.columns.depths)
    np.testing.assert_array_equal(loaded.columns.top_ids, trace.columns.top_ids)
    np.testing.assert_array_equal(loaded.threshold_grid, trace.threshold_grid)
    np.testing.assert_array_equal(loaded.columns.thresholds, trace.columns.thresholds)
    for name in ("residual_max", "residual_top3", "residual_median", "top_probabilities", "loss"):
        np.testing.assert_allclose(getattr(loaded.columns, name), getattr(trace.columns, name), rtol=1e-3, atol=1e-3)
        assert getattr(loaded.columns, name).dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(3, 20), layers=st.integers(1, 4))
def test_round_trip(seed, tokens, layers):
    trace = sample_trace(tokens, layers, seed)
    _assert_same(parse_trace(dump_trace(trace)), trace)


def test_a_file_on_disk_round_trips_and_leaves_nothing_beside_it(tmp_path):
    path = save_trace(sample_trace(), tmp_path / "sub" / "run é.json")
    _assert_same(load_trace(path), sample_trace())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_scores_keep_infinities_and_a_fine_step():
    trace = sample_trace()
    trace.columns.scores[0, 0] = (np.inf, 0.0, -np.inf)
    loaded = parse_trace(dump_trace(trace)).columns.scores
    np.testing.assert_array_equal(loaded[0, 0, [0, 2]], [np.inf, -np.inf])
    finite = np.isfinite(trace.columns.scores)
    span = np.ptp(trace.columns.scores[finite])
    assert np.abs(loaded[finite] - trace.columns.scores[finite]).max() <= span / 65_000


def test_massive_activations_beyond_half_precision_survive():
    trace = sample_trace()
    trace.columns.residual_max[1, 0] = 6.9e5
    assert parse_trace(dump_trace(trace)).columns.residual_max[1, 0] == pytest.approx(6.9e5, rel=1e-3)


def test_every_field_of_the_records_is_stored():
    stored = json.loads(GOOD)
    assert stored["columns"].keys() == {field.name for field in dataclasses.fields(Columns)}
    assert stored["settings"].keys() == {field.name for field in dataclasses.fields(RunSettings)}
    assert stored.keys() == {field.name for field in dataclasses.fields(Trace)} | {"format", "version"}


def test_optional_arrays_round_trip():
    trace = sample_trace()
    trace.columns.errors = np.full(trace.columns.depths.shape, 0.25, np.float32)
    trace.columns.reference_kl = np.zeros(trace.tokens, np.float32)
    loaded = parse_trace(dump_trace(trace)).columns
    np.testing.assert_array_equal(loaded.errors, trace.columns.errors)
    assert loaded.reference_loss is None
    assert loaded.reference_kl is not None


@pytest.mark.parametrize(("mode", "rows"), [("global", 1), ("per_linear", 4)])
def test_thresholds_of_tokens_are_stored_exactly(mode, rows):
    trace = sample_trace()
    trace.settings = dataclasses.replace(trace.settings, threshold_mode=mode)
    trace.columns.thresholds = np.linspace(-1, 1, rows * trace.tokens, dtype=np.float32).reshape(rows, -1)
    trace.columns.thresholds[0, :2] = (np.inf, -np.inf)
    loaded = parse_trace(dump_trace(trace))
    np.testing.assert_array_equal(loaded.columns.thresholds, trace.columns.thresholds)
    assert loaded.token_thresholds().shape == (len(trace.linears), trace.tokens)


def test_files_from_before_thresholds_of_tokens_still_load():
    body = json.loads(GOOD)
    body["version"] = 1
    del body["columns"]["thresholds"]
    loaded = parse_trace(json.dumps(body).encode())
    assert loaded.columns.thresholds is None
    np.testing.assert_array_equal(loaded.token_thresholds()[:, 0], loaded.thresholds)


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_thresholds_of_tokens_that_do_not_fit_the_mode_are_refused(rows):
    trace = sample_trace()
    trace.columns.thresholds = np.zeros((rows, trace.tokens), np.float32)
    with pytest.raises(CheckpointError, match="thresholds of tokens"):
        parse_trace(dump_trace(trace))
    trace.columns.thresholds = np.full((1, trace.tokens), np.nan, np.float32)
    with pytest.raises(CheckpointError, match="NaN"):
        parse_trace(dump_trace(trace))


@pytest.mark.parametrize("version", [0, 3, 1.0, True, "1", None, []])
def test_other_versions_are_refused(version):
    with pytest.raises(CheckpointError, match="version"):
        parse_trace(json.dumps(json.loads(GOOD) | {"version": version}).encode())


def test_a_run_over_the_size_limit_is_refused():
    trace = sample_trace()
    trace.notes = ["x" * SIZE_LIMIT]
    with pytest.raises(CheckpointError, match="limit is 5,000,000"):
        dump_trace(trace)


def test_nan_scores_are_refused():
    trace = sample_trace()
    trace.columns.scores[0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        dump_trace(trace)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 50_000, b'{"format": NaN}', b'{"a":1,"a":2}']
)
def test_what_is_no_run_file_is_refused(content):
    with pytest.raises(CheckpointError):
        parse_trace(content)


def test_missing_folder_and_oversize_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_trace(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="no such file"):
        load_trace(tmp_path)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (SIZE_LIMIT + 1))
    with pytest.raises(CheckpointError, match="at most"):
        load_trace(large)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(GOOD) - 1))
def test_every_truncation_is_refused(cut):
    with pytest.raises(CheckpointError):
        parse_trace(GOOD[:cut])


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from([[], {}, [1, 2]]),
)


def _places(body, path=()):
    """Every place in a JSON tree, as a path of keys."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


PLACES = list(_places(json.loads(GOOD)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_fields_are_refused_or_still_a_valid_trace(data):
    body = json.loads(GOOD)
    *parents, last = data.draw(st.sampled_from(PLACES))
    holder = body
    for key in parents:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[last] = data.draw(VALUES)
    else:
        del holder[last]
    try:
        trace = parse_trace(json.dumps(body).encode())
    except CheckpointError:
        return
    assert trace.columns.depths.shape == (len(trace.linears), trace.tokens)
    assert len(trace.columns.token_texts) == trace.tokens
    assert dataclasses.is_dataclass(trace.settings)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(position, byte):
    damaged = bytearray(GOOD)
    damaged[position] = byte
    try:
        parse_trace(bytes(damaged))
    except CheckpointError as error:
        assert "\n" not in str(error)[:50]
