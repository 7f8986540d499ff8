"""Distances to N(0, I/m) against scipy's matrix root, an optimal-transport library, torch.distributions and autograd."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch.distributions import MultivariateNormal, kl_divergence

from wssl.theory.gaussians import bhattacharyya, gaussian_kl, gaussian_w2


def moments(m, rank, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(m, rank, generator=g, dtype=torch.float64) * scale
    return torch.randn(m, generator=g, dtype=torch.float64), factor @ factor.T / m, factor


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 2**16))
def test_w2_against_scipy_and_pot(m, seed):
    mean, cov, _ = moments(m, m + 3, seed)  # full rank: both others fail on a singular matrix
    middle = np.eye(m) / math.sqrt(m)
    cross = np.trace(sqrtm(middle @ cov.numpy() @ middle)).real
    squared = (mean @ mean + cov.trace() + 1).item() - 2 * cross
    assert gaussian_w2(mean, cov).item() == pytest.approx(math.sqrt(squared), rel=1e-6)
    theirs = ot.gaussian.bures_wasserstein_distance(mean.numpy(), np.zeros(m), cov.numpy(), np.eye(m) / m)
    assert gaussian_w2(mean, cov).item() == pytest.approx(float(theirs), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**16))
def test_w2_at_any_rank_against_singular_values(m, rank, seed):
    """cov = F F'/m, so the trace of its root is the sum of the singular values of F over sqrt m."""
    mean, cov, factor = moments(m, rank, seed)
    nuclear = np.linalg.svd(factor.numpy(), compute_uv=False).sum() / math.sqrt(m)
    squared = (mean @ mean + cov.trace() + 1).item() - 2 / math.sqrt(m) * nuclear
    assert gaussian_w2(mean, cov).item() == pytest.approx(math.sqrt(squared), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10), st.integers(0, 2**16))
def test_kl_and_bhattacharyya_against_torch_and_the_formula(m, seed):
    mean, cov, _ = moments(m, m + 5, seed)
    p, q = (
        MultivariateNormal(mean, cov),
        MultivariateNormal(torch.zeros(m, dtype=torch.float64), torch.eye(m, dtype=torch.float64) / m),
    )
    assert gaussian_kl(mean, cov).item() == pytest.approx(kl_divergence(p, q).item(), rel=1e-8)
    s, c = (cov.numpy() + np.eye(m) / m) / 2, np.eye(m) / m
    logdet = [np.linalg.slogdet(x)[1] for x in (s, cov.numpy(), c)]
    lemma = mean.numpy() @ np.linalg.inv(s) @ mean.numpy() / 8 + 0.5 * (logdet[0] - (logdet[1] + logdet[2]) / 2)
    assert bhattacharyya(mean, cov).item() == pytest.approx(lemma, rel=1e-8)


@pytest.mark.parametrize("distance", [gaussian_w2, gaussian_kl, bhattacharyya])
def test_gradient_is_the_derivative(distance):
    mean, cov, factor = moments(5, 8)
    through = lambda mean, factor: distance(mean, factor @ factor.T / 5)  # noqa: E731
    assert torch.autograd.gradcheck(through, (mean.requires_grad_(), factor.requires_grad_()))


def test_gradient_at_rank_deficiency_repeats_and_optimum():
    m = 8
    for diagonal in (
        [1 / m] * m,
        [0.25] * 4 + [0.0] * 4,
        [0.0] * m,
        [1.0] + [0.0] * 7,
        [0.5, 0.5 - 1e-16] + [1e-17] * 6,
    ):
        for dtype in (torch.float64, torch.float32):
            mean = torch.zeros(m, dtype=dtype, requires_grad=True)
            cov = torch.diag(torch.tensor(diagonal, dtype=dtype)).requires_grad_()
            gaussian_w2(mean, cov).backward()
            assert torch.isfinite(cov.grad).all() and torch.isfinite(mean.grad).all()
            if diagonal[-1] == 1 / m:
                assert cov.grad.abs().max() < 1e-3
    # through a factor, as in training: a rank-deficient batch follows the finite difference in its live directions
    mean, _, factor = moments(6, 3)
    assert torch.autograd.gradcheck(lambda f: gaussian_w2(mean, f @ f.T / 6), factor.requires_grad_())


@pytest.mark.parametrize("m", [2, 16, 200])
def test_closed_forms(m):
    zero, eye = torch.zeros(m, dtype=torch.float64), torch.eye(m, dtype=torch.float64)
    unit = torch.full((m,), m**-0.5, dtype=torch.float64)
    assert gaussian_w2(zero, eye / m).item() < 1e-12 and gaussian_w2(zero.float(), eye.float() / m).item() < 1e-6
    assert gaussian_w2(unit, 0 * eye).item() == pytest.approx(math.sqrt(2), rel=1e-12)
    assert gaussian_w2(zero, 0 * eye).item() == pytest.approx(1, rel=1e-14)
    for r in (1, m // 2, m):
        alive = torch.diag((torch.arange(m) < r) / r).double()
        assert gaussian_w2(zero, alive).item() == pytest.approx(math.sqrt(2 - 2 * math.sqrt(r / m)), abs=1e-7)
        assert math.isinf(gaussian_kl(zero, alive)) is (r < m) is math.isinf(bhattacharyya(zero, alive))


@pytest.mark.parametrize("n, m", [(20, 40), (200, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_rows_than_dimensions_is_infinite_for_kl_and_bhattacharyya(n, m, dtype):
    """A singular covariance has eigenvalues of either sign near rounding; none of them may be taken for a live one."""
    for seed in range(5):
        z = torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        z = z / z.norm(dim=1, keepdim=True)
        mean, cov = z.mean(0), torch.cov(z.T, correction=0)
        assert math.isinf(gaussian_kl(mean, cov)) is (n < m) is math.isinf(bhattacharyya(mean, cov))
        assert 0 < gaussian_w2(mean, cov) < math.sqrt(2)


def test_a_fading_eigenvalue_separates_the_three():
    zero = torch.zeros(4, dtype=torch.float64)
    fading = [torch.diag(torch.tensor([1 - v, 1.0, 1.0, v], dtype=torch.float64) / 3) for v in (1e-4, 1e-8, 1e-12)]
    kl, db, w2 = ([f(zero, c).item() for c in fading] for f in (gaussian_kl, bhattacharyya, gaussian_w2))
    assert np.diff(kl) == pytest.approx([0.5 * math.log(1e4)] * 2, rel=1e-3)
    assert np.diff(db) == pytest.approx([0.25 * math.log(1e4)] * 2, rel=1e-3)
    assert abs(w2[2] - w2[1]) < 1e-4 and w2[2] == pytest.approx(math.sqrt(2 - 2 * math.sqrt(3 / 4)), abs=1e-5)


@pytest.mark.parametrize(
    "mean, cov, says",
    [
        (torch.zeros(3), torch.eye(4), "shapes"),
        (torch.zeros(3, 1), torch.eye(3), "shapes"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
        (torch.zeros(2), torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "finite"),
    ],
)
@pytest.mark.parametrize("distance", [gaussian_w2, gaussian_kl, bhattacharyya])
def test_bad_moments(distance, mean, cov, says):
    with pytest.raises(ValueError, match=f"^expected .*{says}|{says}.*"):
        distance(mean, cov)
