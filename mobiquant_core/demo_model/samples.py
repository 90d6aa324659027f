"""Continues twenty fixed prompts with the bundled model in full precision, for reading and for the model card.

The first three story prompts and the first three encyclopedia prompts go into the card, as they come.

    python -m mobiquant_core.demo_model.samples
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo_model"
STORIES = (
    "Once upon a time, there was a little girl named Lily who",
    "The old man looked at the sea and",
    "One day, a small dog found a",
    "“Where are you going?” asked the boy.",
    "It was a dark night, and the captain of the ship",
    "Tom and Anna went to the park with",
    "The king had three daughters, and the youngest",
    "She opened the letter slowly and",
    "There was once a poor miller who",
    "The train left the station, and the two travellers",
)
ENCYCLOPEDIA = (
    "The city of Vienna is",
    "The River Thames is",
    "Marie Curie was a",
    "World War II began",
    "In mathematics, a prime number",
    "The football club was founded in",
    "The album was released in 1998 and",
    "The species is found in",
    "The University of Oxford",
    "The railway line between",
)


@torch.inference_mode()
def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    # Any: the protocol that transformers types `generate` with rejects its own models (device is a property there).
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    for seed, prompt in enumerate(STORIES + ENCYCLOPEDIA):
        torch.manual_seed(seed)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=60, do_sample=True, temperature=0.7, top_k=50, pad_token_id=1)
        sys.stdout.write(f"--- seed {seed}\n{tokenizer.decode(out[0], skip_special_tokens=True)}\n")


if __name__ == "__main__":
    main()
