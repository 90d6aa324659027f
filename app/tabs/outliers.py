"""How large activations get: token by layer, the largest of each layer, and channel by token of one layer."""

from app.handlers import ENGINE_QUEUE
from app.tabs.page import Page, Tab, view


def build(page: Page) -> None:
    view("activations", height=420, card=True)
    place = view("surface", height=300, card=True, events=("measure",))
    place.measure(
        page.studio.magnitudes,
        outputs=[page.feed],
        show_progress="hidden",
        api_visibility="private",
        **ENGINE_QUEUE,
    )


TAB = Tab("outliers", "Activation outliers", build)
