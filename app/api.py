"""The one public endpoint, for `gradio_client`: a prompt and a budget in, a text and its bits out.

The same checks and limits as the page; no session and no stream.
"""

from collections.abc import Callable
from threading import Event
from typing import Any

import gradio as gr

from app.handlers import MODEL_WAIT_SECONDS, Studio, toast
from app.runner import batches
from app.validate import check, prompt_length
from mobiquant_core.errors import MobiQuantError
from mobiquant_core.trace import RunSettings, token_bits


def endpoint(studio: Studio) -> Callable:
    """The function that `gr.api` offers as /generate."""

    def generate(
        prompt: str,
        bits: float = 3.5,
        policy: str = "router",
        seed: int = 0,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
    ) -> dict:
        """Continue a prompt under a bit budget; returns text, requested and measured bits, and bits per token."""
        try:
            return _run(studio, (prompt, bits, policy, "global", seed, max_new_tokens, temperature))
        except MobiQuantError as error:
            raise toast(str(error)) from None

    return generate


def _run(studio: Studio, values: tuple[Any, ...]) -> dict:
    wish = check(studio.settings, "generate", *values)
    cancel = Event()
    engine = studio.slot.engine(cancel, MODEL_WAIT_SECONDS)
    ids = engine.encode(wish.prompt)
    prompt_length(len(ids), studio.settings)
    options = {"budget": wish.bits, "policy": wish.policy, "mode": wish.mode, "seed": wish.seed}
    options |= {"max_new_tokens": wish.max_new_tokens, "temperature": wish.temperature}
    with studio.slot.lock:
        stream = batches(
            lambda stopped: engine.generate(ids, cancel=stopped, **options),
            cancel,
            interval=0.5,
            seconds=studio.settings.run_seconds,
        )
        steps = [step for batch in stream for step in batch]
    asked = (wish.policy, wish.mode, wish.bits, wish.seed, wish.temperature, wish.max_new_tokens)
    trace = engine.assemble(steps, RunSettings(engine.model_name, "generate", *asked))
    spent = token_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    texts = trace.columns.token_texts
    return {
        "text": "".join(texts[trace.prompt_tokens :]),
        "requested_bits": wish.bits,
        "measured_bits": steps[-1].measured_bits,
        "tokens": [{"text": text, "bits": round(float(value), 3)} for text, value in zip(texts, spent, strict=True)],
        "tokens_per_second": round(trace.timing.tokens_per_second, 2),
    }


def offer(studio: Studio, queue: dict[str, Any]) -> None:
    """Adds the endpoint to the page under construction."""
    gr.api(endpoint(studio), api_name="generate", **queue)
