"""Every value a browser or script may send is checked against limits, at n and n + 1."""

import math

import pytest

from app.settings import Settings
from app.validate import POLICIES, check, prompt_length
from mobiquant_core import policies
from mobiquant_core.errors import BudgetError, ConfigError, MobiQuantError, PromptError

SETTINGS = Settings(max_prompt_characters=20, max_prompt_tokens=5, max_new_tokens=10)
GOOD = {"prompt": "A fox", "bits": 3.5}


def checked(**changes):
    return check(SETTINGS, "generate", **{**GOOD, "max_new_tokens": 10, **changes})


def test_policies_are_those_of_the_core():
    assert tuple(policies.POLICIES) == POLICIES


def test_a_good_request_is_typed():
    wish = checked(bits=4, seed=3.0)
    assert (wish.bits, wish.seed, wish.policy) == (4.0, 3, "router")


@pytest.mark.parametrize(
    "bits", [math.nan, math.inf, -math.inf, -1, 1.999, 8.001, 1e308, "4", None, [], True, {}, "<script>"]
)
def test_a_bad_budget_is_refused(bits):
    with pytest.raises(BudgetError):
        checked(bits=bits)


@pytest.mark.parametrize("bits", [2, 2.0, 8, 3.14])
def test_the_ends_of_the_budget_are_served(bits):
    assert checked(bits=bits).bits == bits


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", None, 5, ["a"], "x" * 21])
def test_a_bad_prompt_is_refused(prompt):
    with pytest.raises(PromptError):
        checked(prompt=prompt)


def test_the_longest_prompt_is_served():
    assert checked(prompt="x" * 20).prompt == "x" * 20
    prompt_length(5, SETTINGS)
    with pytest.raises(PromptError, match="6 tokens; the limit is 5"):
        prompt_length(6, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "best"}, {"policy": None}, {"mode": "local"}, {"seed": -1}, {"seed": 2**31}, {"seed": 1.5},
        {"max_new_tokens": 0}, {"max_new_tokens": 11}, {"max_new_tokens": True}, {"temperature": 2.1},
        {"temperature": math.nan},
    ],
)  # fmt: skip
def test_other_bad_values_are_refused_in_one_line(change):
    with pytest.raises(MobiQuantError) as caught:
        checked(**change)
    assert isinstance(caught.value, BudgetError | ConfigError)
    assert "\n" not in str(caught.value)
