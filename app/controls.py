"""The controls above every tab: prompt and buttons, budget and policy, and settings that few people change.

They check nothing and draw nothing: every event goes straight to a handler.
"""

import gradio as gr

from app import examples
from app.handlers import ENGINE_QUEUE, Studio
from app.settings import Settings
from app.tabs.page import view
from app.validate import POLICIES

POLICY_LABELS = {
    "router": "router · per token",
    "layer": "layer · same for all tokens",
    "uniform": "uniform · same everywhere",
    "random": "random tokens",
    "norm": "input norm",
    "oracle": "oracle · true error (slow)",
}


def controls(studio: Studio, feed: gr.HTML) -> dict:
    """Builds and wires them; returns the inputs of a run by their names in a link."""
    with gr.Row(equal_height=True, elem_id="mbq-controls"):
        with gr.Column(scale=6, min_width=320, elem_classes="mbq-panel"):
            prompt, go, read, stop = _prompt_panel(studio.settings)
        with gr.Column(scale=4, min_width=300, elem_classes="mbq-panel"):
            bits, policy = _budget_panel(studio.settings)
            with gr.Accordion("More settings", open=False, elem_id="mbq-more"):
                seed, new_tokens, temperature, mode, on_release = _more_settings(studio.settings)
    run = [prompt, bits, policy, mode, seed, new_tokens, temperature]
    hidden = {"outputs": [feed], "show_progress": "hidden", "api_visibility": "private"}
    gr.on([go.click, prompt.submit], studio.generate, run, trigger_mode="multiple", **hidden, **ENGINE_QUEUE)
    bits.release(studio.generate_if, [on_release, *run], trigger_mode="always_last", **hidden, **ENGINE_QUEUE)
    read.click(studio.analyze, run[:4], trigger_mode="multiple", **hidden, **ENGINE_QUEUE)
    stop.click(studio.stop, queue=False, show_progress="hidden", api_visibility="private")
    named = {"prompt": prompt, "bits": bits, "policy": policy, "mode": mode, "seed": seed}
    return named | {"new_tokens": new_tokens, "temperature": temperature}


def _prompt_panel(settings: Settings) -> tuple[gr.Textbox, gr.Button, gr.Button, gr.Button]:
    prompt = gr.Textbox(
        value=examples.STORIES[0].text,
        label="Prompt",
        lines=2,
        max_lines=6,
        max_length=settings.max_prompt_characters,
        elem_id="mbq-prompt",
    )
    view("examples", height=34)
    with gr.Row(elem_id="mbq-actions"):
        go = gr.Button("Generate", variant="primary", elem_id="mbq-generate", min_width=110)
        read = gr.Button("Analyze text", elem_id="mbq-analyze", min_width=110)
        stop = gr.Button("Stop", variant="stop", elem_id="mbq-stop", min_width=80)
    return prompt, go, read, stop


def _budget_panel(settings: Settings) -> tuple[gr.Slider, gr.Dropdown]:
    bits = gr.Slider(
        settings.min_bits,
        settings.max_bits,
        value=3.5,
        step=0.1,
        label="Bit budget (average bits per weight)",
        elem_id="mbq-budget",
        buttons=[],
    )
    view("ticks", height=34)
    policy = gr.Dropdown(
        [(POLICY_LABELS[name], name) for name in POLICIES],
        value="router",
        label="Who decides: allocation policy",
        elem_id="mbq-policy",
        filterable=False,
    )
    return bits, policy


def _more_settings(settings: Settings) -> tuple[gr.Number, gr.Slider, gr.Slider, gr.Radio, gr.Checkbox]:
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="mbq-seed")
        new_tokens = gr.Slider(
            1, settings.max_new_tokens, 64, step=1, label="Max new tokens", buttons=[], elem_id="mbq-new-tokens"
        )
        temperature = gr.Slider(
            0, 2, 0.8, step=0.1, label="Temperature (0: always the likeliest)", buttons=[], elem_id="mbq-temperature"
        )
    with gr.Row():
        choices = [("one threshold for all", "global"), ("one per linear", "per_linear")]
        mode = gr.Radio(choices, value="global", label="Threshold")
        on_release = gr.Checkbox(True, label="Run when the budget slider is released", elem_id="mbq-on-release")
    return seed, new_tokens, temperature, mode, on_release
