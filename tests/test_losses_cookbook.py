"""Losses of the cookbook's methods against their formulas typed in numpy, float64, value and gradient."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.losses import sigreg_loss, sliced_w2_loss, vicreg_loss, vicreg_terms, visreg_loss


def _draw(n, m, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, m, generator=generator, dtype=torch.float64)).requires_grad_()


def _seeded():
    return torch.Generator().manual_seed(7)


def _directions(m, slices, dtype=torch.float64):
    draws = torch.randn(m, slices, generator=_seeded(), dtype=dtype).numpy()
    return draws / np.sqrt((draws**2).sum(0))


def _unit(z):
    return z / np.sqrt((z**2).sum(1, keepdims=True))


def _check(loss, formula, *inputs, entries=((0, 0), (-1, -1), (1, 0)), step=1e-6):
    """Value of `loss` against `formula` on numpy arrays, and its gradient against central differences of the formula."""
    value = loss(*inputs)
    arrays = [z.detach().numpy() for z in inputs]
    assert value.item() == pytest.approx(formula(*arrays), abs=1e-10, rel=1e-10)
    gradients = torch.autograd.grad(value, inputs)
    for place, gradient in enumerate(gradients):
        for entry in entries:
            moved = []
            for sign in (1, -1):
                shifted = [z.copy() for z in arrays]
                shifted[place][entry] += sign * step
                moved.append(formula(*shifted))
            slope = (moved[0] - moved[1]) / (2 * step)
            assert gradient[entry].item() == pytest.approx(slope, abs=1e-7, rel=1e-6)


def _vicreg_terms(a, b):
    """Bardes et al. 2022, Eqs. 1 to 5, with the official code's factors, entry by entry."""
    m, variance, covariance = a.shape[1], 0.0, 0.0
    for z in (a, b):
        c = np.cov(z.T).reshape(m, m)
        variance += sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(m)) / m / 2
        covariance += sum(c[i, j] ** 2 for i in range(m) for j in range(m) if i != j) / m
    return np.square(a - b).mean(), variance, covariance


@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 9), m=st.integers(1, 7), seed=st.integers(0, 99))
def test_vicreg_is_its_formula(n, m, seed):
    z1, z2 = _draw(n, m, seed, 0.7), _draw(n, m, seed + 100, 0.7)
    for ours, formula in zip(
        vicreg_terms(z1, z2), _vicreg_terms(z1.detach().numpy(), z2.detach().numpy()), strict=True
    ):
        assert ours.item() == pytest.approx(formula, abs=1e-12)
    _check(vicreg_loss, lambda a, b: np.dot((25, 25, 1), _vicreg_terms(a, b)), z1, z2)
    _check(lambda a, b: vicreg_loss(a, b, 3, 0, 2), lambda a, b: np.dot((3, 0, 2), _vicreg_terms(a, b)), z1, z2)


def test_vicreg_has_the_official_values():
    """24.75 at collapse; 17.5575 on the batch on which the peers were compared."""
    ones = torch.ones(64, 8)
    assert vicreg_loss(ones, ones).item() == pytest.approx(24.75, abs=1e-5)
    torch.manual_seed(0)
    z1 = 0.3 * torch.randn(256, 128)
    assert vicreg_loss(z1, z1 + 0.1 * torch.randn(256, 128)).item() == pytest.approx(17.5575, abs=1e-4)


def test_vicreg_computes_nothing_of_a_weight_of_0(monkeypatch):
    import wssl.losses.redundancy as room

    def fail(*_):
        raise AssertionError("computed")

    z1, z2 = _draw(6, 4), _draw(6, 4, 1)
    expected = 2 * vicreg_terms(z1, z2)[1].item()
    monkeypatch.setattr(room, "vicreg_invariance", fail)
    monkeypatch.setattr(room, "vicreg_covariance", fail)
    assert vicreg_loss(z1, z2, invariance=0, variance=2, covariance=0).item() == pytest.approx(expected)
    with pytest.raises(AssertionError, match="computed"):
        vicreg_loss(z1, z2)


