"""The page: header, controls and tabs, and which handler answers which control.

No arithmetic and no drawing. To add a tab, write `tabs/<name>.py` with a `TAB` and put it into `TABS`.
"""

import hashlib
from pathlib import Path

import gradio as gr
import plotly

from app import examples
from app.api import offer
from app.controls import POLICY_LABELS, controls
from app.handlers import ENGINE_QUEUE, Studio, dumps
from app.links import FIELDS, opener
from app.tabs import allocate, compare, lab, learn, migration, models, outliers
from app.tabs.page import Page, server_function, view
from app.views import activations, allocation, theme
from app.views import compare as compare_view
from app.views import migration as migration_view

TABS = (allocate.TAB, compare.TAB, migration.TAB, outliers.TAB, lab.TAB, learn.TAB, models.TAB)
STATIC = Path(__file__).parent / "static"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# The store first, then what drawings share; the drawings themselves in any order.
SHARED_SCRIPTS = ("store.js", "aggregate.js", "palette.js", "dom.js", "plot.js")


def build(studio: Studio, opening: str) -> gr.Blocks:
    """The whole page. `opening` is the recorded run's message, drawn before any model is there."""
    with gr.Blocks(
        analytics_enabled=False, title="MoBiQuant Studio", fill_width=True, delete_cache=(3600, 3600)
    ) as page:
        view("header", height=56)
        feed = gr.HTML(
            value=opening,
            html_template="<span></span>",
            js_on_load="(window.mbqMounts ??= []).push(['feed', element, {props, watch, trigger, server}]); "
            "window.mbq?.ready && window.mbq.mountAll();",
            server_functions=[server_function("status", studio.status), server_function("resync", studio.resync)],
            elem_id="mbq-feed",
            elem_classes=["mbq-unseen"],
            apply_default_css=False,
        )
        # Before the page's own events, whose functions have the same names: this one is the public /generate.
        offer(studio, ENGINE_QUEUE)
        inputs = controls(studio, feed)
        view("cards", height=78)
        view("replay")
        frame = Page(studio, feed, inputs)
        with gr.Tabs(elem_id="mbq-tabs") as tabs:
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.id, elem_id=f"mbq-tab-{tab.id}", render_children=True):
                    tab.build(frame)
        view("footer")
        page.load(
            opener(studio.settings, tuple(tab.id for tab in TABS)),
            outputs=[*(inputs[name] for name in FIELDS), tabs],
            show_progress="hidden",
            api_visibility="private",
        )
        page.unload(studio.close)
    page.queue(max_size=studio.settings.queue_size, api_open=False, default_concurrency_limit=8)
    return page


def studio_theme() -> gr.themes.Base:
    """Calm and flat; the fonts are those that Gradio ships, so nothing is fetched."""
    # The 600 weight that Gradio ships lacks most letters; regular and bold are whole.
    text = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    mono = gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700))
    base = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="sm",
        text_size="md",
        font=[text, "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[mono, "ui-monospace", "Consolas", "monospace"],
    )
    return base.set(
        body_background_fill="#f5f7f9",
        body_background_fill_dark="#0f1419",
        body_text_color=theme.LIGHT["ink"],
        body_text_color_dark=theme.DARK["ink"],
        block_background_fill="#ffffff",
        block_background_fill_dark="#161d24",
        block_border_color="#dfe4e9",
        block_border_color_dark="#27313b",
        block_shadow="none",
        button_primary_background_fill=theme.LIGHT["accent"],
        button_primary_background_fill_dark="#2a6ca6",
        button_primary_background_fill_hover="#17548a",
        button_primary_background_fill_hover_dark="#3279b6",
        button_primary_text_color="#ffffff",
        slider_color=theme.LIGHT["accent"],
        slider_color_dark=theme.DARK["accent"],
    )


def page_head() -> str:
    """One inline script for the document head: settings, then every drawing in order.

    Gradio inserts head scripts in the browser, where separate files would run in order of arrival.
    """
    shared = [STATIC / name for name in SHARED_SCRIPTS]
    last = STATIC / "boot.js"
    drawings = sorted(path for path in STATIC.glob("*.js") if path not in (*shared, last))
    code = "\n".join(path.read_text("utf-8") for path in (*shared, *drawings, last))
    return f"<script>window.MBQ_CONFIG={dumps(page_config())};\n{code}</script>"


def address(path: Path) -> str:
    """Where a static file is served; the digest makes a changed file a new address."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"gradio_api/file={path}?v={digest}"


def page_config() -> dict:
    """What the drawings need to know and Python decides: palettes, layouts, examples."""
    return {
        "grounds": theme.GROUNDS,
        "fonts": {"text": theme.FONT, "mono": theme.MONO},
        "examples": [[example.kind, example.name, example.text] for example in examples.ALL],
        "policies": POLICY_LABELS,
        "tabs": {tab.id: tab.title for tab in TABS},
        "plotly": address(PLOTLY),
        "layouts": {
            "map": {str(layers): allocation.layout(layers) for layers in (4, 10, 16, 24, 32, 48, 80)},
            **activations.layouts(),
            **migration_view.layouts(),
            **compare_view.layouts(),
        },
    }


def launch_options() -> dict:
    """Hardened defaults: this machine only, no tunnel, no upload, no history, no monitoring."""
    gr.set_static_paths([PLOTLY])
    return {
        "share": False,
        "ssr_mode": False,
        "run_history": False,
        "footer_links": [],
        "show_error": False,
        "max_file_size": "1mb",
        "allowed_paths": [],
        "state_session_capacity": 50,
        "max_threads": 24,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "strict_cors": True,
        "theme": studio_theme(),
        "css_paths": sorted(STATIC.glob("*.css")),
        "head": page_head(),
        "quiet": True,
    }
