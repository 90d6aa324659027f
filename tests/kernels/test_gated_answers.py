"""The kernels that choose among the answers of all depths, against their definition."""

import torch

from mobiquant_core.calibrate.gating import gated_answers
from mobiquant_core.kernels import gated_answers as kernels


def test_answers_and_gradients_are_those_of_the_definition(device: str) -> None:
    torch.manual_seed(0)
    answers, shift = torch.randn(11, 4, 300), torch.randn(4, 300)
    gates = torch.nn.functional.one_hot(torch.randint(0, 4, (11,)), 4).float()
    inputs = [answers.requires_grad_(True), gates.requires_grad_(True)]
    wanted, pull = gated_answers(answers, gates, shift), torch.randn(11, 300)
    by_wanted = torch.autograd.grad((wanted * pull).sum(), inputs)
    there = [tensor.detach().to(device) for tensor in (answers, gates, shift)]
    assert torch.allclose(kernels.forward(*there).cpu(), wanted, atol=1e-6)
    by_answers, by_gates = kernels.backward(pull.to(device), *there)
    assert torch.allclose(by_answers.cpu(), by_wanted[0], atol=1e-6)
    # d y / d gate of the definition leaves out nothing: answers and shifts alike.
    assert torch.allclose(by_gates.cpu(), by_wanted[1], atol=1e-4)
