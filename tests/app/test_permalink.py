"""A link brings back the state it was made from, and nothing that a request could not have asked for."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import permalink
from app.settings import Settings

VIEWS = ("allocate", "compare")
SETTINGS = Settings()


def parameters(link: str) -> dict[str, str]:
    parts = urlsplit(link)
    both = {**parse_qs(parts.query, keep_blank_values=True), **parse_qs(parts.fragment, keep_blank_values=True)}
    return {name: values[0] for name, values in both.items()}


@settings(max_examples=80, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=500).filter(str.strip),
    st.integers(20, 80),
    st.sampled_from(["router", "layer", "oracle"]),
    st.integers(0, 2**31 - 1),
)
def test_a_link_is_read_back(prompt, tenths, policy, seed):
    link = permalink.build("http://x/", prompt=prompt, bits=tenths / 10, policy=policy, seed=seed, view="compare")
    found = permalink.parse(parameters(link), SETTINGS, VIEWS)
    assert found == permalink.Link(prompt, tenths / 10, policy, None, seed, "compare")


def test_long_prompts_never_reach_the_server():
    link = permalink.build("http://x/", prompt="word " * 200, bits=3.5, policy="router", seed=0, view="allocate")
    assert "word" not in urlsplit(link).query and "word" in urlsplit(link).fragment


@pytest.mark.parametrize(
    ("name", "value"),
    [("bits", "nan"), ("bits", "9"), ("bits", "x"), ("bits", "1e999"), ("policy", "evil"), ("seed", "-1"),
     ("seed", "1.5"), ("view", "../etc"), ("mode", "x"), ("p", "   "), ("p", "a" * 9000)],
)  # fmt: skip
def test_values_that_cannot_be_used_are_left_out_and_named(name, value):
    found = permalink.parse({name: value}, SETTINGS, VIEWS)
    assert len(found.notes) == 1
    assert (found.prompt, found.bits, found.policy, found.mode, found.seed, found.view) == (None,) * 6


def test_unknown_parameters_are_ignored():
    assert permalink.parse({"__theme": "dark", "x": "y"}, SETTINGS, VIEWS) == permalink.Link()
