"""Compare, Router lab, Learn & data and Models in a browser: drawn, readable, and doing what they say."""

import json
from pathlib import Path

from looking import look, open_tab, picture


def compare(page, preset: int = 0) -> None:
    open_tab(page, "Compare")
    page.locator(".mbq-compare .mbq-row button").nth(preset).click()
    page.wait_for_selector(".mbq-compare-body .js-plotly-plot")
    page.wait_for_function("!document.querySelector('.mbq-compare').classList.contains('waiting')")


def agree(page) -> None:
    open_tab(page, "Router lab")
    page.wait_for_selector(".mbq-lab .js-plotly-plot")
    page.locator(".mbq-labcard.wide .mbq-button").click()
    page.wait_for_selector(".mbq-labcard.wide .js-plotly-plot")


def another(page, link: str):
    """A second tab on a link; leaving the first page would break off its own requests."""
    opened = page.context.new_page()
    opened.goto(link)
    opened.wait_for_selector(".mbq-token")
    return opened


def learn(page) -> None:
    open_tab(page, "Learn")
    page.wait_for_selector(".mbq-code")


def models(page) -> None:
    open_tab(page, "Models")
    page.wait_for_selector(".mbq-model")


def test_a_comparison_marks_the_first_differing_token(open_page):
    page = open_page()
    open_tab(page, "Compare")
    page.locator(".mbq-compare input[value=free]").check(force=True)
    page.locator(".mbq-side input").nth(1).fill("2.5")
    page.locator(".mbq-side select").nth(1).select_option("layer")
    page.locator(".mbq-compare-form .mbq-button").click()
    page.wait_for_selector(".mbq-compare-strip")
    page.wait_for_function("!document.querySelector('.mbq-compare').classList.contains('waiting')")
    assert (page.locator(".first-different").count() > 0) == page.locator(".mbq-compare .mbq-warning").is_visible()


def test_a_model_without_full_precision_says_that_nothing_is_measured_against_it(open_page):
    page = open_page()
    compare(page)
    assert "nothing to measure a KL against" in page.inner_text(".mbq-compare caption")
    assert "judge by the KL" not in page.inner_text(".mbq-compare-body")
    assert "dotted line" not in page.inner_text(".mbq-compare-body")


def test_a_compared_run_opens_in_allocate(open_page):
    page = open_page()
    compare(page)
    page.locator(".mbq-compare-head .mbq-link").last.click()
    page.wait_for_function("mbq.run.meta.policy === 'router' && mbq.run.id !== 'recorded'")
    assert page.locator("#mbq-strip").is_visible()


