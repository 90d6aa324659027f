"""Two runs side by side: two budgets, two policies, or both at equal average bits."""

from app.handlers import ENGINE_QUEUE
from app.studies import Studies
from app.tabs.page import Page, Tab, view


def build(page: Page) -> None:
    place = view("compare", height=420, card=True, events=("compare",))
    place.compare(
        Studies(page.studio).compare,
        [page.inputs[name] for name in ("prompt", "seed", "new_tokens", "temperature")],
        outputs=[page.feed],
        show_progress="hidden",
        api_visibility="private",
        **ENGINE_QUEUE,
    )


TAB = Tab("compare", "Compare", build)
