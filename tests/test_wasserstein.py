"""W2 uniformity: closed forms, a float64 singular value reference over drawn shapes, finite gradients, several processes."""

import math

import numpy as np
import ot
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import wssl
from tests.bench import uniformity as uniformity_bench
from tests.distributed import run_ranks
from wssl.metrics import (
    WassersteinUniformity,
    live_fraction,
    null_distribution,
    uniformity_floor,
    uniformity_zscore,
    w2_moments,
    wasserstein_uniformity,
)
from wssl.metrics import polar as solvers
from wssl.metrics import wasserstein as module


def draw(n, m, seed=0, rank=None, dtype=torch.float64):
    "Rows of a given rank before centring."
    source = torch.Generator().manual_seed(seed)
    rank = min(n, m) if rank is None else min(rank, n, m)
    factors = (
        torch.randn(n, rank, generator=source, dtype=torch.float64),
        torch.randn(rank, m, generator=source, dtype=torch.float64),
    )
    full = torch.randn(n, m, generator=source, dtype=torch.float64)
    return (full if rank == min(n, m) else factors[0] @ factors[1]).to(dtype)


def reference(z, normalize=True):
    "W2 squared from singular values, its gradient U V^T, and sigma_min / sigma_max, in float64 and NumPy alone."
    z = z.detach().double().numpy()
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / length if normalize else z
    (n, m), rows = unit.shape, unit - unit.mean(0)
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    possible = min(n - 1, m)
    value = 1 + (unit**2).sum(1).mean() - 2 / math.sqrt(m * n) * s.sum()
    grad = 2 / n * unit - 2 / math.sqrt(m * n) * u[:, :possible] @ vt[:possible]
    if normalize:
        grad = (grad - (grad * unit).sum(1, keepdims=True) * unit) / length
    apart = possible and s[0] > 1e-5 * math.sqrt(n)  # of equal rows, singular vectors are rounding
    return value, torch.from_numpy(grad), s[possible - 1] / s[0] if apart else 0.0


def gradient(z, **options):
    z = z.detach().clone().requires_grad_()
    value = wasserstein_uniformity(z, **options)
    value.backward()
    return value.detach(), z.grad


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 16, 128])
def test_extremes(m):
    eye = torch.eye(m)
    for needs_grad in (False, True):

        def w2(z, needs_grad=needs_grad):
            return wasserstein_uniformity(z.clone().requires_grad_(needs_grad)).item()

        assert abs(w2(F.normalize(torch.randn(1, m)).repeat(50, 1)) - math.sqrt(2)) < 1e-6
        assert abs(w2(torch.cat([eye, -eye]))) < 1e-3
        close = 5e-5 if needs_grad else 1e-6  # with a gradient the spectrum of a large matrix is float32's
        assert abs(w2(eye) - math.sqrt(2 / m)) < close
        for r in {1, m // 2, m}:
            expected = math.sqrt(2 - 2 * math.sqrt(r / m))
            assert abs(w2(torch.cat([eye[:r], -eye[:r]])) - expected) < (1e-3 if r == m else close)


def test_simplex_is_the_best_that_m_rows_can_do():
    m = 32
    simplex = F.normalize(torch.eye(m, dtype=torch.float64) - 1 / m)
    assert abs(wasserstein_uniformity(simplex) - math.sqrt(2 - 2 * math.sqrt((m - 1) / m))) < 1e-12


def test_rows_that_are_not_unit():
    z = draw(40, 7) * 3 + 1
    value = wasserstein_uniformity(z, normalize=False, squared=True)
    assert abs(value - reference(z, normalize=False)[0]) < 1e-10
    assert wasserstein_uniformity(torch.zeros(5, 4)) == 1


@pytest.mark.parametrize("shape", [(60, 8), (12, 20)])
def test_against_scipy_and_pot(shape):
    z = F.normalize(draw(*shape)).numpy()
    m = shape[1]
    mean, cov, target = z.mean(0), np.cov(z.T, bias=True), np.eye(m) / m
    root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(target) @ cov @ scipy.linalg.sqrtm(target)).real
    general = mean @ mean + np.trace(cov + target - 2 * root)
    ours = wasserstein_uniformity(torch.from_numpy(z), normalize=False)
    assert abs(ours**2 - general) < 1e-6  # sqrtm keeps half the digits of a singular matrix
    pot = ot.gaussian.bures_wasserstein_distance(mean, np.zeros(m), cov + 1e-14 * np.eye(m), target)
    assert abs(ours - pot) < 1e-6


