"""Puts a permalink's values into the page's controls when it opens. Reading the link is `permalink`'s business."""

from collections.abc import Callable

import gradio as gr

from app import permalink
from app.settings import Settings

FIELDS = ("prompt", "bits", "policy", "mode", "seed")


def opener(settings: Settings, views: tuple[str, ...]) -> Callable:
    """The load event's function: one update per control of FIELDS, then the selected tab."""

    def restore(request: gr.Request) -> list:
        link = permalink.parse(dict(request.query_params), settings, views)
        for note in link.notes:
            gr.Warning(f"The link was opened without one of its values. {note}", title="Part of the link was left out")
        values = [getattr(link, name) for name in FIELDS]
        tabs = gr.skip() if link.view is None else gr.Tabs(selected=link.view)
        return [*(gr.skip() if value is None else value for value in values), tabs]

    return restore
