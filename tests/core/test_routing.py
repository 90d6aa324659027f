"""Depths of a call: where they come from, and that two calls never see each other's."""

import threading

import pytest
import torch

from mobiquant_core.convert import quantize_model
from mobiquant_core.errors import BudgetError
from mobiquant_core.routing import FixedDepth, Recorder, current_pass, full_depth
from mobiquant_core.trace import average_bits

BITS = (2, 4, 6, 8)


@pytest.fixture
def quantized(tiny_model):
    return quantize_model(tiny_model)


def _ids(tokens=32, seed=0):
    return torch.randint(2, 8192, (1, tokens), generator=torch.Generator().manual_seed(seed))


def _run(quantized, plan, ids, position=0):
    recorder = Recorder()
    with torch.inference_mode(), quantized.routing_pass(plan, position, recorder):
        logits = quantized.model(ids, use_cache=False).logits
    return logits, recorder


def test_uniform_at_whole_depths_is_fixed_depth(quantized):
    ids = _ids()
    for depth, bits in enumerate(BITS, start=1):
        with torch.inference_mode(), FixedDepth(depth):
            expected = quantized.model(ids, use_cache=False).logits
        logits, recorder = _run(quantized, quantized.plan(bits, "uniform"), ids)
        assert torch.equal(logits, expected)
        assert (recorder.arrays()[0] == depth).all()


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize(("bits", "depth"), [(2.0, 1), (8.0, 4)])
def test_at_both_ends_every_token_gets_the_same_depth_however_many_there_are(quantized, bits, depth, tokens):
    ids = _ids(tokens)
    logits, recorder = _run(quantized, quantized.plan(bits, "random"), ids)
    with torch.inference_mode(), FixedDepth(depth):
        assert torch.allclose(logits, quantized.model(ids, use_cache=False).logits, atol=1e-5)
    depths, scores = recorder.arrays()
    assert depths.shape == (14, tokens) and (depths == depth).all()
    assert scores.shape == (14, tokens, 3)


def test_outside_a_pass_and_inside_full_depth_all_slices_are_used(quantized):
    ids = _ids()
    with torch.inference_mode():
        plain = quantized.model(ids, use_cache=False).logits
        with FixedDepth(4):
            assert torch.equal(quantized.model(ids, use_cache=False).logits, plain)
        with FixedDepth(1):
            assert not torch.equal(quantized.model(ids, use_cache=False).logits, plain)
            with full_depth():
                assert torch.equal(quantized.model(ids, use_cache=False).logits, plain)


def test_depths_per_linear(quantized):
    depths = [1 + index % 4 for index in range(14)]
    with FixedDepth(torch.tensor(depths)) as fixed:
        assert [fixed.depths(linear, torch.zeros(1, 1)) for linear in quantized.linears] == depths


@pytest.mark.parametrize("policy", ["uniform", "random"])
@pytest.mark.parametrize("budget", [2.5, 3.0, 3.5, 4.0, 5.0, 6.0])
def test_position_policies_spend_the_budget(quantized, policy, budget):
    _, recorder = _run(quantized, quantized.plan(budget, policy), _ids(256))
    assert abs(average_bits(recorder.arrays()[0], quantized.linear_infos, BITS) - budget) < 0.05


def test_one_token_at_a_time_gets_the_depths_of_the_whole_sequence(quantized):
    plan, ids = quantized.plan(3.3, "random"), _ids(6)
    whole = _run(quantized, plan, ids)[1].arrays()[0]
    for position in range(6):
        single = _run(quantized, plan, ids[:, position : position + 1], position)[1].arrays()
        assert (single[0][:, 0] == whole[:, position]).all()
        assert single[1].shape == (14, 1, 3)


def test_threads_with_different_budgets_do_not_interfere(quantized):
    ids, failures = _ids(), []
    plans = {bits: quantized.plan(bits, "uniform") for bits in (2.5, 6.0)}
    expected = {bits: _run(quantized, plan, ids)[0] for bits, plan in plans.items()}

    def repeat(bits):
        for _ in range(10):
            if not torch.equal(_run(quantized, plans[bits], ids)[0], expected[bits]):
                failures.append(bits)

    threads = [threading.Thread(target=repeat, args=(bits,)) for bits in (2.5, 6.0, 2.5, 6.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_failed_forward_leaves_no_pass_behind(quantized):
    before = current_pass()
    with pytest.raises(RuntimeError), quantized.routing_pass(quantized.plan(3, "uniform")):
        raise RuntimeError
    assert current_pass() is before


@pytest.mark.parametrize("policy", ["router", "layer", "norm", "oracle", "magic"])
def test_a_policy_the_model_cannot_serve_is_refused(quantized, policy):
    with pytest.raises(BudgetError):
        quantized.plan(3.0, policy)