def test_the_forms_in_circulation_agree():
    "What the benchmark times computes the same number."
    z = draw(80, 12)
    for peer in (uniformity_bench.general_eig, uniformity_bench.symmetric_eigh):
        assert abs(peer(z) - wasserstein_uniformity(z)) < 1e-12


def test_gradient_of_a_distance_has_length_one_over_sqrt_n():
    _, grad = gradient(F.normalize(draw(200, 30)), normalize=False)
    assert abs(grad.norm() * math.sqrt(200) - 1) < 1e-9


# --- a float64 reference over drawn shapes ----------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 48), st.integers(1, 48), st.integers(1, 48), st.integers(0, 2**31))


@settings(max_examples=120, deadline=None)
@given(shapes, st.sampled_from([torch.float32, torch.float64]), st.booleans())
@example((33, 32, 48, 0), torch.float32, True)
@example((32, 32, 48, 0), torch.float32, True)
@example((32, 33, 5, 0), torch.float64, True)
@example((1, 5, 1, 0), torch.float32, True)
@example((2, 3, 1, 1), torch.float64, True)
def test_value_and_gradient(shape, dtype, needs_grad):
    n, m, rank, seed = shape
    z = F.normalize(draw(n, m, seed, rank)).to(dtype)
    z = z.double().to(dtype)
    expected, expected_grad, spread = reference(z)
    tolerance = 5e-4 if dtype == torch.float32 else 1e-10
    if not needs_grad:
        assert abs(wasserstein_uniformity(z, squared=True) - expected) < tolerance
        return
    value, grad = gradient(z, squared=True)
    assert value.dtype == grad.dtype == dtype
    assert abs(value - expected) < tolerance
    if spread > 1e-3 and expected_grad.norm() > 1e-3 / math.sqrt(n):
        assert (grad - expected_grad).norm() < 2e-2 * expected_grad.norm()
    assert grad.norm() <= 2 / math.sqrt(n) * (1 + 1e-3)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_types_against_their_rounded_values(shape, half):
    n, m, rank, seed = shape
    z = F.normalize(draw(n, m, seed, rank)).to(half)
    value, grad = gradient(z, squared=True)
    assert value.dtype == torch.float32 and grad.dtype == half
    assert abs(value - reference(z)[0]) < 5e-4
    assert grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_of_low_rank(half):
    "Rounding fills the dead directions; there are many of them."
    for shape in [(300, 128), (100, 300)]:
        z = F.normalize(draw(*shape, rank=8)).to(half)
        assert abs(gradient(z, squared=True)[0] - reference(z)[0]) < 5e-5


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(2, 4))
def test_cloning_changes_nothing(shape, copies):
    n, m, rank, seed = shape
    z = draw(n, m, seed, rank)
    once, often = (wasserstein_uniformity(x, squared=True) for x in (z, z.repeat(copies, 1)))
    assert abs(once - often) < 1e-7 if rank < min(n, m) or n <= m else abs(once - often) < 1e-12


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 100))
def test_rotations_and_permutations_change_nothing(shape, seed):
    z = draw(*shape[:2], shape[3])
    turn = torch.linalg.qr(draw(z.shape[1], z.shape[1], seed))[0]
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    assert (
        abs(wasserstein_uniformity(z, squared=True) - wasserstein_uniformity((z @ turn)[order], squared=True)) < 1e-10
    )


