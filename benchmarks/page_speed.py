"""How quick the page is, in a real Chromium against a real server on the bundled model; one JSON object last.

Start of the server, first strip and first map after opening, frames of a what-if drag and click to inspector on a
synthetic trace of 32 layers x 512 tokens, longest block of the page's main thread while 512 tokens stream in.

    python -m benchmarks.page_speed [--out benchmarks/results/page_speed.json] [--openings 5]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from app import wire
from mobiquant_core.trace import Columns, LinearInfo, RunSettings, Timing, Trace

PORT = 7992
ADDRESS = f"http://127.0.0.1:{PORT}/"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = (4096 * 4096, 4096 * 1024, 4096 * 1024, 4096 * 4096, 4096 * 14336, 4096 * 14336, 4096 * 14336)
PROMPT_TOKENS = 16
DRAG_SECONDS = 4

WATCH = """
window.seen = {};
window.blocks = [];
new PerformanceObserver((list) => { for (const e of list.getEntries()) window.blocks.push([e.startTime, e.duration]); })
  .observe({ type: 'longtask', buffered: true });
const look = () => {
  const note = (name, there) => { if (!(name in window.seen) && there) window.seen[name] = performance.now(); };
  const overlay = document.querySelector('.mbq-map .mbq-overlay');
  note('strip', document.querySelector('.mbq-token'));
  note('map', overlay && !overlay.hidden && overlay.width > 300);
  note('chart', document.querySelector('.mbq-map .main-svg'));
  if (!window.seen.chart) requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
DRAG = """async (seconds) => {
  const start = performance.now(); let frames = 0, longest = 0, last = start;
  mbq.on('depths', () => {
    const now = performance.now();
    frames++; longest = Math.max(longest, now - last); last = now;
  });
  for (let now = start; now - start < 1000 * seconds; now = performance.now()) {
    mbq.setPreview(2.5 + 5 * Math.abs(Math.sin((now - start) / 700)));
    await new Promise(requestAnimationFrame);
  }
  return { frames_per_second: 1000 * frames / (performance.now() - start), longest_gap_ms: longest };
}"""
CLICK = """async (at) => {
  const start = performance.now();
  mbq.pin(at);
  const title = document.querySelector('.mbq-inspector h2'), layer = `Layer ${at.layer} `;
  while (!title.textContent.startsWith(layer)) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
STREAM = """async ([messages, interval]) => {
  window.blocks.length = 0;
  for (const message of messages) { mbq.receive(message); await new Promise((next) => setTimeout(next, interval)); }
  await new Promise((next) => setTimeout(next, 600));
  return { tokens: mbq.run.T, longest_block_ms: Math.max(0, ...window.blocks.map((block) => block[1])) };
}"""


def synthetic_trace(layers: int, tokens: int) -> Trace:
    """Random scores with the shapes of a real run; named so that nobody takes it for one."""
    generator = np.random.default_rng(0)
    linears = [LinearInfo(i, name, size) for i in range(layers) for name, size in zip(PROJECTIONS, SIZES, strict=True)]
    scores = -np.sort(-generator.normal(size=(len(linears), tokens, 3)), axis=-1).astype(np.float32)
    grid = np.linspace(2, 8, 121, dtype=np.float32)
    limits = np.r_[np.inf, np.quantile(scores, 1 - (grid[1:-1] - 2) / 6), -np.inf].astype(np.float32)
    threshold = float(np.interp(3.5, grid[1:-1], limits[1:-1]))
    magnitude = generator.uniform(1, 60, (layers + 1, tokens)).astype(np.float32)
    columns = Columns(
        token_ids=list(range(tokens)),
        token_texts=[f" word{index % 97}" for index in range(tokens)],
        depths=(1 + (scores > threshold).sum(-1)).astype(np.uint8),
        scores=scores,
        residual_max=magnitude,
        residual_top3=np.stack([magnitude, magnitude / 2, magnitude / 3], axis=-1),
        residual_median=magnitude / 9,
        top_ids=np.zeros((tokens, 5), np.int32),
        top_texts=[list("abcde")] * tokens,
        top_probabilities=np.full((tokens, 5), 0.1, np.float32),
        loss=np.ones(tokens, np.float32),
        thresholds=np.full((1, tokens), threshold, np.float32),
    )
    settings = RunSettings("synthetic scores, no model", "generate", "router", "global", 3.5, 0, 0.0, tokens)
    thresholds = np.full(len(linears), threshold, np.float32)
    timing = Timing(0.1, [0.02] * (tokens - PROMPT_TOKENS))
    machine = {"device": "synthetic"}
    return Trace(settings, linears, (2, 4, 6, 8), thresholds, grid, limits, PROMPT_TOKENS, columns, timing, machine)


def part_of(columns: Columns, start: int, stop: int) -> Columns:
    """The columns of tokens start to stop."""
    along_one = ("depths", "scores", "residual_max", "residual_top3", "residual_median", "thresholds")
    along_zero = ("token_ids", "token_texts", "top_ids", "top_texts", "top_probabilities", "loss")
    cut = {name: getattr(columns, name)[:, start:stop] for name in along_one}
    return Columns(**cut, **{name: getattr(columns, name)[start:stop] for name in along_zero})


def stream_messages(trace: Trace, tokens_per_message: int) -> list[str]:
    """The messages in which such a run would reach the page."""
    whole, name = trace.columns, "synthetic stream"
    opened = Trace(**{**vars(trace), "columns": part_of(whole, 0, PROMPT_TOKENS), "timing": Timing(0.1)})
    messages = [wire.run_message(opened, name, 0, state="running", measured=3.5)]
    for start in range(PROMPT_TOKENS, trace.tokens, tokens_per_message):
        columns = wire.columns_of(part_of(whole, start, min(start + tokens_per_message, trace.tokens)))
        body = {
            "kind": "columns",
            "run": name,
            "seq": len(messages),
            "measured": 3.5,
            "start": start,
            "parts": [columns],
        }
        messages.append(json.dumps(body | {"timing": {"decode": [0.02] * columns["n"]}}))
    return [*messages, wire.done_message(name, len(messages), 3.5, "done", [])]


def server_cost(trace: Trace) -> dict[str, Any]:
    """What building the views' messages costs the server per token: the whole stream, one token a message."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        stream_messages(trace, 1)
        seconds.append(time.perf_counter() - begun)
    each = 1000 * statistics.median(seconds) / trace.tokens
    return {"trace": "synthetic, 32 layers x 512 tokens x 7 linears", "milliseconds_per_token": round(each, 3)}


def opened(browser: Browser) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(WATCH)
    page.goto(ADDRESS)
    page.wait_for_function("window.seen.chart && mbq.status && mbq.status.state === 'live'", timeout=120_000)
    return page


def openings(browser: Browser, count: int) -> dict[str, Any]:
    """Milliseconds from opening the address, each in a fresh profile without a cache."""
    rows = []
    for _ in range(count):
        page = opened(browser)
        rows.append(page.evaluate("window.seen"))
        page.context.close()
    times = {name: [round(row[name]) for row in rows] for name in ("strip", "map", "chart")}
    return {name: {"median_ms": round(statistics.median(all_)), "runs_ms": all_} for name, all_ in times.items()}


def measured(browser: Browser, count: int) -> dict[str, Any]:
    result: dict[str, Any] = {"first_picture_from_opening": openings(browser, count)}
    page = opened(browser)
    trace = synthetic_trace(32, 512)
    page.evaluate("mbq.receive", wire.run_message(trace, "synthetic", 0, state="done", measured=3.5))
    page.wait_for_timeout(1500)
    drag = {"trace": "synthetic, 32 layers x 512 tokens x 7 linears"} | page.evaluate(DRAG, DRAG_SECONDS)
    result["what_if_drag"] = {
        key: round(value, 1) if isinstance(value, float) else value for key, value in drag.items()
    }
    page.evaluate("mbq.setPreview(null)")
    page.wait_for_timeout(800)
    clicks = [page.evaluate(CLICK, {"layer": 3 + step, "token": 40 * step + 7}) for step in range(9)]
    result["click_to_inspector_ms"] = {"median": round(statistics.median(clicks), 1), "largest": round(max(clicks), 1)}
    page.context.close()
    page = opened(browser)
    messages = stream_messages(synthetic_trace(10, 512), 2)
    streamed = page.evaluate(STREAM, [messages, 1000 / 12])
    result["streaming"] = {"trace": "synthetic, 10 layers, 2 tokens a message, 12 messages/s"} | streamed
    page.context.close()
    return result


def started() -> tuple[subprocess.Popen, float]:
    """The studio as `python -m app` starts it, and the seconds until it serves the page."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "app", "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
    while server.poll() is None:
        try:
            with urllib.request.urlopen(ADDRESS, timeout=2):
                return server, time.perf_counter() - begun
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"The studio did not start; is port {PORT} free?")


def machine(browser: Browser) -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: version(name) for name in ("gradio", "plotly", "playwright", "torch")}
        | {"chromium": browser.version, "python": platform.python_version()},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--openings", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        result: dict[str, Any] = {"benchmark": "page_speed"} | machine(browser)
        server, seconds = started()
        try:
            result["server_start_seconds"] = round(seconds, 2)
            # The model loads meanwhile; what is measured afterwards is the page alone.
            opened(browser).context.close()
            result |= measured(browser, arguments.openings)
            result["server_cost"] = server_cost(synthetic_trace(32, 512))
            result["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
        finally:
            server.terminate()
            server.wait()
            browser.close()
    line = json.dumps(result)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(line)


if __name__ == "__main__":
    main()