def test_files_leave_and_come_back(open_page, tmp_path: Path):
    page = open_page()
    learn(page)
    saved = {}
    for name in ("Table (CSV)", "Run file (JSON)", "Page with figures (HTML)", "PNG", "SVG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    assert saved["Table (CSV)"].read_text().startswith("run,phase,position")
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG") and b"<svg" in saved["SVG"].read_bytes()[:400]
    tokens = len(json.loads(saved["Run file (JSON)"].read_text())["columns"]["token_ids"])
    page.set_input_files(".mbq-open input", saved["Run file (JSON)"])
    page.wait_for_function("mbq.run.id !== 'recorded'")
    assert page.evaluate("mbq.run.T") == tokens


def test_the_saved_page_draws_without_any_server(open_page, browser, tmp_path: Path):
    page = open_page()
    learn(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Page with figures (HTML)").click()
    download.value.save_as(tmp_path / "run.html")
    alone = browser.new_context(offline=True).new_page()
    troubles = []
    alone.on("pageerror", lambda error: troubles.append(str(error)))
    alone.on("request", lambda request: troubles.append(request.url) if not request.url.startswith("file:") else None)
    alone.goto((tmp_path / "run.html").as_uri())
    sections = alone.locator("section").count()
    alone.wait_for_function(f"document.querySelectorAll('.js-plotly-plot').length === {sections}")
    assert sections >= 4
    titles = alone.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert troubles == [] and not [title for title in titles if "hare" in title or "loud" in title]
    alone.context.close()


def test_a_file_that_is_no_run_is_refused_in_one_line(open_page, tmp_path: Path):
    page = open_page()
    learn(page)
    (tmp_path / "x.json").write_text('{"format": "other"}')
    page.set_input_files(".mbq-open input", tmp_path / "x.json")
    page.wait_for_selector("text=it is not a MoBiQuant run file")
    assert page.evaluate("mbq.run.id") == "recorded"


def test_a_link_brings_the_state_back(open_page):
    page = open_page()
    page.evaluate("mbq.setPrompt('Tom & Lily = <b>friends</b>'), mbq.setBudget(2.7), mbq.pin({layer: 3, token: 2})")
    learn(page)
    page.wait_for_function("document.querySelector('.mbq-field').value.includes('bits=2.7')")
    link = page.input_value(".mbq-field")
    page = another(page, link)
    page.wait_for_function("document.querySelector('#mbq-prompt textarea')?.value === 'Tom & Lily = <b>friends</b>'")
    page.wait_for_function("window.mbq?.tabNow() === 'learn' && mbq.pinned?.token === 2 && mbq.pinned.layer === 3")
    assert page.input_value("#mbq-budget input[type=number]") == "2.7"


def test_a_long_prompt_stays_behind_the_hash(open_page):
    page = open_page()
    text = "river " * 80 + "end"
    page.evaluate("text => mbq.setPrompt(text)", text)
    learn(page)
    page.wait_for_function("document.querySelector('.mbq-field').value.includes('#p=')")
    link = page.input_value(".mbq-field")
    assert "river" not in link.split("#")[0]
    page = another(page, link)
    page.wait_for_function("text => document.querySelector('#mbq-prompt textarea')?.value === text", arg=text)


def test_the_tour_by_keyboard(open_page):
    page = open_page()
    page.locator(".mbq-tour-start").focus()
    page.keyboard.press("Enter")
    titles = []
    for _ in range(7):
        titles.append(page.inner_text("#mbq-tour-title"))
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(150)
    assert len(set(titles)) == 7
    page.wait_for_selector(".mbq-tour", state="detached")
    assert page.evaluate("mbq.preview") is None
    assert page.evaluate("document.activeElement.className").startswith("mbq-quiet mbq-tour-start")


def test_the_tour_can_be_left_and_is_readable(open_page):
    page = open_page("phone")
    page.locator(".mbq-tour-start").click()
    page.wait_for_selector(".mbq-tour")
    look(page, "tour-phone-light")
    page.keyboard.press("Escape")
    page.wait_for_selector(".mbq-tour", state="detached")


def test_present_mode_steps_by_arrow_keys(open_page, address):
    page = another(open_page(), f"{address}?present=1")
    page.wait_for_selector(".mbq-tour")
    assert page.evaluate("document.body.classList.contains('mbq-present')")
    first = page.inner_text("#mbq-tour-title")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("first => document.querySelector('#mbq-tour-title').textContent !== first", arg=first)
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#mbq-tour-title") == first
    picture(page, "present-desktop-light")


def test_a_replay_ends_as_the_run_it_replays(open_page):
    page = open_page()
    tokens = page.evaluate("mbq.run.T")
    page.locator(".mbq-replay button").click()
    page.wait_for_function("mbq.run.T > mbq.run.promptTokens + 2 && mbq.run.state === 'running'")
    assert page.locator(".mbq-token").count() < tokens
    page.wait_for_function("mbq.run.state === 'recorded'")
    assert page.evaluate("mbq.run.T") == tokens == page.locator(".mbq-token").count()


def test_loading_another_model_shows_in_use(open_page):
    page = open_page()
    models(page)
    page.fill("#mbq-model-name", "some/model")
    page.locator(".mbq-model-form .mbq-button").click()
    page.wait_for_function("mbq.status.state === 'live'")
    words = page.inner_text(".mbq-models .mbq-sentence")
    assert words.startswith("In use: fake") and words.endswith("nothing can be compared with them.")


def test_the_snippet_runs(open_page, address):
    from gradio_client import Client

    answer = Client(address, verbose=False).predict(
        prompt="Once upon", bits=3.0, max_new_tokens=4, api_name="/generate"
    )
    assert answer["requested_bits"] == 3.0 and len(answer["tokens"]) == 7