def spectra(n, m):
    "Rows whose spectrum is easy, steep, short, clustered, or far from the origin."
    z, source, order = draw(n, m), torch.Generator().manual_seed(1), torch.arange(1, m + 1)
    yield "uniform", z
    yield "power 1", z * order**-0.5
    yield "power 2", z * order**-1.0
    yield "steep", z * 0.9**order
    yield "half dead", z * (order <= m // 2)
    yield "leaking", z * torch.where(order <= m // 2, 1, 1e-3)
    yield "rank 16", draw(n, m, rank=16)
    yield "clusters", draw(10, m)[torch.randint(10, (n,), generator=source)] + 0.05 * z
    yield "cone", z + 3


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (128, 128), (129, 128), (100, 99)])
def test_float32_on_nine_spectra(shape):
    for name, z in spectra(*shape):
        z = F.normalize(z).float()
        expected, expected_grad, spread = reference(z)
        value, grad = gradient(z, squared=True)
        assert abs(value - expected) < 5e-5, name  # also where many singular values lie under sqrt(eps) of the largest
        assert abs(wasserstein_uniformity(z, squared=True) - expected) < 1e-6, name
        assert grad.norm() <= 2.01 / math.sqrt(shape[0]), name
        if spread > 1e-3:
            assert (grad - expected_grad).norm() < 2e-2 * expected_grad.norm(), name


# --- gradients that must be finite ------------------------------------------------------------------------------------

base = F.normalize(draw(32, 8, dtype=torch.float32))
cross = torch.cat([torch.eye(8), -torch.eye(8)])
awkward = {
    "all rows equal": base[:1].repeat(16, 1),
    "many equal rows": torch.full((1000, 3), 0.1),
    "all rows parallel": base[:1] * torch.linspace(0.1, 7, 16)[:, None],
    "all zero": torch.zeros(16, 8),
    "one row": base[:1],
    "two rows": base[:2],
    "duplicates": base[:4].repeat(5, 1),
    "zero columns": base * (torch.arange(8) < 5),
    "n < m": base[:5],
    "n = m": base[:8],
    "exact optimum": cross,
    "a zero row": torch.cat([base, torch.zeros(1, 8)]),
    "a tiny row": torch.cat([base, torch.full((1, 8), 1e-20)]),
    "huge": base * 1e15,
    "one dimension": base[:, :1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("name", awkward)
def test_gradient_is_finite(name, squared, dtype):
    z = awkward[name].to(dtype)
    value, grad = gradient(z, squared=squared)
    assert value.isfinite() and grad.isfinite().all()
    lengths = z.double().norm(dim=1)
    scale = lengths[lengths > 1e-12].min() if (lengths > 1e-12).any() else 1
    assert grad.double().norm() * scale <= 2.01 / math.sqrt(len(z)) * (1 if squared else 1 / max(float(value), 0.1))


@pytest.mark.parametrize("name", ["all rows equal", "many equal rows", "all zero", "one row", "exact optimum"])
@pytest.mark.parametrize("scale", [1, 7e4])
def test_gradient_is_zero(name, scale):
    for normalize in (True, False):
        value, grad = gradient(awkward[name] * scale, squared=True, normalize=normalize)
        if normalize:
            assert grad.norm() < 1e-6
        elif name != "exact optimum":  # only the pull of mean |z|^2 is left: no rounding takes a direction for a spread
            assert torch.allclose(grad, 2 * awkward[name] * scale / len(grad), rtol=1e-5)


def test_parallel_rows_count_as_constant():
    value, grad = gradient(awkward["all rows parallel"], normalize=True)
    assert abs(value - math.sqrt(2)) < 1e-6 and grad.norm() == 0


def test_nearly_equal_rows_get_the_full_gradient():
    near = F.normalize(torch.ones(64, 8, dtype=torch.float64) + 1e-5 * draw(64, 8)).float()
    _, grad = gradient(near, squared=True)
    assert grad.norm() * 8 > 1  # 2 sqrt(7/8) in the limit


def test_zero_row_does_not_drown_the_others():
    _, grad = gradient(awkward["a zero row"])
    assert grad[-1].norm() == 0 and grad[:-1].norm() > 1e-3


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (9, 8)])
def test_gradcheck(shape):
    z = draw(*shape).requires_grad_()
    assert torch.autograd.gradcheck(wasserstein_uniformity, z)
    assert torch.autograd.gradcheck(lambda z: wasserstein_uniformity(z, normalize=False, squared=True), z)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("tall", [False, True])
def test_differentiable_once(monkeypatch, squared, tall):
    monkeypatch.setattr(module, "_is_tall", lambda z: tall)
    z = draw(12, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="expected a first derivative of W2; received create_graph=True"):
        torch.autograd.grad(wasserstein_uniformity(z, squared=squared), z, create_graph=True)


