"""Every view at both sizes on both grounds: drawn, within the page's width, readable, photographed."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import SIZES, open_tab, picture

TABS = ("Allocate", "Activation outliers", "Outlier migration")
READY = {
    "Activation outliers": ".mbq-surface .js-plotly-plot",
    "Outlier migration": ".mbq-migration-body .js-plotly-plot",
}


@pytest.mark.parametrize("ground", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_view(open_page, size, ground):
    page = open_page(size, ground)
    page.click("#mbq-generate")
    page.wait_for_function("mbq.run.id !== 'recorded' && mbq.run.state === 'done'")
    page.evaluate("mbq.pin({layer: 5, token: 4})")
    for title in TABS:
        open_tab(page, title)
        if title in READY:
            page.wait_for_selector(READY[title])
        page.wait_for_timeout(700)
        picture(page, f"{title.lower().replace(' ', '-')}-{size}-{ground}")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{title} is {wide} px too wide"
        serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in serious]


def test_the_keyboard_alone_reaches_a_pinned_cell(open_page):
    page = open_page()
    page.locator("#mbq-prompt textarea").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('mbq-token')"):
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("mbq.pinned.token") == 1 and page.evaluate("mbq.pinned.layer") == 8
    assert page.evaluate("document.activeElement.dataset.t") == "1"
    page.evaluate("mbq.resync(mbq.run.id); mbq.emit('run', mbq.run)")
    assert page.evaluate("document.activeElement.dataset.t") == "1"


def test_migration_answers_to_its_choices(open_page):
    page = open_page()
    open_tab(page, "Outlier migration")
    page.wait_for_selector(".mbq-migration-body .js-plotly-plot")
    assert "Whole model" in page.inner_text(".mbq-migration .mbq-sentence")
    page.select_option(".mbq-select select", "3")
    assert "o_proj, layer 0" in page.inner_text(".mbq-migration .mbq-sentence")
    page.locator(".mbq-migration input[value=absolute]").check(force=True)
    page.wait_for_function("document.querySelector('.mbq-migration').innerText.includes('absolute error')")


def test_magnitudes_of_a_layer_as_map_and_surface(open_page):
    page = open_page()
    open_tab(page, "Activation outliers")
    page.wait_for_selector(".mbq-surface .js-plotly-plot:visible")
    assert "channel 84 of token 0" in page.inner_text(".mbq-surface .mbq-sentence")
    page.select_option(".mbq-surface select", "-1")
    page.wait_for_function("document.querySelector('.mbq-surface .mbq-sentence').textContent.includes('embeddings')")
    page.locator(".mbq-surface input[value=surface]").check(force=True)
    page.wait_for_selector(".mbq-surface .gl-container canvas")
    page.wait_for_timeout(1500)
    picture(page, "surface-desktop-light")


def test_no_upload_button_and_no_share(open_page):
    page = open_page()
    page.wait_for_selector(".mbq-map .modebar", state="attached")
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles and not [title for title in titles if "hare" in title or "loud" in title]
