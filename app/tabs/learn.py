"""What the words mean and how it is computed; files, links and code of the run on show; what it costs in memory."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from app.data_room import DataRoom
from app.handlers import session_of
from app.tabs.page import Page, Tab, server_function, view

WORDS = Path(__file__).parents[1] / "static" / "learn.html"


def build(page: Page) -> None:
    room = DataRoom(page.studio)

    def reopen(request: gr.Request, event: gr.EventData) -> Iterator[str]:
        """Puts the run of an uploaded run file on the page."""
        asked = event._data if isinstance(event._data, dict) else {}
        session = session_of(request)

        def work(wish: dict, _session: str, _cancel: object) -> Iterator[str]:
            run = room.opened(wish.get("text"))
            page.studio.sessions.remember(session, run)
            yield page.studio.opening(run)

        yield from page.studio.guarded("open", asked, request, work)

    gr.HTML(
        html_template=f'<div class="mbq-view mbq-learn">{WORDS.read_text("utf-8")}</div>',
        elem_id="mbq-learn",
        elem_classes=["mbq-host"],
        apply_default_css=False,
        padding=False,
    )
    place = view(
        "data",
        height=300,
        events=("reopen",),
        server_functions=[server_function("run_file", room.export), server_function("ledger", room.ledger)],
    )
    place.reopen(reopen, outputs=[page.feed], show_progress="hidden", api_visibility="private")


TAB = Tab("learn", "Learn & data", build)