# --- many rows, other devices' algorithms, compilation, autocast ------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_path_for_many_rows(monkeypatch, normalize, dtype):
    z = (F.normalize(draw(9000, 12)) * torch.linspace(0.5, 1, 9000, dtype=torch.float64)[:, None]).to(dtype)
    results = []
    for tall in (True, False):
        monkeypatch.setattr(module, "_is_tall", lambda z, tall=tall: tall)
        results.append((*gradient(z, normalize=normalize), wasserstein_uniformity(z, normalize=normalize)))
    loose = {torch.float64: 1e-10, torch.float32: 5e-4, torch.float16: 2e-3}[dtype]
    for long, short in zip(*results, strict=True):
        assert (long - short).norm() <= loose * short.norm()
    constant = torch.ones(9000, 12, dtype=dtype)
    monkeypatch.setattr(module, "_is_tall", lambda z: True)
    assert gradient(constant)[1].norm() == 0
    constant[5, 5] = torch.nan
    with pytest.raises(ValueError, match="received 1 NaN"):
        gradient(constant)


@pytest.mark.parametrize("shape", [(256, 64), (64, 64), (65, 64), (40, 128), (4000, 16), (16, 4000)])
@pytest.mark.parametrize("rank", [None, 8])
def test_products_alone_agree_with_singular_values(shape, rank):
    "The algorithm of the GPU, run here."
    rows = solvers.centre_rows(F.normalize(draw(*shape, rank=rank)).float())[0]
    n, m = shape
    u, s, vt = torch.linalg.svd(rows.double(), full_matrices=False)
    live = s > 1e-2 * s[0]
    _, root, polar = solvers.polar_by_products(rows, n <= m, n, None)
    assert abs(root - s.sum() / math.sqrt(n)) * 2 / math.sqrt(m) < 5e-4
    shown = (u.T @ polar.double() @ vt.T).diagonal() / math.sqrt(n)
    assert (shown[live] - 1).abs().max() < 2e-2
    assert torch.linalg.matrix_norm(polar / math.sqrt(n), 2) < 1.02


def test_quintics_against_a_grid():
    "The polynomial found by exchange is no worse than a fine least-maximum search around it."
    low, high = 0.1 / 1.01, 1.01
    (a, b, c), error = solvers._minimax_quintic(low, high)
    x = np.linspace(low, high, 20001)
    worst = lambda a, b, c: np.abs(a * x + b * x**3 + c * x**5 - 1).max()  # noqa: E731
    assert abs(worst(a, b, c) - error) < 1e-9
    rng = np.random.default_rng(0)
    assert all(worst(*(np.array([a, b, c]) * (1 + 1e-3 * rng.standard_normal(3)))) > error for _ in range(200))


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_compiles_without_graph_breaks(shape):
    z = draw(*shape, dtype=torch.float32)
    compiled = torch.compile(wasserstein_uniformity, fullgraph=True, backend="aot_eager")
    fast, slow = z.clone().requires_grad_(), z.clone().requires_grad_()
    compiled(fast).backward()
    wasserstein_uniformity(slow).backward()
    assert (fast.grad - slow.grad).norm() < 1e-4 * slow.grad.norm()


def test_autocast_does_not_reach_inside():
    z = draw(64, 16, dtype=torch.float32)
    outside = gradient(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient(z)
    assert inside[0].dtype == torch.float32
    assert torch.equal(outside[0], inside[0]) and torch.equal(outside[1], inside[1])


# --- the finite sample --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, m, s, sd, w2sq",
    [
        (64, 64, 0.83938, None, 0.32123),
        (256, 256, 0.84654, 9.2e-4, 0.30692),
        (512, 256, 0.93189, 4.8e-4, 0.13621),
        (256, 2048, 0.34663, 4.4e-5, 1.30674),
        (2048, 64, 0.9958908, 1.25e-4, None),
        (4096, 256, 0.9920250, 6.1e-5, None),
    ],
)
def test_null_distribution_against_recorded_simulations(n, m, s, sd, w2sq):
    mean, spread = null_distribution(n, m)
    assert abs(mean - s) < 2e-4
    assert sd is None or abs(spread / sd - 1) < 0.12
    assert w2sq is None or abs(uniformity_floor(n, m) ** 2 - w2sq) < 4e-4


