"""The full calibration: gradients of the quantizer, stages that lower the error, resumption, the artefact in use."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobiquant_core.calibrate.artefact import student_calibration
from mobiquant_core.calibrate.blockwise import BlockwiseSettings, fit_blocks
from mobiquant_core.calibrate.divergence import kl_per_window
from mobiquant_core.calibrate.end_to_end import EndToEnd, EndToEndSettings, parts_of
from mobiquant_core.calibrate.fake_quant import RangeFit, nested_weights
from mobiquant_core.calibrate.full import TWO_STAGES, FullSettings, calibrate_full, fit_student, prepare_student
from mobiquant_core.calibrate.local_gains import measure_layer_scores
from mobiquant_core.calibrate.marginal_gains import measure_marginal_scores
from mobiquant_core.calibrate.mlp import LARGEST_SHARE, attach_routers, router_share
from mobiquant_core.calibrate.resume import Progress
from mobiquant_core.calibrate.schedule import ThresholdSchedule, draw_budgets, softness_at
from mobiquant_core.calibrate.student import FIXED_DEPTHS, FULL_PRECISION, Student, learnt_rounding
from mobiquant_core.calibration import load_calibration, save_calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model
from mobiquant_core.policies import POLICIES
from mobiquant_core.routing import Recorder
from mobiquant_core.slicing import dequantize, slice_weight

CONFIG = MobiQuantConfig()
FEW_STEPS = FullSettings(
    BlockwiseSettings(base_steps=2, steps=4, windows_per_depth=1),
    EndToEndSettings(steps=3, windows_per_step=4),
    blockwise_windows=8,
    measure_windows=8,
)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    made = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)
    return made


@pytest.fixture
def windows() -> torch.Tensor:
    ids = torch.randint(1, 96, (16, 24), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 0
    return ids


def test_fitted_weights_are_what_slicing_stores() -> None:
    weight = torch.randn(8, 172, generator=torch.Generator().manual_seed(2))
    low, high = (bound.detach().half().float() for bound in RangeFit(weight, CONFIG)())
    sliced = slice_weight(weight, CONFIG, low, high)
    exact_low, exact_high = sliced.edge.float(), sliced.edge.float() + 4 * sliced.step.float()
    stack = nested_weights(weight, exact_low, exact_high, CONFIG)
    for depth in range(1, 5):
        # Differences of one finest cell may come from the order of fp32 operations at a cell's edge.
        assert torch.allclose(stack[depth - 1], dequantize(sliced, depth), atol=float(sliced.step.max()) / 60)


def test_range_gradient_matches_the_straight_through_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 130, generator=generator, dtype=torch.float32)
    low = torch.full((4, 2), -1.1, requires_grad=True)
    high = torch.full((4, 2), 1.3, requires_grad=True)
    pull = torch.randn(4, 4, 130, generator=generator)
    (nested_weights(weight, low, high, CONFIG) * pull).sum().backward()
    plain_low, plain_high = low.detach().clone().requires_grad_(True), high.detach().clone().requires_grad_(True)
    step = ((plain_high - plain_low) / 4).repeat_interleave(128, 1)[:, :130]
    edge = plain_low.repeat_interleave(128, 1)[:, :130]
    total = torch.zeros(())
    for depth in range(4):
        width = step / 4**depth
        cells = (weight - edge) / width
        inside = (weight >= edge.detach()) & (weight < (edge + 4 * step).detach())
        code = cells.detach().floor().clamp(0, 4 ** (depth + 1) - 1)
        soft = torch.where(inside, code + cells - cells.detach(), code)
        total = total + ((edge + width * (soft + 0.5)) * pull[depth]).sum()
    total.backward()
    assert torch.allclose(low.grad, plain_low.grad, atol=1e-3)
    assert torch.allclose(high.grad, plain_high.grad, atol=1e-3)


def _divergence_by_depth(student: Student, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        student.run.mode = FULL_PRECISION
        wanted = student.backbone.logits(windows).log_softmax(-1)
        student.run.mode = FIXED_DEPTHS
        return kl_per_window(wanted, student.backbone.logits(windows)).view(4, -1).mean(1)


def test_a_student_at_full_precision_is_the_model(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    expected = model(windows).logits
    student = Student(model, CONFIG)
    assert torch.allclose(student.backbone.logits(windows), expected, atol=1e-5)
    student.restore()
    assert torch.equal(model(windows).logits, expected)


def test_both_stages_lower_the_divergence(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    settings = replace(FEW_STEPS, blockwise=BlockwiseSettings(base_steps=10, steps=30))
    student = prepare_student(model, CONFIG, windows, settings)
    start = _divergence_by_depth(student, windows)
    fit_blocks(student, windows, settings.blockwise)
    middle = _divergence_by_depth(student, windows)
    assert middle[0] < start[0]
    attach_routers(student, measure_layer_scores(student, windows))
    EndToEnd(student, EndToEndSettings(steps=30, windows_per_step=8)).run(windows)
    end = _divergence_by_depth(student, windows)
    assert end[0] < middle[0]
    assert (end.diff() < 0).all()


def test_steps_at_one_depth_teach_every_depth_and_leave_the_routers(
    model: LlamaForCausalLM, windows: torch.Tensor
) -> None:
    student = prepare_student(model, CONFIG, windows, FEW_STEPS)
    attach_routers(student, measure_layer_scores(student, windows))
    start = _divergence_by_depth(student, windows)
    trainer = EndToEnd(student, EndToEndSettings(steps=20, windows_per_step=8, fixed_every=1))
    before = [parameter.clone() for parameter in trainer.router_parameters]
    trainer.run(windows)
    assert (_divergence_by_depth(student, windows)[:3] < start[:3]).all()
    assert all(map(torch.equal, before, trainer.router_parameters))


@pytest.mark.parametrize(
    ("windows", "first", "parts"),
    [(16, 0.25, (4, 4, 4, 4)), (16, 0.5, (8, 3, 3, 2)), (16, 1.0, (16,)), (5, 0.25, (1, 2, 1, 1))],
)
def test_parts_of_a_step_at_fixed_depths(windows: int, first: float, parts: tuple[int, ...]) -> None:
    assert parts_of(windows, 4, first) == parts


def test_unequal_parts_answer_as_equal_ones_do(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    student = Student(model, CONFIG)
    student.run.mode = FIXED_DEPTHS
    with torch.no_grad():
        coarse = student.backbone.logits(windows[:1].expand(4, -1))[:1]
        student.run.parts = (3, 1, 0, 0)
        assert torch.allclose(student.backbone.logits(windows[:4])[:1], coarse, atol=1e-4)


def test_spared_windows_lie_between_depth_1_and_full_precision(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    exact = model(windows[:4]).logits
    student = Student(model, CONFIG)

    def logits(share: float) -> torch.Tensor:
        with student.run.at_fixed_depths((4,), torch.full((2,), share)), torch.no_grad():
            return student.backbone.logits(windows[:4])

    coarse, spared, mixed = logits(0.0), logits(1.0), logits(0.5)
    assert torch.equal(coarse[:2], spared[:2]) and not torch.allclose(coarse[2:], exact[2:], atol=1e-2)
    assert torch.allclose(spared[2:], exact[2:], atol=1e-5)
    assert not torch.equal(mixed[2:], coarse[2:]) and not torch.equal(mixed[2:], spared[2:])


def test_marginal_scores_find_the_linear_whose_slice_matters(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    student = Student(model, CONFIG)
    quiet, loud = student.linears[3], student.linears[4]
    with torch.no_grad():
        # All weights in the middle of a base cell: every finer slice moves them away.
        quiet.weight.copy_(quiet.stack()[0])
    scores = measure_marginal_scores(student, windows[:2])
    assert scores.shape == (len(student.linears), 3) and torch.isfinite(scores).all()
    assert (scores.diff(dim=-1) <= 0).all()
    # Exactly the least among linears of its size; across sizes logarithms of counts are added, which rounds.
    assert scores[quiet.index, 0] == scores[student.weights == quiet.weights, 0].min()
    gains = scores[:, 0] + student.weights.float().log()
    assert (
        float(gains[quiet.index]) == pytest.approx(float(gains.min()), abs=1e-6)
        and scores[loud.index, 0] > scores[quiet.index, 0]
    )
    assert all(linear.frozen_stack is None for linear in student.linears)


def test_two_stages_with_spared_windows_and_new_scores_run_to_the_end(
    model: LlamaForCausalLM, windows: torch.Tensor
) -> None:
    plan = replace(TWO_STAGES, steps=16, windows_per_step=16, rounding_rate=0.05)
    student = prepare_student(model, CONFIG, windows, replace(FEW_STEPS, end_to_end=plan, reach=0.3))
    attach_routers(student, measure_layer_scores(student, windows))
    leaders = [site for site in student.sites if site.leader is None]
    before = [site.router for site in leaders]
    start = _divergence_by_depth(student, windows)
    trainer = EndToEnd(student, plan)
    trainer.run(windows)
    assert trainer.settled and all(site.router is not old for site, old in zip(leaders, before, strict=True))
    assert len(trainer.router_parameters) == 5 * len(leaders)
    assert _divergence_by_depth(student, windows)[0] < start[0]


def test_routed_steps_see_strange_and_other_text_between_both_ends_of_the_budgets(
    model: LlamaForCausalLM, windows: torch.Tensor
) -> None:
    student = prepare_student(model, CONFIG, windows, FEW_STEPS)
    other = torch.full((3, 24), 7)
    trainer = EndToEnd(student, replace(FEW_STEPS.end_to_end, windows_per_step=16), other)
    made = trainer._estranged(windows)
    changed = (made != windows).any(dim=1)
    assert 3 <= int(changed.sum()) <= 4
    assert not changed[0] and not changed[-1]
    assert int((made == 7).all(dim=1).sum()) == 2
    trainer.other = None
    assert not (trainer._estranged(windows) == 7).all(dim=1).any()
    assert torch.equal(trainer._estranged(windows[:7]), windows[:7])
    student.restore()


def test_the_layer_policy_is_the_router_blind_to_tokens(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    found = calibrate_full(model, windows, CONFIG, FEW_STEPS)
    assert found.layer_scores is not None
    assert torch.allclose(found.layer_scores, found.score_quantiles["router"].mean(-1), atol=1e-4)


def test_a_router_behind_a_norm_decides_for_the_site_that_follows(
    model: LlamaForCausalLM, windows: torch.Tensor
) -> None:
    quantized = quantize_model(model, CONFIG, calibrate_full(model, windows, CONFIG, FEW_STEPS))
    roles = [(site.name, None if site.leader is None else site.leader.name) for site in quantized.sites[:4]]
    assert roles == [
        ("attention_input", None),
        ("attention_output", "attention_input"),
        ("mlp_input", None),
        ("mlp_output", "mlp_input"),
    ]
    leaders = [site for site in quantized.sites if site.leader is None]
    assert all((site.router is None) == (site.leader is not None) for site in quantized.sites)
    read: list[torch.Tensor] = []
    hooks = [site.linears[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for site in leaders]
    recorder = Recorder()
    with torch.no_grad(), quantized.routing_pass(quantized.plan(3.0), 0, recorder):
        quantized.model(windows[:1])
    for hook in hooks:
        hook.remove()
    expected = torch.cat([site.router(x[0]) for site, x in zip(leaders, read, strict=True)], dim=1)  # type: ignore[misc]
    assert torch.allclose(recorder.scores(), expected, atol=1e-5)
    assert len(np.unique(recorder.arrays()[0])) > 1
    # A policy that is no router reads every site for itself.
    assert quantized.policy("norm").scores(quantized.sites[1], torch.randn(5, 128)).shape == (5, 1, 3)


def test_a_killed_run_resumes_to_the_same_result(model: LlamaForCausalLM, windows: torch.Tensor, tmp_path) -> None:
    settings = FEW_STEPS.blockwise

    class Killed(Exception):  # noqa: N818 - stands for a signal
        pass

    def kill_at_second_block(text: str, _: float) -> None:
        if text.startswith("block 2"):
            raise Killed

    whole = Student(model, CONFIG)
    fit_blocks(whole, windows, settings)
    expected = whole.linears[-1].ranges.below.detach().clone()
    whole.restore()
    part = Student(model, CONFIG)
    with pytest.raises(Killed):
        fit_blocks(part, windows, settings, kill_at_second_block, Progress(tmp_path, {"run": 1}))
    part.restore()
    assert len(list(tmp_path.glob("*.part"))) == 1
    resumed = Student(model, CONFIG)
    fit_blocks(resumed, windows, settings, resume=Progress(tmp_path, {"run": 1}))
    assert torch.allclose(resumed.linears[-1].ranges.below, expected, atol=1e-6)
    resumed.restore()


def test_parts_of_another_run_or_damaged_parts_are_ignored(tmp_path) -> None:
    first = Progress(tmp_path, {"rate": 1})
    first.save("block-0", {"value": torch.ones(2)})
    assert first.load("block-0") is not None
    assert Progress(tmp_path, {"rate": 2}).load("block-0") is None
    next(tmp_path.glob("*.part")).write_bytes(b"cut short")
    assert first.load("block-0") is None
    first.clear()
    assert not list(tmp_path.glob("*.part"))


def test_thresholds_of_the_schedule_spend_their_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 50, 3, generator=generator).cummin(-1).values
    weights = torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64)
    schedule = ThresholdSchedule(CONFIG, weights, torch.device("cpu"))
    schedule.update(scores)
    share = (weights / weights.sum()).float().view(-1, 1, 1)
    for budget in (2.0, 2.6, 3.3, 5.0, 8.0):
        threshold = schedule.at(torch.tensor([budget]))
        depth = 1 + (scores > threshold).sum(-1)
        assert float((2 * depth * share).sum(0).mean()) == pytest.approx(budget, abs=0.05)


def test_more_windows_may_run_at_the_lowest_budget() -> None:
    drawn = draw_budgets(8, CONFIG, 6.0, torch.Generator().manual_seed(0), at_lowest=3)
    assert (drawn == 2).sum() == 3 and drawn[-1] == 8


def test_drawn_budgets_hold_both_ends() -> None:
    drawn = draw_budgets(8, CONFIG, 6.0, torch.Generator().manual_seed(0))
    assert drawn[0] == 2.0 and drawn[-1] == 8.0
    assert ((drawn >= 2) & (drawn <= 8)).all()


def test_routers_stay_within_their_share(model: LlamaForCausalLM) -> None:
    student = Student(model, CONFIG)
    attach_routers(student, torch.zeros(len(student.linears), 3))
    assert router_share(student) <= LARGEST_SHARE + 0.02  # of a toy model two hidden units are the floor


def test_blocks_alone_leave_routers_at_the_layer_policy(model: LlamaForCausalLM, windows: torch.Tensor) -> None:
    found = calibrate_full(model, windows, CONFIG, replace(FEW_STEPS, end_to_end=EndToEndSettings(steps=0)))
    assert not found.routers["layers.0.mlp_input.output"].any()


@pytest.mark.parametrize("reach", [0.0, 0.2])
def test_learnt_rounding_travels_in_the_artefact(model: LlamaForCausalLM, windows: torch.Tensor, reach: float) -> None:
    rounding = EndToEndSettings(steps=4, windows_per_step=4, rounding_rate=0.2)
    found = calibrate_full(model, windows, CONFIG, replace(FEW_STEPS, end_to_end=rounding, reach=reach))
    columns = 64 if reach > 0 else 32
    assert found.rounding is not None and found.rounding["layers.1.mlp.down_proj"].shape == (128, columns)
    plain = quantize_model(copy.deepcopy(model), CONFIG, replace(found, rounding=None))
    learnt = quantize_model(model, CONFIG, found)
    moved = [
        (mine.weight >> 4 != theirs.weight >> 4).float().mean().item()
        for mine, theirs in zip(learnt.linears, plain.linears, strict=True)
    ]
    assert 0 < sum(moved) / len(moved) < 0.5


@pytest.mark.parametrize(("reach", "base_share"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.5)])
def test_frozen_stacks_are_those_of_the_artefact(
    model: LlamaForCausalLM, windows: torch.Tensor, reach: float, base_share: float
) -> None:
    rounding = EndToEndSettings(steps=4, windows_per_step=4, rounding_rate=0.2, base_share=base_share)
    settings = replace(FEW_STEPS, end_to_end=rounding, reach=reach)
    student = prepare_student(model, CONFIG, windows, settings)
    fit_student(student, windows, settings)
    student.freeze()
    stacks = [linear.frozen_stack for linear in student.linears]
    student.thaw()
    found = student_calibration(student, windows[:4])
    student.restore()
    quantized = quantize_model(model, CONFIG, found)
    for stack, linear in zip(stacks, quantized.linears, strict=True):
        for depth in range(1, 5):
            different = ~torch.isclose(stack[depth - 1], linear.dense(depth), atol=1e-5)
            # Sums in another order may put a weight on the other side of a finest cell's edge, hardly ever more.
            assert different.float().mean() < 2e-3


def test_base_codes_of_the_first_stage_stay_while_the_second_fits_the_rest(
    model: LlamaForCausalLM, windows: torch.Tensor
) -> None:
    plan = EndToEndSettings(steps=20, windows_per_step=4, rounding_rate=0.05, base_share=0.5, fixed_every=2)
    settings = replace(FEW_STEPS, end_to_end=plan, reach=0.3)
    student = prepare_student(model, CONFIG, windows, settings)
    attach_routers(student, measure_layer_scores(student, windows))
    trainer = EndToEnd(student, plan)
    routers = [parameter.clone() for parameter in trainer.router_parameters]
    start = _divergence_by_depth(student, windows)
    for step in range(10):
        trainer.step(windows[:4], step / 20)
    assert all(map(torch.equal, routers, trainer.router_parameters)) and not trainer.settled
    assert _divergence_by_depth(student, windows)[0] < start[0]
    trainer.step(windows[:4], 0.5)
    homes = [linear.home.clone() for linear in student.linears if linear.home is not None]
    assert len(homes) == len(student.linears) and trainer.settled
    for step in range(11, 20):
        trainer.step(windows[:4], step / 20)
    assert not all(map(torch.equal, routers, trainer.router_parameters))
    student.freeze()
    moved = 0
    for linear, home in zip(student.linears, homes, strict=True):
        assert linear.lean is not None and linear.lean.any() and linear.frozen_stack is not None
        low, high = (bound.half().float() for bound in linear.ranges())
        sliced = slice_weight(linear.scaled_weight(), CONFIG, low, high, learnt_rounding(linear))
        moved += int(((sliced.codes >> 6)[:, : home.shape[1]] != home).sum())
    assert moved < 1e-3 * sum(home.numel() for home in homes)


def test_leaning_lowers_the_coarse_errors_and_spares_the_finest() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(16, 128, generator=generator)
    x = torch.randn(256, 24, generator=generator) @ torch.randn(24, 128, generator=generator)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    lean = torch.zeros_like(weight, requires_grad=True)
    optimizer = torch.optim.Adam([lean], lr=0.02)

    def errors(softness: torch.Tensor | None = None) -> torch.Tensor:
        stack = nested_weights(weight, low, high, CONFIG, lean=lean, softness=softness)
        return (x @ (stack - weight).transpose(1, 2)).square().mean((1, 2)).sqrt()

    start = errors().detach()
    for step in range(60):
        optimizer.zero_grad()
        errors(torch.tensor(softness_at(step / 60))).sum().backward()
        optimizer.step()
    end = errors().detach()
    assert end[0] < 0.9 * start[0] and end[1] < 0.75 * start[1]
    assert end[3] < 0.4 * end[1]


def test_the_artefact_drives_a_quantized_model(model: LlamaForCausalLM, windows: torch.Tensor, tmp_path) -> None:
    before = model(windows).logits
    found = calibrate_full(model, windows, CONFIG, FEW_STEPS, resume_dir=tmp_path)
    assert torch.equal(model(windows).logits, before)
    assert not list(tmp_path.glob("*.part"))
    save_calibration(found, tmp_path / "calibration.safetensors")
    quantized = quantize_model(model, CONFIG, load_calibration(tmp_path / "calibration.safetensors"))
    for policy in POLICIES:
        with quantized.routing_pass(quantized.plan(3.0, policy)):
            assert torch.isfinite(model(windows).logits).all()
    with quantized.routing_pass(quantized.plan(3.0, "router")):
        routed = model(windows).logits
    assert torch.isfinite(routed).all()
    with quantized.routing_pass(quantized.plan(8.0, "router")):
        full = model(windows).logits
    assert (full - before).norm() < (routed - before).norm()
