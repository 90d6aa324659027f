"""Load any supported model: a preset, a hub id or a local folder."""

from dataclasses import asdict
from typing import Any

from app import models
from app.handlers import dumps
from app.tabs.page import Page, Tab, server_function, view
from mobiquant_core.errors import MobiQuantError


def build(page: Page) -> None:
    settings = page.studio.settings

    def load(asked: Any) -> dict:
        """Begins loading; the page follows the status."""
        name = asked.get("name") if isinstance(asked, dict) else None
        try:
            page.studio.slot.switch(models.check_model(name, settings))
        except MobiQuantError as error:
            return {"error": str(error)}
        return {}

    offered = [
        asdict(preset)
        for preset in models.PRESETS
        if models.allows_any(settings) or preset.name in models.allowed_names(settings)
    ]
    known = {
        "presets": offered,
        "any": models.allows_any(settings),
        "allowed": list(models.allowed_names(settings)),
    }
    view("models", height=300, card=True, value=dumps(known), server_functions=[server_function("load_model", load)])


TAB = Tab("models", "Models", build)
