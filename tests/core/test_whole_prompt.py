"""The bench of a prompt through layers: what it says it spends is what its routers chose."""

import pytest

from mobiquant_core.bench import whole_prompt
from mobiquant_core.fast_decode.weights import StepShape

SMALL = StepShape(
    hidden=128, layers=2, heads=2, kv_heads=1, head_dim=64, feed_forward=192, vocabulary=256, norm_eps=1e-5
)


def test_budgets_are_spent_and_times_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []

    def milliseconds(run) -> float:
        run()
        timed.append(10.0 + len(timed))
        return timed[-1]

    monkeypatch.setattr(whole_prompt, "_milliseconds", milliseconds)
    rows = whole_prompt.measure(SMALL, layers=2, tokens=96)
    assert [row["bits_asked"] for row in rows] == list(whole_prompt.BUDGETS)
    assert [row["bits"] for row in rows] == pytest.approx(whole_prompt.BUDGETS, abs=0.3)
    assert (rows[0]["bits"], rows[-1]["bits"]) == (2, 8)
    # The first time is that of the model before it is quantized.
    assert all(row["bf16_milliseconds"] == 10 for row in rows) and rows[0]["share_of_bf16_speed"] == 10 / 11
    assert all(row["layers"] == 2 and row["tokens"] == 96 for row in rows)
