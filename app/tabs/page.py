"""What every tab is given, and how a view is put on the page. No drawing happens here.

A view is a fixed HTML element; `static/<name>.js` registers a function of that name, which draws into it and
listens to the store. Python never changes the element's template, so nothing drawn is ever lost.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.handlers import Studio


@dataclass
class Page:
    """The studio and the header's components, for tabs that start runs of their own."""

    studio: Studio
    feed: gr.HTML
    inputs: dict[str, gr.components.Component] = field(default_factory=dict)


@dataclass(frozen=True)
class Tab:
    id: str
    title: str
    build: Callable[[Page], None]


def view(name: str, *, height: int | None = None, card: bool = False, events: tuple[str, ...] = (), **more) -> gr.HTML:
    """A place for the drawing function `name`, framed if `card`; `events` are what it may send to Python."""
    known = ",".join(f"'{event}'" for event in events)
    return gr.HTML(
        html_template=f'<div class="mbq-view mbq-{name}{" mbq-card" if card else ""}" data-view="{name}"></div>',
        js_on_load=f"(window.mbqMounts ??= []).push(['{name}', element, {{props, watch, trigger, server: "
        f"typeof server === 'undefined' ? null : server, events: [{known}]}}]); "
        "window.mbq?.ready && window.mbq.mountAll();",
        min_height=height,
        elem_id=f"mbq-{name}",
        elem_classes=["mbq-host"],
        apply_default_css=False,
        padding=False,
        **more,
    )


def server_function(name: str, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A plain function of that name: what gr.HTML needs to offer a method to the page."""

    def call(asked):
        return method(asked)

    call.__name__ = name
    return call
