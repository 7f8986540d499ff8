"""Slopes at the edges, and two losses over grids against plain loops: what once was wrong without a word stays looked at."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wssl.losses import cholesky_whiten, dino_loss, nt_xent, visreg_loss, w_mse_loss

# ---- VISReg's scale term


def _force(z, **how):
    z = z.clone().requires_grad_()
    visreg_loss(z, center=0, shape=0, **how).backward()
    return z.grad


def _force_by_formula(z):
    """-2 (1 - sigma_j) / m times d sigma_j / d z_ij = (z_ij - mu_j) / (n sigma_j), in numpy and float64."""
    z = z.double().numpy()
    mean, sigma = z.mean(0), z.std(0)
    return -2 * (1 - sigma) / z.shape[1] * (z - mean) / (len(z) * sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-15, 1e-30])
def test_visreg_pushes_a_coordinate_out_of_any_collapse(scale, dtype):
    z = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z -= z.mean(0)
    z[:, 0] *= scale
    z = z.to(dtype)
    found, expected = _force(z).double(), torch.from_numpy(_force_by_formula(z))
    tight = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=tight, atol=tight * expected.abs().max().item())
    strength = 64**0.5 * found[:, 0].norm().item()
    assert strength == pytest.approx(2 / 64 * abs(1 - z[:, 0].double().std(correction=0).item()), rel=1e-3)


def test_visreg_opens_a_coordinate_that_had_all_but_vanished():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    z[:, 0] *= 1e-7
    for _ in range(500):
        z -= 8 * _force(z)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(8), rtol=0, atol=0.05)


def test_visreg_knows_no_way_out_of_a_point():
    for point in (torch.zeros(16, 4), torch.full((16, 4), 0.1), torch.full((16, 4), 3e8)):
        slope = _force(point)
        assert slope.isfinite().all() and slope.abs().max() <= 2 / 4 / 16 * 1.01
    far = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 1e-3 + 50.0
    torch.testing.assert_close(_force(far).double(), torch.from_numpy(_force_by_formula(far)), rtol=1e-2, atol=1e-4)


# ---- whitening what cannot be whitened


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [4, 16, 64, 128])
def test_rows_of_a_layernorm_are_never_whitened_by_luck(m, dtype):
    """Their covariance is singular; half of all batches have a Cholesky factor by rounding."""
    for seed in range(12):
        draw = torch.Generator().manual_seed(seed)
        mix = torch.randn(m, m, generator=draw, dtype=dtype)
        z = F.layer_norm(torch.randn(4 * m, m, generator=draw, dtype=dtype) @ mix, (m,))
        twin = torch.cat([z[:, 1:], z[:, 1:2] - 2 * z[:, -1:]], 1)  # a column that others give
        for singular in (z, 1e-4 * z, z + 3, twin):
            assert cholesky_whiten(singular).isnan().all() and w_mse_loss(singular, z).isnan()
        assert cholesky_whiten(z, eps=1e-3).isfinite().all()
        free = cholesky_whiten(z[:, 1:].contiguous())  # without one of the dependent columns all is well
        torch.testing.assert_close(free.T.cov(), torch.eye(m - 1, dtype=dtype), rtol=0, atol=2e-2)
    assert "NaN" in cholesky_whiten.__doc__ and "LayerNorm" in cholesky_whiten.__doc__


# ---- plain loops over grids


@pytest.mark.parametrize(("n", "m", "tau"), itertools.product([1, 2, 5, 16], [1, 3, 32], [0.05, 0.1, 0.5, 1.0, 5.0]))
def test_nt_xent_by_loops(n, m, tau):
    a, b = np.random.default_rng(n * m).normal(size=(2, n, m))
    rows = [row / math.sqrt(sum(x * x for x in row)) for row in [*a, *b]]
    cosine = [[sum(x * y for x, y in zip(u, v, strict=True)) / tau for v in rows] for u in rows]
    total = 0.0
    for i in range(2 * n):
        largest = max(cosine[i][k] for k in range(2 * n) if k != i)
        chance = sum(math.exp(cosine[i][k] - largest) for k in range(2 * n) if k != i)
        total += largest + math.log(chance) - cosine[i][(i + n) % (2 * n)]
    found = nt_xent(torch.tensor(a), torch.tensor(b), tau).item()
    assert found == pytest.approx(total / (2 * n), rel=1e-12, abs=1e-13)


GRID = list(itertools.product([1, 3, 8], [2, 7], [2, 3, 6], [0.05, 0.1, 1.0]))


@pytest.mark.parametrize(("n", "k", "views", "tau"), GRID)
def test_dino_by_loops(n, k, views, tau):
    random = np.random.default_rng(n * k + views)
    student, teacher = random.normal(size=(views, n, k)), random.dirichlet(np.ones(k), size=(2, n))
    total, terms = 0.0, 0
    for t in range(2):
        for v in range(views):
            if v == t:
                continue
            terms += 1
            for i in range(n):
                scores = [s / tau for s in student[v, i]]
                log_sum = max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores))
                total -= sum(p * (s - log_sum) for p, s in zip(teacher[t, i], scores, strict=True)) / n
    tensors = [torch.tensor(s, requires_grad=True) for s in student]
    loss = dino_loss(tensors, [torch.tensor(t) for t in teacher], tau)
    assert loss.item() == pytest.approx(total / terms, rel=1e-12)
    loss.backward()
    for v, scores in enumerate(tensors):
        p = np.exp(student[v] / tau - np.logaddexp.reduce(student[v] / tau, 1, keepdims=True))
        pull = sum(p - teacher[t] for t in range(2) if t != v) / (tau * n * terms)
        np.testing.assert_allclose(scores.grad.numpy(), pull, rtol=1e-10, atol=1e-14)
