"""The third tab: which tokens quantization hurts most, and how that set moves with precision."""

from app.handlers import ENGINE_QUEUE, dumps
from app.tabs.page import Page, Tab, view
from app.views import four_bars


def build(page: Page) -> None:
    place = view("migration", height=420, card=True, events=("measure",))
    place.measure(
        page.studio.migrate,
        outputs=[page.feed],
        show_progress="hidden",
        api_visibility="private",
        **ENGINE_QUEUE,
    )
    bars = four_bars.read_bars(page.studio.settings.results)
    stored = {"figure": None}
    if bars is not None:
        stored = {"figure": four_bars.figure(bars), "sentence": four_bars.sentence(bars), "source": bars.source}
    view("four_bars", height=200, card=True, value=dumps(stored))


TAB = Tab("migration", "Outlier migration", build)