@pytest.mark.parametrize("n, m", [(64, 32), (48, 96), (200, 40)])
def test_null_distribution_against_simulation(n, m):
    source = np.random.default_rng(0)
    values = []
    for _ in range(200):
        z = source.standard_normal((n, m))
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        values.append(np.linalg.svd(z - z.mean(0), compute_uv=False).sum() / math.sqrt(n * m))
    mean, sd = null_distribution(n, m)
    assert abs(np.mean(values) - mean) < 4 * sd / math.sqrt(200) + 1e-4
    assert abs(np.std(values) / sd - 1) < 0.25


def test_the_old_name_of_the_null_distribution_warns():
    from wssl.metrics.wasserstein import null_law, root_and_inverse_by_products

    with pytest.warns(DeprecationWarning, match="null_law is now called null_distribution"):
        assert null_law(64, 32) == null_distribution(64, 32)
    assert root_and_inverse_by_products is solvers.root_and_inverse_by_products


def test_the_moments_are_enough_for_every_form():
    z = draw(100, 20)
    found = w2_moments(z)
    for squared in (False, True):
        for corrected in (False, True):
            assert found.w2(squared, corrected) == wasserstein_uniformity(z, squared=squared, corrected=corrected)
    with pytest.raises(ValueError, match="at least 2m = 40 rows for the corrected form; received 39"):
        w2_moments(z[:39]).w2(corrected=True)


def test_zscore_finds_what_is_not_uniform():
    source = torch.Generator().manual_seed(0)
    fair = [uniformity_zscore(torch.randn(256, 32, generator=source)).item() for _ in range(60)]
    assert abs(np.mean(fair)) < 0.5 and 0.75 < np.std(fair) < 1.3
    bent = torch.randn(2048, 32, generator=source) * torch.linspace(0.8, 1.2, 32)
    assert uniformity_zscore(bent) > 10
    assert uniformity_zscore(torch.cat([torch.eye(32), -torch.eye(32)])) < -3
    with pytest.raises(ValueError, match="at least 32 rows"):
        uniformity_zscore(torch.randn(31, 4))


def test_live_fraction():
    for share in (0.0, 0.25, 0.5, 1.0):
        w2 = math.sqrt(2 - 2 * math.sqrt(share))
        assert abs(live_fraction(w2) - share) < 1e-12
        assert abs(live_fraction(torch.tensor(w2)) - share) < 1e-6
    assert abs(live_fraction(uniformity_floor(100, 200), 100, 200) - 1) < 1e-12
    assert live_fraction(2.0) == 0


@pytest.mark.parametrize("n, m, live", [(256, 128, 128), (512, 128, 32), (1024, 64, 32), (4096, 64, 64)])
def test_corrected_form_removes_the_bias(n, m, live):
    truth = 2 - 2 * math.sqrt(live / m)
    plain, corrected = [], []
    for seed in range(4):
        z = draw(n, m, seed) * (torch.arange(m) < live)
        plain.append(wasserstein_uniformity(z, squared=True).item())
        corrected.append(wasserstein_uniformity(z, squared=True, corrected=True).item())
    assert abs(np.mean(corrected) - truth) < 0.1 * abs(np.mean(plain) - truth) + 2e-3


def test_corrected_loss_holds_the_factor_constant():
    z = draw(64, 8)
    value, grad = gradient(z, squared=True, corrected=True)
    s = 1 - reference(z)[0] / 2
    factor = (1 - value.item() / 2) / s
    assert factor > 1
    assert (grad - factor * reference(z)[1]).norm() < 1e-6 * grad.norm()
    uniform = draw(4096, 4)
    assert any(gradient(draw(64, 8, i), squared=True, corrected=True)[0] < 0 for i in range(10))  # not clipped
    assert wasserstein_uniformity(uniform, corrected=True) >= 0


# --- the class, and several processes ----------------------------------------------------------------------------------------


