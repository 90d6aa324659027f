"""Visitors do not see or stop each other, and memory is bounded."""

from fake_engine import FakeEngine

from app.session import Run, Sessions, new_run_id, trace_bytes


def trace(words: int = 5):
    engine = FakeEngine(layers=2)
    return engine.analyze(engine.encode("word " * words), budget=4.0)


def test_a_new_run_stops_the_visitors_earlier_one_only():
    sessions = Sessions(4, 10**7)
    mine, theirs = sessions.begin("a"), sessions.begin("b")
    again = sessions.begin("a")
    assert mine.is_set() and not theirs.is_set() and not again.is_set()


def test_stop_is_harmless_when_nothing_runs():
    sessions = Sessions(4, 10**7)
    sessions.stop("nobody")
    event = sessions.begin("a")
    sessions.stop("a")
    sessions.stop("a")
    assert event.is_set() and len(sessions) == 1


def test_closing_a_tab_stops_and_forgets():
    sessions = Sessions(4, 10**7)
    event = sessions.begin("a")
    sessions.remember("a", Run("r", trace(), "done", 4.0))
    sessions.drop("a")
    assert event.is_set() and sessions.find("r") is None and len(sessions) == 0


def test_old_runs_leave_when_the_bytes_are_used_up():
    one = trace()
    sessions = Sessions(4, 2 * trace_bytes(one) + 1)
    for name in ("r1", "r2", "r3"):
        sessions.remember("a", Run(name, one, "done", 4.0))
    assert [sessions.find(name) is not None for name in ("r1", "r2", "r3")] == [False, True, True]


def test_the_longest_idle_visitor_leaves_first_and_is_stopped():
    sessions = Sessions(2, 10**7)
    first = sessions.begin("a")
    sessions.begin("b")
    sessions.begin("c")
    assert first.is_set() and len(sessions) == 2


def test_run_ids_are_long_and_different():
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100 and min(map(len, ids)) >= 16
