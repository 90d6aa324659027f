"""The memory ledger: bytes stored and bytes read per token, part by part, fp16 leftovers included.

It counts the format, not the process: neither a cache of dense weights nor an allocator's slack is in it, nor
the 8-bit planes that the captured step reads in place of an untied head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mobiquant_core.linear import MobiLinear
from mobiquant_core.routing import RuntimeSite

_HALF = 2
"""Bytes of a parameter that stays 16-bit: routers, embeddings, output head, norms, biases."""


@dataclass(frozen=True)
class LedgerRow:
    """One part of a model; `bytes_read` has one entry per depth: what decoding one token reads."""

    part: str
    weights: int
    bytes_stored: int
    bytes_read: tuple[int, ...]


def memory_ledger(
    model: nn.Module,
    embedding: Tensor,
    head: Tensor | None,
    linears: Iterable[MobiLinear],
    sites: Iterable[RuntimeSite],
) -> list[LedgerRow]:
    """Rows for slices, group metadata, corrections, routers, embeddings, output head, norms and the rest."""
    linears = list(linears)
    config = linears[0].config
    depths, total = config.depths, config.total_bits
    codes = sum(linear.weight.numel() for linear in linears)
    rows = [
        LedgerRow(
            "slices",
            sum(linear.weights for linear in linears),
            codes * total // 8,
            tuple(codes * bits // 8 for bits in config.bits_by_depth),
        )
    ]
    groups = sum(linear.weight_edge.numel() for linear in linears)
    rows.append(LedgerRow("group edges and steps", 2 * groups, 4 * groups, (4 * groups,) * depths))
    rows.append(_always_read("biases", [linear.bias for linear in linears if linear.bias is not None], depths))
    tables = [table for linear in linears for table in (linear.shift, linear.gain) if table is not None]
    stored = sum(table.nbytes for table in tables)
    # A token reads the row of its own depth.
    rows.append(
        LedgerRow("shifts and gains", sum(table.numel() for table in tables), stored, (stored // depths,) * depths)
    )
    routers = [parameter for site in sites if site.router is not None for parameter in site.router.parameters()]
    rows.append(_always_read("routers", routers, depths))
    return rows + _full_precision_rows(model, embedding, head, depths)


def _full_precision_rows(model: nn.Module, embedding: Tensor, head: Tensor | None, depths: int) -> list[LedgerRow]:
    table = _HALF * embedding.numel()
    rows = [LedgerRow("embeddings", embedding.numel(), table, (_HALF * embedding.shape[1],) * depths)]
    if head is not None:
        # A tied head is stored once, with the embeddings, yet all of it is read for every token.
        own = 0 if head is embedding else head.numel()
        rows.append(LedgerRow("output head", own, _HALF * own, (_HALF * head.numel(),) * depths))
    counted = {id(embedding), id(head)}
    counted |= {id(p) for module in model.modules() if isinstance(module, MobiLinear) for p in module.parameters()}
    rest = [p for p in model.parameters() if id(p) not in counted]
    rows.append(_always_read("norms and other", rest, depths))
    return rows


def _always_read(part: str, parameters: Sequence[Tensor], depths: int) -> LedgerRow:
    count = sum(parameter.numel() for parameter in parameters)
    return LedgerRow(part, count, _HALF * count, (_HALF * count,) * depths)
