"""Contrastive, distillation and distribution losses against their formulas typed in numpy, float64, value and gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.losses import (
    WassersteinUniformityLoss,
    barlow_twins_loss,
    byol_loss,
    info_nce,
    lu_of_views,
    nt_xent,
    regularize,
    simsiam_loss,
    w2_of_views,
    zero_fcl_loss,
    zero_icl_loss,
)


def _views(n, m, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, m, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))


def _unit(z):
    return z / np.sqrt((z**2).sum(1, keepdims=True))


def _slope(function, z, i, j, step=1e-6):
    """Central difference of `function` in entry (i, j) of the numpy array `z`."""
    up, down = z.copy(), z.copy()
    up[i, j] += step
    down[i, j] -= step
    return (function(up) - function(down)) / (2 * step)


def _check(loss, formula, z1, z2, fixed_second=False):
    """Value of `loss(z1, z2)` against `formula` on numpy arrays, and its gradient against differences of the formula."""
    value = loss(z1, z2)
    a, b = z1.detach().numpy(), z2.detach().numpy()
    assert value.item() == pytest.approx(formula(a, b), abs=1e-10)
    value.backward()
    for i, j in [(0, 0), (z1.shape[0] - 1, z1.shape[1] - 1), (1, 0)]:
        assert z1.grad[i, j].item() == pytest.approx(_slope(lambda z: formula(z, b), a, i, j), abs=1e-7)
        if fixed_second:
            assert z2.grad is None
        else:
            assert z2.grad[i, j].item() == pytest.approx(_slope(lambda z: formula(a, z), b, i, j), abs=1e-7)


def _nt_xent(a, b, temperature=0.5):
    """Chen et al. 2020, Eq. 1, with its loops."""
    z, n = _unit(np.concatenate([a, b])), len(a)
    total = 0.0
    for i in range(2 * n):
        terms = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        total -= math.log(math.exp(z[i] @ z[(i + n) % (2 * n)] / temperature) / sum(terms))
    return total / (2 * n)


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(2, 9),
    m=st.integers(1, 7),
    temperature=st.sampled_from([0.05, 0.2, 0.5, 2.0]),
    seed=st.integers(0, 99),
)
def test_nt_xent_is_its_formula(n, m, temperature, seed):
    _check(lambda a, b: nt_xent(a, b, temperature), lambda a, b: _nt_xent(a, b, temperature), *_views(n, m, seed))


@pytest.mark.parametrize("n", [2, 16, 256])
def test_values_at_collapse(n):
    ones = torch.ones(n, 8)
    assert nt_xent(ones, ones, 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-4)
    assert info_nce(ones, ones).item() == pytest.approx(math.log(n), abs=1e-4)
    assert info_nce(ones, ones, torch.ones(5, 8)).item() == pytest.approx(math.log(6), abs=1e-5)
    assert byol_loss(ones, ones).item() == pytest.approx(0, abs=1e-6)
    assert simsiam_loss(ones, ones).item() == pytest.approx(-1, abs=1e-6)
    assert w2_of_views(ones, ones).item() == pytest.approx(math.sqrt(2), abs=1e-6)
    assert lu_of_views(ones, ones).item() == pytest.approx(0, abs=1e-6)


def test_nt_xent_survives_a_small_temperature_and_half_precision():
    z1, z2 = (z.detach().bfloat16().requires_grad_() for z in _views(16, 8))
    loss = nt_xent(z1, z2, temperature=0.005)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(z1.grad).all()


def test_info_nce_is_its_formula():
    queue = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def with_queue(a, b):
        a, b, others = _unit(a), _unit(b), _unit(queue.numpy())
        scores = [[a[i] @ b[i] / 0.2, *(a[i] @ k / 0.2 for k in others)] for i in range(len(a))]
        return -np.mean([math.log(math.exp(s[0]) / sum(map(math.exp, s))) for s in scores])

    def in_batch(a, b):
        s = _unit(a) @ _unit(b).T / 0.2
        return -np.mean([math.log(math.exp(s[i, i]) / np.exp(s[i]).sum()) for i in range(len(a))])

    _check(lambda a, b: info_nce(a, b, queue), with_queue, *_views(6, 4))
    _check(info_nce, in_batch, *_views(6, 4, 1))


def test_distillation_losses_are_their_formulas_and_stop_the_gradient():
    def byol(a, b):
        return ((_unit(a) - _unit(b)) ** 2).sum(1).mean()

    _check(byol_loss, byol, *_views(6, 4), fixed_second=True)
    _check(lambda a, b: byol_loss(a, b, stop_gradient=False), byol, *_views(6, 4))
    _check(simsiam_loss, lambda a, b: byol(a, b) / 2 - 1, *_views(6, 4), fixed_second=True)


def test_distribution_losses_are_their_formulas():
    def w2(a, b):
        z = _unit(np.concatenate([a, b]))
        m, eigenvalues = z.shape[1], np.linalg.eigvalsh(np.cov(z.T, bias=True))
        return math.sqrt((z.mean(0) ** 2).sum() + eigenvalues.sum() + 1 - 2 / math.sqrt(m) * np.sqrt(eigenvalues).sum())

    def one_lu(z):
        z = _unit(z)
        pairs = [math.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i in range(len(z)) for j in range(i)]
        return math.log(np.mean(pairs))

    _check(w2_of_views, w2, *_views(12, 4))
    _check(lu_of_views, lambda a, b: (one_lu(a) + one_lu(b)) / 2, *_views(8, 4))


def _standard(z):
    return (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 9), m=st.integers(1, 6), lambd=st.sampled_from([0.0, 0.0051, 1.0]), seed=st.integers(0, 99))
def test_barlow_twins_is_its_formula(n, m, lambd, seed):
    """Zbontar et al. 2021, Eqs. 1 and 2, with their loops."""

    def formula(a, b):
        a, b, total = _standard(a), _standard(b), 0.0
        for i in range(m):
            for j in range(m):
                c = sum(a[k, i] * b[k, j] for k in range(n)) / n
                total += (1 - c) ** 2 if i == j else lambd * c**2
        return 0.1 * total

    _check(lambda a, b: barlow_twins_loss(a, b, lambd, scale=0.1), formula, *_views(n, m, seed))


def _whitening(z, shrink):
    s = _standard(z)
    values, vectors = np.linalg.eigh((1 - shrink) * s.T @ s / len(s) + shrink * np.eye(s.shape[1]))
    return vectors @ np.diag(values**-0.5) @ vectors.T


@pytest.mark.parametrize(("loss", "turn"), [(zero_fcl_loss, lambda z: z), (zero_icl_loss, lambda z: z.T)])
@pytest.mark.parametrize("shrink", [0.1, 0.7])
def test_zero_cl_is_its_formula_with_the_whitening_held_constant(loss, turn, shrink):
    z1, z2 = _views(9, 5, 4)
    fixed = [_whitening(turn(z.detach().numpy()), shrink) for z in (z1, z2)]

    def formula(a, b):
        u, v = (_standard(turn(z)) @ w for z, w in zip((a, b), fixed, strict=True))
        return sum((1 - (u[:, j] * v[:, j]).mean()) ** 2 for j in range(u.shape[1]))

    _check(lambda a, b: loss(a, b, shrink), formula, z1, z2)


def test_redundancy_losses_have_finite_gradients_at_collapse():
    for loss in (barlow_twins_loss, zero_fcl_loss, zero_icl_loss):
        z = torch.ones(8, 4, requires_grad=True)
        value = loss(z, z)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(z.grad).all()
        half = torch.randn(8, 4).bfloat16().requires_grad_()
        assert loss(half, half).dtype == torch.float32


def test_a_weight_of_0_computes_nothing():
    z1, z2 = (z.detach() * float("nan") for z in _views(8, 4))
    assert regularize("w2", 0, z1, z2) is None and regularize("none", 1, z1, z2) is None
    module = WassersteinUniformityLoss(2.0, schedule=lambda progress: 1 - progress)
    assert module(z1, z2, progress=1.0).item() == 0
    good = _views(8, 4)
    assert module(*good, progress=0.5).item() == pytest.approx(w2_of_views(*good).item())
    assert WassersteinUniformityLoss(2.0)(*good).item() == pytest.approx(2 * w2_of_views(*good).item())


LOSSES = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "w2": w2_of_views,
    "lu": lu_of_views,
    "barlow": barlow_twins_loss,
    "zero_fcl": zero_fcl_loss,
    "zero_icl": zero_icl_loss,
}


def _on_rank(name, m, rank):
    z1, z2 = (z.detach()[4 * rank : 4 * rank + 4].requires_grad_() for z in _views(8, m))
    loss = LOSSES[name](z1, z2, group=WORLD)
    loss.backward()
    return loss.detach(), z1.grad, z2.grad


@pytest.mark.parametrize("name, m", [*((name, 6) for name in LOSSES), ("barlow", 20)])
def test_two_processes_equal_one_on_the_whole_batch(name, m):
    z1, z2 = _views(8, m)
    loss = LOSSES[name](z1, z2)
    loss.backward()
    for rank, (value, grad1, grad2) in enumerate(run_ranks(_on_rank, name, m)):
        rows = slice(4 * rank, 4 * rank + 4)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grad1, 2 * z1.grad[rows], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(grad2, 2 * z2.grad[rows], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "call",
    [
        lambda z: nt_xent(z, z[:3]),
        lambda z: nt_xent(z, z, temperature=-1),
        lambda z: info_nce(z, z, z[0]),
        lambda z: byol_loss(z[0], z[0]),
        lambda z: regularize("w3", 1, z, z),
        lambda z: barlow_twins_loss(z, z, lambd=-1),
        lambda z: zero_fcl_loss(z, z, shrink=0),
        lambda z: zero_icl_loss(z, z[:2]),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match=r"^expected .*; received ") as error:
        call(torch.randn(4, 3))
    assert "\n" not in str(error.value)
