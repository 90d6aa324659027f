"""The third tab: which tokens quantization hurts most, and how that set moves with precision."""

from app.handlers import ENGINE_QUEUE
from app.tabs.page import Page, Tab, view


def build(page: Page) -> None:
    place = view("migration", height=420, card=True, events=("measure",))
    place.measure(
        page.studio.migrate,
        outputs=[page.feed],
        show_progress="hidden",
        api_visibility="private",
        **ENGINE_QUEUE,
    )


TAB = Tab("migration", "Outlier migration", build)
