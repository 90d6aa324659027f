"""`generate`: text under a budget."""

import argparse
from typing import Any

import numpy as np

from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_budget, add_model
from mobiquant_core.loading import load_engine
from mobiquant_core.trace import token_bits


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("generate", help="text under a budget")
    add_model(parser)
    parser.add_argument("--prompt", required=True)
    add_budget(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    engine = load_engine(
        arguments.model, device=arguments.device, keep_reference=arguments.policy == "oracle",
        progress=ProgressPrinter(),
    )  # fmt: skip
    prompt = engine.encode(arguments.prompt)
    steps = list(
        engine.generate(
            prompt,
            budget=arguments.bits,
            policy=arguments.policy,
            mode=arguments.mode,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            seed=arguments.seed,
        )
    )
    quantized = engine.quantized
    depths = np.concatenate([step.columns.depths for step in steps], axis=1)
    bits = token_bits(depths, quantized.linear_infos, quantized.config.bits_by_depth)
    ids = [token for step in steps[1:] for token in step.columns.token_ids]
    texts = [text for step in steps for text in step.columns.token_texts]
    seconds = sum(step.seconds for step in steps[1:])
    rate = len(ids) / seconds if seconds else 0.0
    text = engine.decode(ids)
    data = {
        "text": text,
        "tokens": len(ids),
        "prompt_tokens": len(prompt),
        "policy": arguments.policy,
        "requested_bits": arguments.bits,
        "measured_bits": steps[-1].measured_bits,
        "tokens_per_second": rate,
        "token_bits": [
            {"text": piece, "bits": round(float(value), 4)} for piece, value in zip(texts, bits, strict=True)
        ],
    }
    summary = (
        f"{len(ids)} tokens, {steps[-1].measured_bits:.2f} bits per weight measured for {arguments.bits:g} "
        f"requested, {rate:.1f} tokens/s"
    )
    return Outcome(data, [arguments.prompt + text, "", summary])
