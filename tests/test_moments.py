"""Moments: NumPy in float64, any split and any order, half types, two processes."""

import random
from functools import reduce

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import wssl
from tests.distributed import run_ranks
from wssl.core.rows import normalize_rows
from wssl.metrics import Moments
from wssl.metrics.moments import CHUNK, gram


def rows(n, m, seed=0, dtype=torch.float64):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + 1


def w2(moments):
    mean, cov = moments.mean.numpy(), moments.cov.numpy()
    value = 1 + mean @ mean + np.trace(cov) - 2 / len(mean) ** 0.5 * np.sqrt(np.linalg.eigvalsh(cov).clip(0)).sum()
    return np.sqrt(max(value, 0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**31), st.lists(st.integers(0, 300), max_size=6))
def test_any_split_in_any_order(n, m, seed, cuts):
    z, cuts = rows(n, m, seed), sorted(min(cut, n) for cut in cuts)
    shards = [Moments(m).update(part) for part in torch.tensor_split(z, cuts)]
    random.Random(seed).shuffle(shards)
    whole = reduce(Moments.merge, shards, Moments(m))
    assert whole.count == n
    assert np.abs(whole.mean.numpy() - z.numpy().mean(0)).max() < 1e-12
    assert np.abs(whole.cov.numpy() - np.cov(z.numpy().T, bias=True).reshape(m, m)).max() < 1e-12


@pytest.mark.parametrize("kind", ["sphere", "half dead", "cone", "sorted"])
def test_streamed_float32_gives_w2_within_1e_8(kind):
    z = torch.randn(60_000, 24, generator=torch.Generator().manual_seed(0))
    if kind == "half dead":
        z[:, 12:] *= 0.01
    if kind == "cone":
        z[:, 0] += 30
    z = F.normalize(z, dim=1)
    if kind == "sorted":
        z = z[z[:, 0].argsort()]
    streamed, exact = Moments(24), Moments(24)
    for chunk in z.split(7000):
        streamed.update(chunk)
    mean, wide = z.double().mean(0), z.double()
    exact.count, exact._mean, exact._scatter = len(z), mean, (wide - mean).T @ (wide - mean)
    assert abs(w2(streamed) - w2(exact)) < 1e-8


def test_outlying_first_rows_cost_no_digits():
    z = torch.cat([torch.full((3, 8), 1000.0), F.normalize(1 + 1e-2 * rows(20_000, 8)).float()])
    cov = Moments(8).update(z[:3]).update(z[3:]).cov
    later = Moments(8).update(z[3:]).cov
    assert np.allclose(cov, np.cov(z.double().numpy().T, bias=True), rtol=1e-6)
    assert np.allclose(later, np.cov(z[3:].double().numpy().T, bias=True), rtol=1e-4, atol=1e-10)


def test_rows_are_prepared_chunk_by_chunk():
    z = rows(2 * CHUNK + 5, 6)
    assert torch.allclose(
        Moments(6).update(z, normalize_rows).cov, Moments(6).update(normalize_rows(z)).cov, atol=1e-15
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types(half):
    z = rows(5000, 8).to(half)
    assert np.allclose(Moments(8).update(z).cov, np.cov(z.double().numpy().T, bias=True), rtol=1e-5, atol=1e-6)


def test_constant_rows_have_no_scatter():
    assert Moments(3).update(torch.full((10_000, 3), 0.1)).cov.abs().max() < 1e-16


def test_gram_is_a_product_of_any_layout():
    x = rows(50, 7)
    for y in (x, x.T, x[::2], x[:, ::2], x.t()[:, ::3], x.float()):
        assert torch.allclose(gram(y), torch.einsum("ij,ik->jk", y, y), rtol=1e-5)
    assert not gram(x.requires_grad_()).requires_grad


def test_merging_leaves_the_other_alone():
    one, other = Moments(4).update(rows(10, 4)), Moments(4).update(rows(20, 4, 1))
    before = other.cov.clone()
    one.merge(other)
    assert torch.equal(other.cov, before) and other.count == 20 and one.count == 30
    other.update(rows(5, 4, 2))
    assert one.count == 30


def test_a_refused_update_changes_nothing():
    moments = Moments(4).update(rows(10, 4))
    before = moments.cov.clone()
    broken = rows(10, 4, 1)
    broken[3, 2] = torch.inf
    with pytest.raises(ValueError, match="1 NaN or infinite value of 40"):
        moments.update(broken)
    assert torch.equal(moments.cov, before) and moments.count == 10
    for wrong, message in [(torch.zeros(3, 5), "4 columns"), (torch.zeros(3), "matrix")]:
        with pytest.raises(ValueError, match=message):
            moments.update(wrong)
    with pytest.raises(ValueError, match="4 columns"):
        moments.merge(Moments(5))
    with pytest.raises(ValueError, match="at least 1 row"):
        Moments(4).mean  # noqa: B018


def _reduced(rank):
    mine = Moments(6).update(rows(40, 6)[: 15 if rank == 0 else 0] if rank == 0 else rows(40, 6)[15:])
    whole, empty = mine.reduce(wssl.WORLD), Moments(6).reduce(wssl.WORLD)
    return whole.count, whole.mean, whole.cov, mine.count, mine.reduce().count, empty.count


def test_two_processes_with_different_counts():
    expected = np.cov(rows(40, 6).numpy().T, bias=True)
    for rank, (count, mean, cov, local, alone, empty) in enumerate(run_ranks(_reduced)):
        assert (count, local, alone, empty) == (40, (15, 25)[rank], (15, 25)[rank], 0)
        assert (
            np.abs(cov.numpy() - expected).max() < 1e-13
            and np.abs(mean.numpy() - rows(40, 6).numpy().mean(0)).max() < 1e-13
        )