def test_metric_merges_and_matches_the_function():
    z = draw(301, 16, dtype=torch.float32)
    whole = WassersteinUniformity(16)
    whole.update(z)
    parts = []
    for piece in z.split([1, 100, 150, 50]):
        part = WassersteinUniformity(16)
        part.update(piece)
        parts.append(part)
    for part in parts[1:][::-1]:
        parts[0].merge_state(part)
    assert abs(parts[0].compute() - whole.compute()) < 1e-12
    assert abs(whole.compute() - wasserstein_uniformity(z.double())) < 1e-12
    assert abs(whole.compute() ** 2 - reference(z)[0]) < 1e-12
    assert abs(whole(z[:50]) - wasserstein_uniformity(z[:50].double())) < 1e-12  # forward: the batch alone
    whole.reset()
    with pytest.raises(ValueError, match="at least 1 row"), pytest.warns(UserWarning, match="before"):
        whole.compute()


@pytest.mark.parametrize("options", [{"squared": True}, {"corrected": True}, {"normalize": False}])
def test_metric_options(options):
    z = draw(100, 10)
    metric = WassersteinUniformity(10, **options)
    metric.update(z[:60])
    metric.update(z[60:])
    assert abs(metric.compute() - wasserstein_uniformity(z, **options)) < 1e-12


def test_metric_on_a_narrow_cone():
    z = F.normalize(1 + 1e-3 * draw(500, 16)).float()
    metric = WassersteinUniformity(16, squared=True)
    for batch in z.split(50):
        metric.update(batch)
    assert abs(metric.compute() - reference(z)[0]) < 1e-9


def _one_rank(rows, m, options, tall, rank):
    module._is_tall = lambda z: tall
    z = draw(2 * rows, m)[rank * rows :][:rows].clone().requires_grad_()
    loss = wasserstein_uniformity(z, group=wssl.WORLD, **options)
    loss.backward()
    metric = WassersteinUniformity(m)
    metric.update(z.detach())
    reading = wasserstein_uniformity(z.detach(), group=wssl.WORLD, **options)
    score = uniformity_zscore(z.detach(), group=wssl.WORLD) if 2 * rows >= 32 else torch.tensor(0.0)
    return loss.detach(), z.grad, reading, metric.compute(), score


def _ranks(cases, rank):
    return [_one_rank(*case, rank) for case in cases]


def test_two_processes_are_one():
    cases = [
        (30, 8, {}, False),
        (30, 8, {}, True),
        (5, 40, {}, False),
        (20, 40, {}, False),
        (21, 40, {"squared": True}, False),
        (30, 8, {"normalize": False}, False),
        (30, 8, {"normalize": False}, True),
        (30, 8, {"corrected": True}, False),
    ]
    for case, (first, second) in zip(cases, zip(*run_ranks(_ranks, cases), strict=True), strict=True):
        rows, m, options, _ = case
        z = draw(2 * rows, m)
        value, grad = gradient(z, **options)
        for got in (first, second):
            assert abs(got[0] - value) < 1e-12 and abs(got[2] - value) < 1e-9
            assert abs(got[3] - wasserstein_uniformity(z)) < 1e-9
            assert 2 * rows < 32 or abs(got[4] - uniformity_zscore(z)) < 1e-6
        assert (torch.cat([first[1], second[1]]) / 2 - grad).norm() < 1e-9 * max(grad.norm(), 1e-3), case


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize(
    "z, options, message",
    [
        (torch.zeros(4, 4, 4), {}, "matrix"),
        (torch.ones(4, 4, dtype=torch.int64), {}, "floating point"),
        (torch.full((4, 4), torch.nan), {}, "16 NaN or infinite values"),
        (torch.eye(4).index_fill(0, torch.tensor(0), torch.inf), {}, "4 NaN or infinite values"),
        (torch.eye(4), {"corrected": True}, "2m = 8 rows"),
        (torch.zeros(0, 4), {}, "at least 1 row"),
        (torch.eye(4), {"group": "all"}, "WORLD or a ProcessGroup"),
    ],
)
def test_refuses(z, options, message, needs_grad):
    if z.is_floating_point():
        z = z.clone().requires_grad_(needs_grad)
    with pytest.raises(ValueError, match=message):
        wasserstein_uniformity(z, **options)
