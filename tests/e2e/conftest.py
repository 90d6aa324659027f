"""A studio on the fake engine in a real Chromium; a test fails on any console error or foreign request."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))  # the fake engine lives beside the tests of the app
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from fake_engine import FakeEngine
from fake_migration import measure
from fake_surface import surface
from looking import SIZES

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000
"""Milliseconds that anything may take: what is asserted is that it comes, and a busy machine is slow."""


def pytest_collection_modifyitems(items) -> None:
    missing = pytest.mark.skip(reason=f"no Chromium at {CHROMIUM}: the page was not opened")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            # One worker owns the one server and browser; the other runs everything else beside it.
            item.add_marker(pytest.mark.xdist_group("browser"))
            if not CHROMIUM.exists():
                item.add_marker(missing)


@pytest.fixture(scope="session")
def fake() -> FakeEngine:
    return FakeEngine(delay=0.004)


@pytest.fixture(scope="session")
def address(fake: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running studio whose recorded run is a fake one."""
    from app.__main__ import serve
    from app.backend import Core
    from app.settings import Settings
    from mobiquant_core.trace import RunSettings
    from mobiquant_core.trace_file import save_trace

    folder = tmp_path_factory.mktemp("traces")
    steps = list(FakeEngine(delay=0).generate(fake.encode("Once upon a time"), budget=3.5, max_new_tokens=40))
    save_trace(
        fake.assemble(steps, RunSettings("fake", "generate", "router", "global", 3.5, 0, 0.8, 40)), folder / "a.json"
    )
    page, address = serve(Settings(port=0, traces=folder), Core(lambda *_: fake, measure, surface), block=False)
    yield address
    page.close()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # One process for all pages of a context, so that scripts are compiled once and not in every test.
        flags = ["--no-sandbox", "--process-per-site"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def contexts(browser, address: str) -> dict:
    """One of each size, kept with a page that nobody uses: it keeps the process, and what that has fetched."""
    made = {}
    for size, (width, height) in SIZES.items():
        made[size] = browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone")
        made[size].set_default_timeout(PATIENCE)
        made[size].new_page().goto(f"{address}theme.css")
    return made


@pytest.fixture
def open_page(contexts, address: str) -> Iterator:
    """Opens the studio in a size and ground; at the end nothing may have gone wrong in any opened page."""
    troubles: list[str] = []

    def watch(page) -> None:
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on("response", lambda r: troubles.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: troubles.append(f"foreign: {r.url}") if foreign(r.url) else None)

    def open_one(size: str = "desktop", ground: str = "light"):
        contexts[size].pages[0].evaluate("localStorage.clear()")
        page = contexts[size].new_page()
        watch(page)
        page.goto(f"{address}?__theme={ground}")
        page.wait_for_selector(".mbq-token")
        page.wait_for_function("mbq.status && mbq.status.state === 'live'")
        return page

    yield open_one
    for context in contexts.values():
        for page in context.pages[1:]:
            page.close()
    assert not troubles, "\n".join(troubles)


def foreign(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname not in ("127.0.0.1", "localhost")
