"""What tests do with an open page: choose a tab, take a picture, see that it can be read."""

from pathlib import Path

from axe_playwright_python.sync_playwright import Axe

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


def open_tab(page, title: str) -> None:
    """Chooses a tab; on a phone the later ones are behind the overflow button."""
    tab = page.locator("#mbq-tabs [role=tab]:visible", has_text=title)
    if tab.count():
        tab.first.click()
        return
    page.locator("#mbq-tabs .overflow-menu > button").click()
    page.locator("#mbq-tabs .overflow-dropdown button", has_text=title).click()


def picture(page, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{name}.png"), full_page=True)


def drawn(page) -> None:
    """Waits until every chart in sight is there, and two frames more."""
    page.wait_for_function(
        "[...document.querySelectorAll('.mbq-plot')].every(div => !div.offsetParent || !div.mbqMake"
        " || div.querySelector('.main-svg'))"
    )
    page.evaluate("() => new Promise(next => requestAnimationFrame(() => requestAnimationFrame(next)))")


def look(page, name: str) -> None:
    """A picture of the page; nothing is wider than it, and nothing seriously hard to read or to operate."""
    drawn(page)
    picture(page, name)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{name} is {wide} px too wide"
    serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in serious]
