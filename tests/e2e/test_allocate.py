"""The first tab as a visitor uses it: run, stop, read, pin, drag, filter."""

import json
import time

import pytest

DONE = "mbq.run && mbq.run.id !== 'recorded' && mbq.run.state !== 'running'"


def generate(page) -> None:
    page.click("#mbq-generate")
    page.wait_for_function(DONE)


def test_the_first_picture_comes_before_the_model(contexts, address):
    page = contexts["desktop"].new_page()
    page.goto(address)
    page.wait_for_selector(".mbq-token")
    assert page.evaluate("mbq.run.id") == "recorded"
    assert "Each" in page.inner_text(".mbq-strip") or "Every chip is one token" in page.inner_text(".mbq-strip")
    page.close()


def test_a_run_streams_and_its_numbers_agree(open_page, fake):
    page = open_page()
    generate(page)
    assert page.evaluate("mbq.run.T") == page.locator(".mbq-token").count() == 15 + 64
    measured, asked = page.evaluate("[mbq.run.measured, mbq.run.meta.requestedBits]")
    assert asked == 3.5 and abs(page.evaluate("mbq.mean(mbq.tokenBits(mbq.run), mbq.run.T)") - measured) < 1e-3
    assert f"{measured:.2f}" in page.inner_text(".mbq-cards")
    assert page.inner_text(".mbq-strip .mbq-sentence").startswith("At 3.5 bits")


def test_rethresholding_repeats_what_the_engine_did(open_page):
    page = open_page()
    page.click("#mbq-analyze")
    page.wait_for_function(DONE)
    assert page.evaluate(
        """() => { const run = mbq.run, again = mbq.depthsUnder(run, run.thresholds[0], null);
                   return run.depths.subarray(0, run.T * run.L).every((depth, i) => depth === again[i]); }"""
    )


def test_the_threshold_shown_is_the_one_that_decided(open_page):
    page = open_page()
    generate(page)
    moved, agree = page.evaluate(
        """() => { const run = mbq.run, { L, E, T } = run, seen = new Set(); let agree = true;
             for (let t = 0; t < T; t++) for (let l = 0; l < L; l++) {
               const threshold = mbq.thresholdOf(run, t, l); let depth = 1; seen.add(threshold);
               for (let e = 0; e < E; e++) depth += run.scores[(t * L + l) * E + e] > threshold;
               agree &&= depth === run.depths[t * L + l];
             }
             return [seen.size, agree]; }"""
    )
    assert agree and moved == 3  # the prompt's, and two that the budget controller swings between
    page.evaluate("mbq.pin({layer: 3, token: mbq.run.T - 1})")
    page.wait_for_selector(".mbq-linears tbody tr")
    wrong = page.evaluate(
        """() => [...document.querySelectorAll('.mbq-linears .line')].filter((line) => {
             const at = (e) => parseFloat(e.style.left), mark = at(line.querySelector('.threshold'));
             return [...line.querySelectorAll('.dot')].some((dot) => dot.classList.contains('on') !== at(dot) > mark);
           }).length"""
    )
    assert wrong == 0


def test_stop_ends_the_run_within_a_token(open_page, fake):
    page = open_page()
    fake.delay = 0.05
    try:
        page.click("#mbq-generate")
        page.wait_for_function("mbq.run.state === 'running' && mbq.run.T > 18")
        page.click("#mbq-stop")
        page.wait_for_function(DONE)
        assert page.evaluate("mbq.run.state") == "stopped"
        taken = fake.steps_taken
        time.sleep(0.3)
        assert fake.steps_taken == taken
    finally:
        fake.delay = 0.004


def test_a_closed_tab_frees_the_engine(open_page, fake):
    page = open_page()
    before, fake.delay = fake.steps_taken, 0.2
    try:
        page.click("#mbq-generate")
        page.wait_for_function("mbq.run.state === 'running'")
        page.close()
        taken = 0
        while taken != fake.steps_taken:
            taken = fake.steps_taken
            time.sleep(4 * fake.delay)
        assert taken - before < 64
    finally:
        fake.delay = 0.004


