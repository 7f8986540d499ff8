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
from wssl.losses import (
    cholesky_whiten,
    coding_rate,
    intl_loss,
    iter_norm,
    sigreg_loss,
    simdino_loss,
    sliced_w2_loss,
    vicreg_loss,
    vicreg_terms,
    visreg_loss,
    w_mse_loss,
)


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


def _agreement(a, b):
    return np.square(_unit(a) - _unit(b)).sum(1).mean()


def _cholesky(z, eps=0.0):
    cov = (1 - eps) * np.cov(z.T).reshape(z.shape[1], -1) + eps * np.eye(z.shape[1])
    return (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(cov)).T


@settings(deadline=None, max_examples=15)
@given(m=st.integers(1, 5), groups=st.integers(1, 3), eps=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
def test_w_mse_is_its_formula(m, groups, eps, seed):
    size = 2 * m + 3

    def formula(a, b):
        parts = [
            (_cholesky(u, eps), _cholesky(v, eps))
            for u, v in zip(np.split(a, groups), np.split(b, groups), strict=True)
        ]
        return np.mean([_agreement(u, v) for u, v in parts])

    z1, z2 = _draw(groups * size, m, seed), _draw(groups * size, m, seed + 100)
    _check(lambda a, b: w_mse_loss(a, b, size, eps), formula, z1, z2)
    if groups == 1:
        assert torch.equal(w_mse_loss(z1, z2, None, eps), w_mse_loss(z1, z2, size, eps))


def test_whitening_ignores_invertible_maps_and_says_nan_where_there_is_none():
    z1, z2 = _draw(40, 4), _draw(40, 4, 1)
    moved = z1 @ (torch.eye(4, dtype=torch.float64) * 3 + 0.5).triu() + 2  # triangular: the factor absorbs it
    assert w_mse_loss(moved, z2).item() == pytest.approx(w_mse_loss(z1, z2).item(), rel=1e-9)
    torch.testing.assert_close(cholesky_whiten(z1).T.cov(), torch.eye(4, dtype=torch.float64))
    dead = z1.detach() * torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert cholesky_whiten(dead).isnan().all() and w_mse_loss(dead, z2).isnan()
    part = cholesky_whiten(torch.cat([z1.detach(), dead]), size=40)  # one group has a factor, the other has none
    assert torch.isfinite(part[:40]).all() and part[40:].isnan().all()
    assert torch.isfinite(w_mse_loss(dead, z2, eps=0.01))


def _iter_norm(z, steps):
    cov = np.cov(z.T).reshape(z.shape[1], -1)
    p, share = np.eye(len(cov)), cov / np.trace(cov)
    for _ in range(steps):
        p = (3 * p - np.linalg.matrix_power(p, 3) @ share) / 2
    return (z - z.mean(0)) @ p / math.sqrt(np.trace(cov))


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(3, 9),
    m=st.integers(1, 9),
    steps=st.integers(0, 5),
    beta=st.sampled_from([None, 0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_intl_is_its_formula(n, m, steps, beta, seed):
    weight = max(0, 0.01 * (math.log2(m) - 3)) if beta is None else beta

    def formula(a, b):
        a, b = _iter_norm(a, steps), _iter_norm(b, steps)
        return _agreement(a, b) + weight * sum(np.square(1 - z.var(0, ddof=1)).sum() for z in (a, b))

    _check(lambda a, b: intl_loss(a, b, steps, beta), formula, _draw(n, m, seed), _draw(n, m, seed + 100))


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_iter_norm_leads_to_zca_with_eigenvalues_that_never_pass_1(shape):
    z = _draw(*shape).detach()
    values, vectors = np.linalg.eigh(np.cov(z.numpy().T))
    inverse = np.where(values > 1e-9, np.abs(values) + 1e-300, np.inf) ** -0.5
    zca = (z.numpy() - z.numpy().mean(0)) @ (vectors * inverse) @ vectors.T
    np.testing.assert_allclose(iter_norm(z, 10), zca, atol=1e-6)
    for steps in range(6):
        assert torch.linalg.eigvalsh(iter_norm(z, steps).T.cov()).max() < 1 + 1e-9


def _rate(z, eps):
    unit = _unit(z)
    return np.linalg.slogdet(np.eye(z.shape[1]) + z.shape[1] / (len(z) * eps) * unit.T @ unit)[1] / 2


@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 9), m=st.integers(2, 9), eps=st.sampled_from([0.1, 0.5, 2.0]), seed=st.integers(0, 99))
def test_coding_rate_is_its_formula(n, m, eps, seed):
    z = _draw(n, m, seed)
    _check(lambda z: coding_rate(z, eps), lambda z: _rate(z, eps), z)
    assert 0 < coding_rate(z, eps).item() <= m / 2 * math.log(1 + 1 / eps) + 1e-9


def test_coding_rate_has_the_official_values():
    """gamma R of 1024 x 256 unit rows: .652 isotropic, .015 at collapse, .687 at most."""
    gamma = (256 + 1024) / (256 * 1024)
    assert gamma * coding_rate(_draw(1024, 256)).item() == pytest.approx(0.652, abs=1e-3)
    assert gamma * coding_rate(torch.ones(1024, 256)).item() == pytest.approx(0.015, abs=1e-3)
    orthonormal = torch.eye(256).repeat(4, 1)
    assert gamma * coding_rate(orthonormal).item() == pytest.approx(0.687, abs=1e-3)


def test_simdino_is_its_formula_and_stops_the_gradient():
    def formula(s1, s2, s3, t1, t2):
        cosine = [(_unit(s) * _unit(t)).sum(1).mean() for s, t in ((s1, t2), (s2, t1), (s3, t1), (s3, t2))]
        return -np.mean(cosine) - (5 + 9) / (5 * 9) * (_rate(s1, 0.5) + _rate(s2, 0.5)) / 2

    views = [_draw(9, 5, seed) for seed in range(5)]
    teacher = [t.detach().numpy() for t in views[3:]]
    _check(lambda *s: simdino_loss(s, views[3:]), lambda *s: formula(*s, *teacher), *views[:3])
    simdino_loss(views[:3], views[3:]).backward()
    assert all(t.grad is None for t in views[3:])
    collapsed = [torch.ones(9, 5)] * 2
    assert simdino_loss(collapsed, collapsed, gamma=0).item() == pytest.approx(-1, abs=1e-6)
    assert simdino_loss(views[:1] * 2, views[:1] * 2).item() < simdino_loss(collapsed, collapsed).item()


def test_a_weight_of_0_computes_nothing_of_its_term(monkeypatch):
    import wssl.losses.distillation as distillation
    import wssl.losses.distribution as distribution
    import wssl.losses.whitening as whitening

    def fail(*_, **__):
        raise AssertionError("computed")

    for room, name in ((distillation, "coding_rate"), (distribution, "_sliced"), (whitening, "_trace_loss")):
        monkeypatch.setattr(room, name, fail)
    z1, z2 = _draw(16, 12), _draw(16, 12, 1)
    off = [
        lambda **how: simdino_loss([z1, z2], [z1, z2], **how),
        lambda **how: visreg_loss(z1, **how),
        lambda **how: intl_loss(z1, z2, **how),
    ]
    for call, keyword in zip(off, ("gamma", "shape", "trace_weight"), strict=True):
        assert torch.isfinite(call(**{keyword: 0}))
        with pytest.raises(AssertionError, match="computed"):
            call()


PAIRS = {
    "vicreg": vicreg_loss,
    "intl": lambda z1, z2, **how: intl_loss(z1, z2, trace_weight=0.1, **how),
    "simdino": lambda z1, z2, **how: simdino_loss([z1, z2], [z2, z1], **how),
}
TALL_ONLY = {"w_mse": w_mse_loss, "w_mse, groups": lambda z1, z2, **how: w_mse_loss(z1, z2, 8, **how)}
CLOUDS = {
    "sigreg": lambda z, **how: sigreg_loss(z, slices=9, generator=_seeded(), **how),
    "sliced": lambda z, **how: sliced_w2_loss(z, slices=9, generator=_seeded(), **how),
    "sliced, fewer slices than columns": lambda z, **how: sliced_w2_loss(z, slices=2, generator=_seeded(), **how),
    "visreg": lambda z, **how: visreg_loss(z, slices=9, generator=_seeded(), **how),
}
LOSSES = (
    PAIRS
    | TALL_ONLY
    | {name: lambda z1, z2, loss=loss, **how: loss(z1, **how) + loss(z2, **how) for name, loss in CLOUDS.items()}
)
TALL, WIDE = (16, 6), (8, 12)
ANY_SHAPE = [name for name in LOSSES if name not in TALL_ONLY]
CASES = [(name, TALL) for name in LOSSES] + [(name, WIDE) for name in ANY_SHAPE]


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
    return {(name, shape): _on_rank(name, shape, rank) for name, shape in CASES}, _own_seed(rank)


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
    half, full = (
        [z.detach().to(dtype).requires_grad_() for z in (z1, z2)] for dtype in (torch.bfloat16, torch.float32)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](*half)
    loss.backward()
    assert loss.dtype == torch.float32 and half[0].grad.dtype == torch.bfloat16
    expected = LOSSES[name](*full)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(half[0].grad.float(), full[0].grad, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ANY_SHAPE)
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
} | {name: LOSSES[name] for name in ("w_mse", "w_mse, groups", "intl", "simdino")}


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
        lambda z: w_mse_loss(z[:3], z[:3]),
        lambda z: cholesky_whiten(z.repeat(3, 1), size=5),
        lambda z: cholesky_whiten(z, eps=2),
        lambda z: iter_norm(z[:1]),
        lambda z: iter_norm(z, iterations=-1),
        lambda z: intl_loss(z, z, trace_weight=-1),
        lambda z: intl_loss(z, z[:2]),
        lambda z: coding_rate(z, eps=0),
        lambda z: simdino_loss([z], [z, z]),
        lambda z: simdino_loss([z, z], [z]),
        lambda z: simdino_loss([z, z], [z, z], gamma=-1),
        lambda z: visreg_loss(z, scale=0, center=0, shape=0),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match=r"^expected .*; received ") as error:
        call(torch.randn(4, 3))
    assert "\n" not in str(error.value)
