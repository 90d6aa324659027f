"""The numbers behind every chart as a table: by keyboard, as text, and the same as the picture."""

import pytest
from looking import drawn, look, open_tab
from test_allocate import DONE
from test_study_tabs import agree, compare


def migration(page) -> None:
    open_tab(page, "Outlier migration")
    page.wait_for_selector(".mbq-migration:not(.waiting) .js-plotly-plot")
    # Asked once more for the same text, it answers the same, and answers.
    page.locator(".mbq-migration .mbq-button").first.click()
    page.wait_for_selector(".mbq-migration:not(.waiting) .js-plotly-plot")


SHOW = {
    "allocate": lambda page: open_tab(page, "Allocate"),
    "compare": compare,
    "migration": migration,
    "outliers": lambda page: open_tab(page, "Activation outliers"),
    "lab": agree,
}


def analyzed(open_page, *view):
    page = open_page(*view)
    page.click("#mbq-analyze")
    page.wait_for_function(DONE)
    page.wait_for_selector(".mbq-map .main-svg")
    return page


def test_the_map_s_table_holds_the_map_s_numbers(open_page):
    page = analyzed(open_page)
    toggle = page.locator(".mbq-map .mbq-data-toggle")
    toggle.focus()
    page.keyboard.press("Enter")
    assert toggle.get_attribute("aria-expanded") == "true"
    rows = page.evaluate(
        "[...document.querySelectorAll('.mbq-map .mbq-datatable tbody tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    z = page.evaluate("Array.from(mbq.cells(mbq.run, mbq.filter).z)")
    tokens, layers = page.evaluate("[mbq.run.T, mbq.run.layers]")
    assert len(rows) == tokens and all(len(row) == 1 + layers for row in rows)
    for t, row in enumerate(rows):
        assert row[0].startswith(f"{t} ")
        assert [float(text) for text in row[1:]] == pytest.approx([z[y * tokens + t] for y in range(layers)], abs=6e-3)
    page.locator(".mbq-map input[value=score]").check(force=True)
    page.wait_for_function(
        "document.querySelector('.mbq-map .mbq-datatable caption').textContent.includes('router score')"
    )
    toggle.press("Enter")
    assert page.locator(".mbq-map .mbq-datatable table").count() == 0


def test_token_text_stays_text_and_long_runs_are_cut_with_a_note(open_page):
    page = open_page()
    page.fill("#mbq-prompt textarea", "<img/src=x/onerror=window.__pwned=1> " + "word " * 300)
    page.click("#mbq-analyze")
    page.wait_for_function(DONE)
    page.locator(".mbq-map .mbq-data-toggle").click()
    page.wait_for_selector(".mbq-map .mbq-datatable tbody tr")
    assert page.locator(".mbq-map .mbq-datatable tbody tr").count() == 200
    assert "first 200 of 302 rows" in page.inner_text(".mbq-map .mbq-datatable caption")
    assert "<img/src=x" in page.inner_text(".mbq-map .mbq-datatable tbody tr:nth-child(2) th")
    assert page.evaluate("window.__pwned") is None


@pytest.mark.parametrize(("size", "ground"), [("desktop", "light"), ("phone", "dark")])
def test_every_chart_has_its_table(open_page, size, ground):
    page = analyzed(open_page, size, ground)
    for name, show in SHOW.items():
        show(page)
        drawn(page)
        charts = page.locator(".js-plotly-plot:visible").count()
        toggles = page.locator(".mbq-data-toggle:visible")
        assert charts and toggles.count() == charts, name
        for index in range(charts):
            toggles.nth(index).click()
        tables = page.locator(".mbq-datatable:visible table")
        assert tables.count() == charts
        assert all(table.locator("tbody tr").count() for table in tables.all()), name
        look(page, f"tables-{name}-{size}-{ground}")


def test_a_run_that_ends_behind_another_tab_is_said(open_page):
    page = open_page()
    open_tab(page, "Models")
    page.click("#mbq-generate")
    page.wait_for_function(DONE)
    assert "79 tokens" in page.locator(".mbq-cards [role=status]").text_content()


def test_an_idle_inspector_takes_no_room_on_a_phone(open_page):
    page = open_page("phone")
    assert page.locator("#mbq-inspector").bounding_box()["height"] < 120
    page.evaluate("mbq.pin({layer: 2, token: 3})")
    page.wait_for_selector(".mbq-linears tbody tr")
    assert page.locator("#mbq-inspector").bounding_box()["height"] > 300