def test_pins_by_mouse_and_keyboard_fill_the_inspector(open_page):
    page = open_page()
    page.locator(".mbq-token").nth(5).click()
    assert page.evaluate("mbq.pinned") == {"layer": 9, "token": 5}
    page.wait_for_selector(".mbq-linears tbody tr")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("mbq.pinned") == {"layer": 8, "token": 6}
    page.wait_for_function("document.querySelector('.mbq-inspector h2').textContent.startsWith('Layer 8')")
    assert page.locator(".mbq-linears tbody tr").count() == 7
    assert page.locator(".mbq-next .row").count() == 5
    page.keyboard.press("Escape")
    assert page.evaluate("mbq.pinned") is None
    plot = page.locator(".mbq-map .mbq-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.evaluate("mbq.pinned && mbq.pinned.token > 0")


def test_the_inspector_is_filled_with_the_next_frame(open_page):
    page = open_page()
    page.wait_for_selector(".mbq-map .main-svg")
    assert page.evaluate(
        """async () => { mbq.pin({layer: 3, token: 7});
             for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
             return document.querySelector('.mbq-inspector h2').textContent.startsWith('Layer 3'); }"""
    )


def test_dragging_previews_and_releasing_runs(open_page):
    page = open_page()
    slider = page.locator("#mbq-budget input[type=range]")
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    for step in range(8):
        page.mouse.move(box["x"] + box["width"] * (0.3 + 0.05 * step), middle)
    page.wait_for_function("mbq.preview && mbq.preview.budget > 5")
    assert page.locator(".mbq-strip .mbq-badge").is_visible()
    assert page.evaluate("mbq.run.id") == "recorded"
    page.mouse.up()
    page.wait_for_function(DONE)
    assert page.evaluate("mbq.preview") is None
    assert not page.locator(".mbq-badge:visible").count()
    assert page.evaluate("mbq.run.meta.requestedBits") > 5


def test_a_typed_budget_runs_on_enter(open_page):
    page = open_page()
    page.fill("#mbq-budget input[type=number]", "6.5")
    page.press("#mbq-budget input[type=number]", "Enter")
    page.wait_for_function(DONE)
    assert page.evaluate("mbq.run.meta.requestedBits") == 6.5


def test_zoom_and_pin_survive_streaming(open_page):
    page = open_page()
    page.wait_for_selector(".mbq-map .js-plotly-plot, .mbq-map .mbq-plot.js-plotly-plot")
    page.evaluate("mbq.pin({layer: 4, token: 3})")
    page.click("#mbq-generate")
    page.wait_for_function("mbq.run.state === 'running' && mbq.run.T > 17")
    page.evaluate("Plotly.relayout(document.querySelector('.mbq-map .mbq-plot'), {'xaxis.range': [2, 12]})")
    page.wait_for_function(DONE)
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('.mbq-map .mbq-plot').layout.xaxis.range") == [2, 12]
    assert page.evaluate("mbq.pinned") == {"layer": 4, "token": 3}


def test_every_filter_and_value_draws(open_page):
    page = open_page()
    page.click("#mbq-analyze")
    page.wait_for_function(DONE)
    for value in ("score", "margin", "error", "bits"):
        page.locator(f".mbq-map input[value={value}]").check(force=True)
        for linears in ("attention", "mlp", "down_proj", "all"):
            page.locator(f".mbq-map input[value={linears}]").check(force=True)
            page.wait_for_timeout(60)
            assert page.evaluate("mbq.cells(mbq.run, mbq.filter).z.every(Number.isFinite)")


@pytest.mark.parametrize(("kind", "which"), [("run", 1), ("columns", 2)])
def test_a_lost_message_is_fetched_again(open_page, kind, which):
    page = open_page()
    page.evaluate(
        """([kind, which]) => { const receive = mbq.receive, lost = `"kind":"${kind}"`; let seen = 0;
             mbq.receive = (text) => { if (!text.includes(lost) || ++seen !== which) receive(text); }; }""",
        [kind, which],
    )
    generate(page)
    page.wait_for_function("mbq.run.T === 15 + 64")
    assert page.evaluate("mbq.run.texts.length === mbq.run.T && mbq.run.state === 'done'")


def test_an_answer_that_comes_late_does_not_bring_back_what_is_over(open_page):
    page = open_page()
    page.evaluate(
        """() => { const receive = mbq.receive;
             mbq.receive = (text) => { if (text.includes('"kind":"run"')) window.opening = text; receive(text); }; }"""
    )
    generate(page)
    page.evaluate("mbq.server = { resync: async () => window.opening }; mbq.resync(mbq.run.id)")
    assert page.evaluate("[JSON.parse(window.opening).state, mbq.run.state, mbq.run.T]") == ["running", "done", 15 + 64]


def test_bad_input_is_one_line_and_the_page_lives(open_page):
    page = open_page()
    page.fill("#mbq-prompt textarea", "   ")
    page.click("#mbq-generate")
    toast = page.wait_for_selector(".toast-body")
    assert "The prompt is empty" in toast.inner_text() and "Traceback" not in toast.inner_text()
    page.fill("#mbq-prompt textarea", "A bird")
    generate(page)


def test_hostile_text_is_shown_not_interpreted(open_page):
    page = open_page()
    page.evaluate("window.__pwned = undefined")
    payload = "<img/src=x/onerror=window.__pwned=1> <b>bold</b> $\\href{x}{y}$ ${7*7} {{7*7}}"
    page.fill("#mbq-prompt textarea", payload)
    generate(page)
    page.evaluate("mbq.pin({layer: 0, token: 1})")
    assert page.evaluate("window.__pwned") is None
    assert "<img/src=x/onerror=window.__pwned=1>" in page.locator(".mbq-token b").nth(1).inner_text()


def test_two_visitors_do_not_see_each_other(open_page):
    one, two = open_page(), open_page()
    one.fill("#mbq-prompt textarea", "canary alpha")
    two.fill("#mbq-prompt textarea", "canary omega")
    one.click("#mbq-generate")
    two.click("#mbq-generate")
    for page in (one, two):
        page.wait_for_function(DONE)
    assert "alpha" in one.inner_text(".mbq-strip") and "omega" not in one.inner_text(".mbq-strip")
    assert "omega" in two.inner_text(".mbq-strip") and "alpha" not in two.inner_text(".mbq-strip")


def test_four_visitors_with_four_budgets_keep_to_themselves(open_page):
    # Lengths differ, so that the fake engine's neighbouring token ids are none of the other words.
    wishes = {"alpha": 2.5, "bravobravo": 3.5, "charliecharliecharlie": 5.0, "deltadeltadeltadeltadelta": 7.0}
    pages = {}
    for word, bits in wishes.items():
        page = pages[word] = open_page()
        page.evaluate("""() => { window.heard = []; const receive = mbq.receive;
                                 mbq.receive = (text) => { window.heard.push(text); receive(text); }; }""")
        page.fill("#mbq-prompt textarea", f"canary {word}")
        page.evaluate("mbq.setBudget", bits)
    for page in pages.values():
        page.click("#mbq-generate")
    for word, page in pages.items():
        page.wait_for_function(DONE)
        heard = [text for text in page.evaluate("window.heard") if text]
        runs = {json.loads(text)["run"] for text in heard}
        assert len(runs) == 1 and page.evaluate("mbq.run.T") == 3 + 64
        assert page.evaluate("mbq.run.meta.requestedBits") == wishes[word]
        assert abs(page.evaluate("mbq.run.measured") - wishes[word]) < 0.5
        assert word in heard[0]
        assert not [other for other in wishes if other != word and any(other in text for text in heard)]
    assert len({page.evaluate("mbq.run.id") for page in pages.values()}) == 4


def test_a_changed_address_leaves_the_charts_alone(open_page):
    page = open_page()
    generate(page)
    page.evaluate("history.replaceState(null, '', '?changed=1')")
    page.wait_for_timeout(300)
    clips = page.evaluate(
        "[...document.querySelectorAll('.mbq-map [clip-path]')].map(e => e.getAttribute('clip-path'))"
    )
    assert clips and not [clip for clip in clips if "http" in clip]
