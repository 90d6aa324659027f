"""Conversion in place: names, order, folding, refusals, the memory ledger."""

import pytest
import torch

from mobiquant_core.architectures import PROJECTIONS
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, quantize_model
from mobiquant_core.errors import CheckpointError, UnsupportedModelError
from mobiquant_core.routing import FixedDepth

IDS = torch.randint(2, 8192, (1, 24), generator=torch.Generator().manual_seed(0))


def _logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def _distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_more_slices_come_closer_and_the_order_is_canonical(tiny_model):
    expected, messages = _logits(tiny_model), []
    quantized = quantize_model(tiny_model, progress=lambda message, share: messages.append(share))
    distances = []
    for depth in range(1, 5):
        with FixedDepth(depth):
            distances.append(_distance(_logits(tiny_model), expected))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.02
    assert [info.projection for info in quantized.linear_infos] == list(PROJECTIONS) * 2
    assert [linear.index for linear in quantized.linears] == list(range(14))
    assert messages == sorted(messages) and len(messages) == 8


@pytest.mark.parametrize("slice_bits", [(3,), (4, 4), (1, 1, 2)])
def test_other_slice_lists_run(tiny_model, slice_bits):
    quantized = quantize_model(tiny_model, MobiQuantConfig(slice_bits))
    plan = quantized.plan(slice_bits[0], "uniform")
    with quantized.routing_pass(plan):
        assert torch.isfinite(_logits(tiny_model)).all()


def test_a_quantized_model_can_be_taken_up_again(tiny_model):
    first = quantize_model(tiny_model)
    again = QuantizedModel(tiny_model, first.config)
    assert again.linear_infos == first.linear_infos


def test_a_model_that_is_not_quantized_is_refused(tiny_model):
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj"):
        QuantizedModel(tiny_model, MobiQuantConfig())


def test_unknown_architectures_are_refused(tiny_model):
    tiny_model.config.model_type = "abacus"
    with pytest.raises(UnsupportedModelError, match="abacus"):
        quantize_model(tiny_model)


def test_a_damaged_weight_is_named(tiny_model):
    tiny_model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        quantize_model(tiny_model)


def test_input_scales_leave_the_model_as_it_was(tiny_model):
    expected = _logits(tiny_model)
    scale = torch.rand(256, generator=torch.Generator().manual_seed(0)) + 0.5
    scales = {"layers.0.attention_input": scale, "layers.1.mlp_input": scale}
    quantize_model(tiny_model, calibration=Calibration(MobiQuantConfig(), input_scales=scales))
    assert _distance(_logits(tiny_model), expected) < 0.02


def test_a_calibration_of_other_slices_is_refused(tiny_model):
    with pytest.raises(CheckpointError):
        quantize_model(tiny_model, calibration=Calibration(MobiQuantConfig((4, 4))))


def test_ledger_counts_every_parameter_once(tiny_model):
    parameters = sum(parameter.numel() for parameter in tiny_model.parameters())
    quantized = quantize_model(tiny_model)
    rows = {row.part: row for row in quantized.memory_ledger()}
    groups = rows["group edges and steps"]
    assert sum(row.weights for row in rows.values()) - groups.weights == parameters
    # 344 columns are padded to 384, and the padding is stored too.
    assert rows["slices"].bytes_stored == sum(linear.weight.numel() for linear in quantized.linears)
    # The model is held in fp32 here; the format keeps these parts in 16 bits.
    assert rows["embeddings"].bytes_stored == 2 * 8192 * 256
    assert rows["slices"].bytes_read[0] * 4 == rows["slices"].bytes_read[3]
    assert (
        rows["output head"].bytes_stored == 0 and rows["output head"].bytes_read[0] == rows["embeddings"].bytes_stored
    )
