"""LARS against its formula, written a second time in numpy and float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wssl.training import LARS

SHAPES = {"filter": (4, 3, 3, 3), "matrix": (5, 4), "row": (1, 6), "bias": (5,), "scalar": ()}


def reference(weights, gradients, lr, lr_bias, momentum, decay, eta):
    """The layer-wise rule with the Euclidean length of the decayed gradient in the denominator, one tensor after the other."""
    weights = {name: w.copy() for name, w in weights.items()}
    velocity = {name: 0.0 for name in weights}
    for step in gradients:
        for name, w in weights.items():
            u, rate = step[name], lr_bias
            if w.ndim >= 2:
                u, rate = u + decay * w, lr
                length, pull = np.sqrt(np.sum(w * w)), np.sqrt(np.sum(u * u))
                if length != 0 and pull != 0:
                    u = u * (eta * length / pull)
            velocity[name] = momentum * velocity[name] + u
            weights[name] = w - rate * velocity[name]
    return weights


def draw(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {name: scale * random.standard_normal(shape) for name, shape in SHAPES.items()}


def run(weights, gradients, lr, lr_bias, momentum, decay, eta, as_tensor=False, dtype=torch.float64):
    params = {name: nn.Parameter(torch.tensor(w, dtype=dtype)) for name, w in weights.items()}
    wide, flat = ([p for p in params.values() if (p.ndim > 1) == kind] for kind in (True, False))
    rate = (lambda value: torch.tensor(value, dtype=dtype)) if as_tensor else float
    groups = [{"params": wide, "lr": rate(lr)}, {"params": flat, "lr": rate(lr_bias)}]
    optimizer = LARS(groups, momentum=momentum, weight_decay=decay, eta=eta)
    for step in gradients:
        for name, p in params.items():
            p.grad = torch.tensor(step[name], dtype=dtype)
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    lr=st.floats(1e-3, 5),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    eta=st.floats(1e-3, 1),
    as_tensor=st.booleans(),
)
def test_five_steps_are_the_formula(seed, lr, momentum, decay, eta, as_tensor):
    weights, gradients = draw(seed), [draw((seed, step), 10.0 ** (step - 2)) for step in range(5)]
    options = dict(lr=lr, lr_bias=lr / 40, momentum=momentum, decay=decay, eta=eta)
    expected = reference(weights, gradients, **options)
    for name, w in run(weights, gradients, as_tensor=as_tensor, **options).items():
        np.testing.assert_allclose(w.numpy(), expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


OPTIONS = dict(lr=0.2, lr_bias=0.005, momentum=0.9, decay=1e-4, eta=0.02)


def test_zero_weights_and_zero_gradients_stay_finite_and_move_as_the_formula_says():
    weights, gradients = draw(0), [draw(step) for step in range(3)]
    weights["filter"] *= 0
    for step in gradients:
        step["matrix"] *= 0
    expected = reference(weights, gradients, **OPTIONS)
    for name, w in run(weights, gradients, **OPTIONS).items():
        np.testing.assert_allclose(w.numpy(), expected[name], rtol=1e-12, atol=1e-15, err_msg=name)


def test_float32_is_the_formula_to_rounding():
    weights, gradients = draw(1), [draw(10 + step) for step in range(5)]
    expected = reference(weights, gradients, **OPTIONS)
    for name, w in run(weights, gradients, dtype=torch.float32, **OPTIONS).items():
        np.testing.assert_allclose(w.numpy(), expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_parameters_without_gradient_stay_and_the_order_does_not_matter():
    kept = nn.Parameter(torch.ones(3, 3))
    bias, weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 3))
    bias.grad, weight.grad = torch.ones(3), torch.ones(3, 3)
    LARS([bias, kept, weight], lr=1.0, eta=0.5).step()
    assert torch.equal(kept, torch.ones(3, 3)) and torch.equal(bias, torch.zeros(3))
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 0.5))


def test_state_survives_a_checkpoint_and_the_format_of_memory_is_kept():
    torch.manual_seed(0)
    nets = [nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    optimizers = [LARS(net.parameters(), lr=0.1) for net in nets]
    x = torch.randn(2, 3, 8, 8)

    def step(net, optimizer):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    step(nets[0], optimizers[0])
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for net, optimizer in zip(nets, optimizers, strict=True):
        step(net, optimizer)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    velocity = optimizers[0].state[nets[0].weight]["velocity"]
    assert velocity.is_contiguous(memory_format=torch.channels_last)


def test_a_closure_gives_its_value():
    weight = nn.Parameter(torch.ones(2, 2))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert LARS([weight]).step(closure).item() == 4


def test_the_step_is_one_graph_and_the_rate_may_change_within_it():
    """Nothing in the step asks the device for a number; a learning rate that is a tensor is no constant of the graph."""
    weights, gradients = draw(2), [draw(20 + step) for step in range(4)]
    params = [nn.Parameter(torch.tensor(w)) for w in weights.values()]
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = LARS(params, lr=rate, weight_decay=1e-2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend=backend, fullgraph=True)
    plain = [nn.Parameter(p.detach().clone()) for p in params]
    expected = LARS(plain, lr=0.1, weight_decay=1e-2)
    for count, each in enumerate(gradients):
        rate.fill_(0.1 / (count + 1))
        expected.param_groups[0]["lr"] = 0.1 / (count + 1)
        for p, q, g in zip(params, plain, each.values(), strict=True):
            p.grad, q.grad = torch.tensor(g), torch.tensor(g)
        step()
        expected.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    assert len(graphs) <= 2, "compiled anew for another learning rate"


@pytest.mark.parametrize("options", [{"lr": -0.1}, {"momentum": 1.0}, {"weight_decay": -1}, {"eta": 0}])
def test_values_that_cannot_be_are_one_sentence(options):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        LARS([nn.Parameter(torch.ones(2, 2))], **options)