def _sigreg(z, slices, points, t_max):
    """LeJEPA's statistic as it reads: complex exponentials, trapezoidal rule on both sides of 0."""
    t = np.linspace(-t_max, t_max, 2 * points - 1)
    target, total = np.exp(-(t**2) / 2), 0.0
    for a in _directions(z.shape[1], slices).T:
        empirical = np.exp(1j * np.outer(t, z @ a)).mean(1)
        total += np.trapezoid(np.abs(empirical - target) ** 2 * target, t)
    return total / slices


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 8),
    m=st.integers(1, 5),
    slices=st.integers(1, 6),
    points=st.integers(2, 20),
    t_max=st.sampled_from([1.0, 3.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_sigreg_is_its_formula(n, m, slices, points, t_max, seed):
    how = dict(slices=slices, points=points, t_max=t_max)
    entries = [(0, 0), (-1, -1)]
    z = _draw(n, m, seed, 1.5)
    _check(
        lambda z: sigreg_loss(z, **how, generator=_seeded()), lambda z: len(z) * _sigreg(z, **how), z, entries=entries
    )
    ours = sigreg_loss(z, **how, scaled=False, generator=_seeded())
    assert ours.item() == pytest.approx(_sigreg(z.detach().numpy(), **how), abs=1e-12)


def test_sigreg_in_chunks_is_sigreg_in_one():
    """3000 rows take several chunks of the 64 slices; the formula in float64 takes none."""
    z = _draw(3000, 4, scale=0.5).detach()
    ours = sigreg_loss(z, slices=64, scaled=False, generator=_seeded()).item()
    assert ours == pytest.approx(_sigreg(z.numpy(), 64, 17, 3.0), rel=1e-9)


def test_sigreg_keeps_two_numbers_for_each_row_and_slice():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        sigreg_loss(_draw(500, 3), slices=100, points=40)
    assert sum(sizes) < 2.2 * 500 * 100


def _quantiles(n, offset):
    return np.array([NormalDist().inv_cdf((i - offset) / (n + 1 - 2 * offset)) for i in range(1, n + 1)])


def _sliced(rows, slices, offset):
    projections = np.sort(rows @ _directions(rows.shape[1], slices), axis=0)
    return np.square(projections - _quantiles(len(rows), offset)[:, None]).mean()


@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 9), m=st.integers(2, 6), slices=st.integers(1, 8), seed=st.integers(0, 99))
def test_sliced_w2_is_its_formula(n, m, slices, seed):
    how = dict(slices=slices)

    def formula(z):
        return _sliced(math.sqrt(m) * _unit(z), slices, 0.5)

    def raw(z):
        return _sliced(math.sqrt(m) * z, slices, 0.5)

    z = _draw(n, m, seed)
    _check(lambda z: sliced_w2_loss(z, **how, generator=_seeded()), formula, z, step=1e-7)
    _check(lambda z: sliced_w2_loss(z, **how, normalize=False, generator=_seeded()), raw, z, step=1e-7)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 9), m=st.integers(1, 6), slices=st.integers(1, 8), seed=st.integers(0, 99))
def test_visreg_is_its_formula_with_sigma_held_constant(n, m, slices, seed):
    z = _draw(n, m, seed)
    fixed = z.detach().numpy().std(0)

    def formula(z):
        shape = _sliced((z - z.mean(0)) / fixed, slices, 0)
        return 2 * np.square(1 - z.std(0)).mean() + 3 * np.square(z.mean(0)).mean() + 5 * shape

    how = dict(slices=slices, scale=2, center=3, shape=5)
    _check(lambda z: visreg_loss(z, **how, generator=_seeded()), formula, z, step=1e-7)


def test_distances_vanish_only_at_a_normal_cloud():
    z = torch.randn(4000, 8, generator=_seeded())
    cube = math.sqrt(3) * (2 * torch.rand(4000, 8, generator=_seeded()) - 1)  # mean 0, covariance I
    for loss in (lambda z: sigreg_loss(z, scaled=False), visreg_loss):
        normal = loss(z).item()
        assert normal < 0.005
        others = [2 * z, z + 0.5, z * torch.tensor([1.0] * 7 + [0.0]), torch.zeros(4000, 8)]
        assert min(loss(other).item() for other in others) > 10 * normal
    axes = torch.eye(8).repeat(500, 1) * math.sqrt(8)  # eight points, mean square of each coordinate 1
    assert sliced_w2_loss(axes).item() > 10 * sliced_w2_loss(z).item()
    assert sigreg_loss(cube).item() > 1.5 * sigreg_loss(z).item()


PAIRS = {"vicreg": vicreg_loss}
CLOUDS = {
    "sigreg": lambda z, **how: sigreg_loss(z, slices=9, generator=_seeded(), **how),
    "sliced": lambda z, **how: sliced_w2_loss(z, slices=9, generator=_seeded(), **how),
    "sliced, fewer slices than columns": lambda z, **how: sliced_w2_loss(z, slices=2, generator=_seeded(), **how),
    "visreg": lambda z, **how: visreg_loss(z, slices=9, generator=_seeded(), **how),
}
LOSSES = PAIRS | {
    name: lambda z1, z2, loss=loss, **how: loss(z1, **how) + loss(z2, **how) for name, loss in CLOUDS.items()
}
TALL, WIDE = (16, 6), (8, 12)


