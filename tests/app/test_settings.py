"""Flags win over the environment, and what cannot be used is named."""

import pytest
from pydantic import ValidationError

from app.settings import Settings, settings_from
from mobiquant_core.errors import ConfigError


def test_flag_wins_over_environment_wins_over_default():
    found = settings_from(["--port", "7001"], {"MOBIQUANT_PORT": "7000", "MOBIQUANT_MODEL": "folder", "OTHER": "x"})
    assert (found.port, found.model, found.host) == (7001, "folder", "127.0.0.1")


def test_a_hosted_space_listens_to_its_proxy():
    found = settings_from([], {"SPACE_ID": "someone/studio"})
    assert (found.host, found.allowed_hosts, found.port) == ("0.0.0.0", "*", 7860)  # noqa: S104 - compared, not bound


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1


@pytest.mark.parametrize(
    "name, value", [("PORT", "70000"), ("PORT", "many"), ("RUN_SECONDS", "0"), ("QUEUE_SIZE", "0")]
)
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"MOBIQUANT_{name}"):
        settings_from([], {f"MOBIQUANT_{name}": value})
