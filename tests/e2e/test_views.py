"""Every view at both sizes on both grounds: drawn, within the page's width, readable, photographed."""

import pytest
from looking import SIZES, look, open_tab, picture
from test_allocate import generate
from test_study_tabs import agree, compare, learn, models


def outliers(page) -> None:
    open_tab(page, "Activation outliers")
    page.wait_for_selector(".mbq-surface .js-plotly-plot")


def migration(page) -> None:
    open_tab(page, "Outlier migration")
    page.wait_for_selector(".mbq-migration-body .js-plotly-plot")


TABS = {
    "allocate": lambda page: open_tab(page, "Allocate"),
    "activation-outliers": outliers,
    "outlier-migration": migration,
    "compare": compare,
    "router-lab": agree,
    "learn": learn,
    "models": models,
}


@pytest.mark.parametrize("ground", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_tab(open_page, size, ground):
    page = open_page(size, ground)
    generate(page)
    page.evaluate("mbq.pin({layer: 5, token: 4})")
    for name, show in TABS.items():
        show(page)
        look(page, f"{name}-{size}-{ground}")


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
    migration(page)
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