def _on_rank(name, shape, rank):
    local = shape[0] // 2
    rows = slice(local * rank, local * rank + local)
    z1, z2 = (_draw(*shape, seed, 0.7).detach()[rows].requires_grad_() for seed in (0, 1))
    loss = LOSSES[name](z1, z2, group=WORLD)
    loss.backward()
    return loss.detach(), z1.grad, z2.grad


def _own_seed(rank):
    from wssl.losses.distribution import random_directions

    return random_directions(4, 5, torch.zeros(1), torch.Generator().manual_seed(rank), WORLD)


def _all_on_rank(rank):
    return {(name, shape): _on_rank(name, shape, rank) for name in LOSSES for shape in (TALL, WIDE)}, _own_seed(rank)


def test_two_processes_equal_one_on_the_whole_batch():
    """And they have the same directions where their seeds differ. One start of the processes for all losses."""
    ranks = run_ranks(_all_on_rank)
    for rank, (results, _) in enumerate(ranks):
        for (name, shape), (value, grad1, grad2) in results.items():
            z1, z2 = _draw(*shape, 0, 0.7), _draw(*shape, 1, 0.7)
            loss = LOSSES[name](z1, z2)
            loss.backward()
            rows = slice(shape[0] // 2 * rank, shape[0] // 2 * (rank + 1))
            torch.testing.assert_close(value, loss.detach(), rtol=1e-10, atol=1e-10, msg=f"{name} {shape}")
            torch.testing.assert_close(grad1, 2 * z1.grad[rows], rtol=1e-8, atol=1e-10, msg=f"{name} {shape}")
            torch.testing.assert_close(grad2, 2 * z2.grad[rows], rtol=1e-8, atol=1e-10, msg=f"{name} {shape}")
    assert torch.equal(ranks[0][1], ranks[1][1])
    torch.testing.assert_close(ranks[0][1].norm(dim=0), torch.ones(5))


@pytest.mark.parametrize("name", LOSSES)
def test_half_types_and_autocast_compute_in_float32(name):
    z1, z2 = (z.detach().bfloat16() for z in (_draw(16, 6), _draw(16, 6, 1)))
    half, full = ([z.detach().to(dtype).requires_grad_() for z in (z1, z2)] for dtype in (torch.bfloat16, torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](*half)
    loss.backward()
    assert loss.dtype == torch.float32 and half[0].grad.dtype == torch.bfloat16
    expected = LOSSES[name](*full)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(half[0].grad.float(), full[0].grad, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_collapse(name):
    for point in (torch.zeros(16, 6), torch.ones(16, 6)):
        z = point.requires_grad_()
        loss = LOSSES[name](z, z)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


COMPILED = {
    "vicreg": vicreg_loss,
    "sigreg": lambda z1, z2: sigreg_loss(z1, slices=9) + sigreg_loss(z2, slices=9),
    "sliced": lambda z1, z2: sliced_w2_loss(z1, slices=9) + sliced_w2_loss(z2, slices=9),
    "visreg": lambda z1, z2: visreg_loss(z1, slices=9) + visreg_loss(z2, slices=9),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_graph_breaks(name):
    loss, results = COMPILED[name], []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)):
        z1, z2 = (z.detach().float().requires_grad_() for z in (_draw(16, 6), _draw(16, 6, 1)))
        torch.manual_seed(3)
        value = call(z1, z2)
        value.backward()
        results.append((value.detach(), z1.grad, z2.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda z: vicreg_loss(z, z[:3]),
        lambda z: vicreg_loss(z, z, variance=-1),
        lambda z: vicreg_loss(z, z, 0, 0, 0),
        lambda z: vicreg_loss(z[:1], z[:1]),
        lambda z: vicreg_terms(z[0], z[0]),
        lambda z: sigreg_loss(z[0]),
        lambda z: sigreg_loss(z, slices=0),
        lambda z: sigreg_loss(z, points=1),
        lambda z: sigreg_loss(z, t_max=0),
        lambda z: sliced_w2_loss(z, slices=0),
        lambda z: visreg_loss(z, scale=-1),
        lambda z: visreg_loss(z, scale=0, center=0, shape=0),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match=r"^expected .*; received ") as error:
        call(torch.randn(4, 3))
    assert "\n" not in str(error.value)
