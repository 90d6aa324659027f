"""What the router does over a whole run, and what it is worth: scores, layers, kinds of token, budget curve, oracle."""

from app.data_room import DataRoom
from app.handlers import ENGINE_QUEUE, dumps
from app.studies import Studies
from app.tabs.page import Page, Tab, server_function, view
from app.views import budget_curve


def build(page: Page) -> None:
    curve = budget_curve.read_results(page.studio.settings.results)
    stored = {
        "figure": budget_curve.figure(curve) if curve.policies else None,
        "sentence": f"{budget_curve.sentence(curve)} {budget_curve.off_chart(curve)}".rstrip(),
        "device": curve.device,
        "command": curve.command,
    }
    place = view(
        "lab",
        height=420,
        events=("agree",),
        value=dumps(stored),
        server_functions=[server_function("lab", DataRoom(page.studio).lab)],
    )
    place.agree(
        Studies(page.studio).agree,
        outputs=[page.feed],
        show_progress="hidden",
        api_visibility="private",
        **ENGINE_QUEUE,
    )


TAB = Tab("lab", "Router lab", build)
