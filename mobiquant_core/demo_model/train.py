"""Trains the bundled model from token files, in several short runs that resume one another.

It knows token ids and the model, nothing about text. The learning rate follows the share of the
training time that has passed, so a run ends well whatever the speed of the device.

    python -m mobiquant_core.demo_model.train --tokens FOLDER --state FILE --minutes 9 --stop-after 4
    python -m mobiquant_core.demo_model.train --tokens FOLDER --state FILE --minutes 9 --out FOLDER
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

BOS_ID, END_ID, VOCABULARY = 0, 1, 8192
WINDOW = 512
EVALUATION_WINDOWS = 512


@dataclass(frozen=True)
class Recipe:
    """What is trained and how."""

    hidden: int = 512
    layers: int = 10
    feed_forward: int = 1536
    heads: int = 8
    key_value_heads: int = 4
    windows_per_step: int = 256
    muon_rate: float = 3e-3
    adam_rate: float = 3e-3
    weight_decay: float = 0.1
    warm_up: float = 0.02
    seed: int = 0


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=END_ID,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def load_tokens(folder: Path) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, int]]]:
    """(all training ids, {kind: (held-out ids, their bytes)})."""
    training = np.concatenate([np.load(path) for path in sorted(folder.glob("*.train.npy"))])
    held_out: dict[str, tuple[np.ndarray, int]] = {}
    for path in sorted(folder.glob("*.held-out-*.npy")):
        kind, size = path.name.split("-")[0].split(".")[0], int(path.stem.rsplit("-", 1)[1])
        ids, total = held_out.get(kind, (np.zeros(0, np.uint16), 0))
        held_out[kind] = (np.concatenate([ids, np.load(path)]), total + size)
    return training, held_out


class Windows:
    """Windows of BOS and 511 consecutive training tokens: every pass cuts at other places, in another order."""

    def __init__(self, ids: np.ndarray, seed: int, device: torch.device) -> None:
        self.ids = torch.from_numpy(ids.astype(np.int16)).to(device)
        self.generator = np.random.default_rng(seed)
        self.starts: Int[Tensor, " windows"] = torch.zeros(0, dtype=torch.long, device=device)
        self.passes = 0

    def next(self, count: int) -> Int[Tensor, "count 512"]:
        if len(self.starts) < count:
            first = int(self.generator.integers(WINDOW - 1))
            starts = np.arange(first, len(self.ids) - WINDOW, WINDOW - 1)
            self.generator.shuffle(starts)
            self.starts = torch.from_numpy(starts).to(self.ids.device)
            self.passes += 1
        chosen, self.starts = self.starts[:count], self.starts[count:]
        offsets = torch.arange(WINDOW - 1, device=self.ids.device)
        tokens = self.ids[chosen[:, None] + offsets].long()
        return torch.nn.functional.pad(tokens, (1, 0), value=BOS_ID)


def held_out_windows(ids: np.ndarray, device: torch.device) -> Int[Tensor, "windows 512"]:
    count = min(len(ids) // (WINDOW - 1), EVALUATION_WINDOWS)
    tokens = torch.from_numpy(ids[: count * (WINDOW - 1)].astype(np.int64)).view(count, WINDOW - 1)
    return torch.nn.functional.pad(tokens, (1, 0), value=BOS_ID).to(device)


def token_loss(model: torch.nn.Module, windows: Int[Tensor, "batch 512"]) -> Tensor:
    with torch.autocast(windows.device.type, torch.bfloat16):
        logits = model(input_ids=windows, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, held_out: dict[str, tuple[np.ndarray, int]], device: torch.device) -> dict:
    """Loss and bits per byte of each kind of held-out text. Bytes per token are those of the whole held-out set."""
    figures = {}
    for kind, (ids, size) in held_out.items():
        batches = held_out_windows(ids, device).split(64)
        nats = sum(float(token_loss(model, batch)) * len(batch) for batch in batches) / sum(map(len, batches))
        figures[kind] = {"loss": nats, "bits_per_byte": nats / math.log(2) * len(ids) / size}
    return figures


@torch.no_grad()
def massive_activation(model: LlamaForCausalLM, windows: Int[Tensor, "batch 512"]) -> dict[str, float]:
    """Largest residual magnitude over the median, at the middle layer, and the share of maxima at position 0."""
    states = model.model(input_ids=windows, use_cache=False, output_hidden_states=True).hidden_states
    magnitude = states[len(states) // 2].float().abs()
    at_first = (magnitude.amax(-1).argmax(-1) == 0).float().mean()
    return {"max_over_median": float(magnitude.max() / magnitude.median()), "maximum_at_first": float(at_first)}


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def rate_at(progress: float, warm_up: float) -> float:
    """Share of the peak learning rate: linear rise, flat to 40 % of the time, linear fall to 0."""
    if progress < warm_up:
        return progress / warm_up
    return min(1.0, max(0.0, (1.0 - progress) / 0.6))


class Run:
    """The state that a later run resumes: model, optimizers, data order, time spent, log."""

    def __init__(self, recipe: Recipe, tokens: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model = build_model(recipe)
        torch.nn.Module.to(self.model, device)
        self.optimizers = optimizers(self.model, recipe)
        training, self.held_out = load_tokens(tokens)
        self.windows = Windows(training, recipe.seed, device)
        self.seconds, self.steps, self.log = 0.0, 0, []

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "windows": (self.windows.starts.cpu(), self.windows.passes, self.windows.generator.bit_generator.state),
            "progress": (self.seconds, self.steps, self.log),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        # Our own file of this very training; weights_only keeps it free of code.
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        starts, self.windows.passes, self.windows.generator.bit_generator.state = state["windows"]
        self.windows.starts = starts.to(self.device)
        self.seconds, self.steps, self.log = state["progress"]

    def train(self, minutes: float, stop_after: float, compile_model: bool) -> None:
        """Trains until `minutes` of training in all, or `stop_after` minutes of this call, have passed."""
        step_loss = torch.compile(token_loss, dynamic=False) if compile_model else token_loss
        for _ in range(2 if self.steps == 0 else 0):  # compilation is not training time
            step_loss(self.model, self.windows.next(self.recipe.windows_per_step)).backward()
            self.model.zero_grad(set_to_none=True)
        start, before, report_at = time.perf_counter(), self.seconds, self.seconds + 45
        while self.seconds < minutes * 60 and self.seconds - before < stop_after * 60:
            rate = rate_at(self.seconds / (minutes * 60), self.recipe.warm_up)
            loss = step_loss(self.model, self.windows.next(self.recipe.windows_per_step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.steps += 1
            if self.steps % 10 == 0:
                training_loss = loss.item()
                self.seconds = before + time.perf_counter() - start
                if self.seconds > report_at:
                    self.report(training_loss)
                    report_at = self.seconds + 45
        self.report(loss.item())

    def report(self, training_loss: float) -> None:
        entry = {
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "tokens": self.steps * self.recipe.windows_per_step * WINDOW,
            "passes": self.windows.passes,
            "training_loss": round(training_loss, 4),
            "held_out": evaluate(self.model, self.held_out, self.device),
            "massive": massive_activation(self.model, self.windows.next(8)),
        }
        self.log.append(entry)
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="minutes of this run")
    parser.add_argument("--out", type=Path, help="folder for the finished 16-bit model and the training log")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(Recipe(), arguments.tokens, device)
    if arguments.state.exists():
        run.load(arguments.state)
    run.train(arguments.minutes, arguments.stop_after, not arguments.no_compile)
    run.save(arguments.state)
    if arguments.out is not None:
        torch.nn.Module.to(run.model, torch.bfloat16)
        run.model.save_pretrained(arguments.out, max_shard_size="28MB")
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        record = {"recipe": asdict(run.recipe), "device": name, "torch": torch.__version__, "log": run.log}
        (arguments.out / "training_log.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
