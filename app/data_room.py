"""What the page may ask outside the queue: statistics of a run, files of it, the memory ledger.

Every function takes one JSON value from the browser, trusts nothing in it, and answers in milliseconds. A run is
named by its unguessable id. Nothing here uses the model's forward pass.
"""

from typing import Any

from app import export
from app.handlers import Studio
from app.session import Run, new_run_id
from app.validate import one_of
from app.views import allocation, budget_curve, compare, layer_projection, router_scores, token_kinds
from mobiquant_core.errors import MobiQuantError, PromptError
from mobiquant_core.trace import Trace, average_bits
from mobiquant_core.trace_file import SIZE_LIMIT, dump_trace, parse_trace

UNTOUCHED = ("biases", "embeddings", "output head", "norms and other", "biases")
"""Parts of the ledger that are the same in the 16-bit model."""
FORMATS = {"csv": "text/csv", "json": "application/json", "html": "text/html"}


class DataRoom:
    """Read-only questions about runs and the loaded model."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def lab(self, asked: Any) -> dict:
        """Figures and sentences of the Router lab for one run."""
        return _answered(lambda: self._lab(self._trace(asked)))

    def export(self, asked: Any) -> dict:
        """One file of one run: {name, mime, text}."""
        return _answered(lambda: self._export(asked))

    def ledger(self, _asked: Any = None) -> dict:
        """Bytes stored and read, part by part, of the loaded model; nothing while there is none."""
        return _answered(self._ledger)

    def opened(self, text: Any) -> Run:
        """The run in the text of a run file; strict, and limited in size before anything is parsed."""
        if not isinstance(text, str) or not text.isascii():
            raise PromptError("This is no run file of the studio. Choose a file saved with “Run file”.")
        if len(text) > SIZE_LIMIT:
            raise PromptError(f"This file has {len(text):,} bytes; a run file has at most {SIZE_LIMIT:,}.")
        trace = parse_trace(text.encode("ascii"), "This file")
        measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
        return Run(new_run_id(), trace, "recorded", measured)

    def _trace(self, asked: Any) -> Trace:
        return self.studio.shown(asked if isinstance(asked, dict) else {})[1]

    @staticmethod
    def _lab(trace: Trace) -> dict:
        scores, layers, kinds = router_scores.data(trace), layer_projection.data(trace), token_kinds.data(trace)
        measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
        loss, reference = compare.mean(trace.columns.loss), compare.mean(trace.columns.reference_loss)
        return {
            "scores": {"figure": router_scores.figure(scores), "sentence": router_scores.sentence(scores)},
            "layers": {"figure": layer_projection.figure(layers), "sentence": layer_projection.sentence(layers)},
            "kinds": {"figure": token_kinds.figure(kinds), "sentence": token_kinds.sentence(kinds)},
            "point": {"bits": measured, "lossAbove": None if loss is None or reference is None else loss - reference},
        }

    def _export(self, asked: Any) -> dict:
        kind = one_of(asked.get("format") if isinstance(asked, dict) else None, "The format", tuple(FORMATS))
        trace = self._trace(asked)
        name = f"mobiquant-{trace.settings.policy}-{trace.settings.requested_bits:.1f}bit"
        if kind == "csv":
            text = export.csv_text(trace, name)
        elif kind == "json":
            text = dump_trace(trace).decode("ascii")
        else:
            text = self._page(trace)
        return {"name": f"{name}.{kind}", "mime": FORMATS[kind], "text": text}

    def _page(self, trace: Trace) -> str:
        lab = self._lab(trace)
        figures = [("Bits by layer and token", "", allocation.figure(allocation.data(trace)))]
        for key, heading in (
            ("scores", "Scores and threshold"),
            ("layers", "Average bits by layer and linear"),
            ("kinds", "Bits by kind of token"),
        ):
            figures.append((heading, lab[key]["sentence"], lab[key]["figure"]))
        curve = budget_curve.read_results(self.studio.settings.results)
        if curve.policies:
            figures.append(("Quality against bits", budget_curve.sentence(curve), budget_curve.figure(curve)))
        return export.html_page("MoBiQuant run", _facts(trace), figures)

    def _ledger(self) -> dict:
        engine = self.studio.slot.peek()
        quantized = getattr(engine, "quantized", None)
        if quantized is None or not hasattr(quantized, "memory_ledger"):
            raise PromptError("The ledger is filled when the model is loaded.")
        rows = [_row(row) for row in quantized.memory_ledger()]
        return {"model": engine.model_name, "bits": list(quantized.config.bits_by_depth), "rows": rows}


def _row(row: Any) -> dict:
    """A row of the ledger; `whole` is what the 16-bit model reads for it."""
    read = list(row.bytes_read)
    whole = 2 * row.weights if row.part == "slices" else read[0] if row.part in UNTOUCHED else 0
    return {"part": row.part, "weights": row.weights, "stored": row.bytes_stored, "read": read, "whole": whole}


def _facts(trace: Trace) -> dict[str, str]:
    settings = trace.settings
    measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    facts = {
        "model": settings.model,
        "policy": settings.policy,
        "bits": f"{settings.requested_bits:g} asked, {measured:.3f} measured over {trace.tokens} tokens",
        "seed": str(settings.seed),
        "text": "".join(trace.columns.token_texts),
    }
    return facts | {name: str(value) for name, value in trace.machine.items()}


def _answered(work: Any) -> dict:
    """An error of ours becomes one line for the page; anything else is a fault and stays one."""
    try:
        return work()
    except MobiQuantError as error:
        return {"error": str(error)}
