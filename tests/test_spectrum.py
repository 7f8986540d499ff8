"""Eigenvalues and what is made of them, against numpy's singular values, scipy's entropy and known spectra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wssl.metrics import RankMe
from wssl.metrics.spectrum import (
    alpha_req,
    embedding_std,
    participation_ratio,
    rankme,
    singular_spectrum,
    stable_rank,
)


def rows(n, m, seed=0, dtype=torch.float64):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def singular_values(z, center, normalize):
    z = z.double().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if normalize else z
    return np.linalg.svd(z - z.mean(0) if center else z, compute_uv=False)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**16), st.booleans(), st.booleans())
def test_all_numbers_against_singular_values(n, m, rank, seed, center, normalize):
    z = rows(n, rank, seed) @ rows(rank, m, seed + 1)
    s = singular_values(z, center, normalize)
    # where nothing or rounding is left after centring, the reference itself is noise
    s = np.where(s > 1e-9 * np.linalg.norm(z.numpy()) * (1 if not normalize else 1 / np.linalg.norm(z.numpy())), s, 0)
    spectrum = singular_spectrum(z, center, normalize)
    assert spectrum.shape == (m,) and (spectrum >= 0).all() and (spectrum.diff() <= 0).all()
    expected = np.zeros(m)
    expected[: len(s)] = s**2 / n
    np.testing.assert_allclose(spectrum, expected, atol=1e-12 * max(1, expected[0]))
    if s.max() == 0 and spectrum[0] > 0:  # rows equal but for rounding: ratios of rounding mean nothing
        assert spectrum[0] < 1e-24
        return
    if s.max() == 0:
        assert (
            stable_rank(z, center, normalize)
            == participation_ratio(z, center, normalize)
            == rankme(z, center, normalize)
            == 0
        )
        return
    assert stable_rank(z, center, normalize).item() == pytest.approx((s**2).sum() / s.max() ** 2, rel=1e-9)
    assert participation_ratio(z, center, normalize).item() == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-9)
    assert rankme(z, center, normalize).item() == pytest.approx(math.exp(stats.entropy(s)), rel=1e-4)
    assert 1 <= rankme(z, center, normalize) <= min(n, m)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 40),
    st.integers(1, 40),
    st.floats(0, 4),
    st.integers(0, 2**16),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_ranges_and_order_of_the_ranks(n, m, decay, seed, normalize, dtype):
    "1 <= stable rank <= participation ratio <= effective rank of the same spectrum <= min(n - 1, m)."
    z = (rows(n, m, seed) * torch.arange(1, m + 1, dtype=torch.float64) ** -decay).to(dtype)
    ranks = [f(z, True, normalize).item() for f in (stable_rank, participation_ratio, rankme)]
    slack = 1 + 1e-9
    if ranks[0] == 0:  # unit rows on a line may all be equal
        assert ranks == [0, 0, 0] and embedding_std(z, normalize).item() < 1e-6
        return
    assert 1 / slack <= ranks[0] <= ranks[1] * slack and ranks[1] <= ranks[2] * slack
    assert ranks[2] <= min(n - 1, m) * slack and rankme(z, False, normalize) <= min(n, m)
    assert alpha_req(z, normalize=normalize) >= -1e-9
    assert 0 <= embedding_std(z) <= slack / m**0.5


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 2**16), st.floats(1e-6, 1e6))
def test_what_clones_zeros_and_a_scale_leave_alone(n, m, seed, scale):
    z = rows(n, m, seed)
    zeros = torch.cat([z, torch.zeros(n, 5, dtype=z.dtype)], 1)
    for metric in (
        rankme,
        lambda x: stable_rank(x, normalize=False),
        lambda x: participation_ratio(x, normalize=False),
    ):
        for same in (torch.cat([z, z]), torch.cat([z, z], 1), zeros, scale * z):
            torch.testing.assert_close(metric(same), metric(z), rtol=1e-6, atol=0)
    torch.testing.assert_close(embedding_std(zeros), embedding_std(z) * m / (m + 5))
    torch.testing.assert_close(embedding_std(torch.cat([z, z], 1)), embedding_std(z) / 2**0.5)


@pytest.mark.parametrize("n", [32, 64, 256, 2048])
def test_white_noise_follows_the_laws_for_few_rows(n):
    "Stable rank m/(1 + sqrt g)^2 and participation ratio m/(1 + g) with g = m/n."
    m = 64
    z = rows(n, m, n)
    assert participation_ratio(z, False, False).item() == pytest.approx(m / (1 + m / n), rel=0.06)
    assert stable_rank(z, False, False).item() == pytest.approx(m / (1 + (m / n) ** 0.5) ** 2, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e3])
@pytest.mark.parametrize("shape", [(64, 16), (5, 16), (2, 1)])
def test_constant_rows_have_no_spectrum_and_no_nan(dtype, value, shape):
    z = torch.full(shape, value, dtype=dtype)
    for normalize in (True, False):
        assert (singular_spectrum(z, normalize=normalize) == 0).all()
        assert stable_rank(z, normalize=normalize) == participation_ratio(z, normalize=normalize) == 0
        assert alpha_req(z, normalize=normalize) == math.inf
        assert embedding_std(z, normalize=normalize).item() == pytest.approx(0, abs=1e-8)
    assert rankme(z).item() == pytest.approx(float(value != 0), abs=1e-6)
    # the same direction, lengths that differ: constant up to the rounding of the type
    scaled = (z * torch.linspace(0.5, 1.5, len(z))[:, None]).to(dtype)
    assert (singular_spectrum(scaled) == 0).all()


def test_rank_is_that_of_the_data_and_never_above_the_bound():
    low = (rows(500, 7) @ rows(7, 64, 1)).float()
    assert ((singular_spectrum(low, False, False) / singular_spectrum(low, False, False)[0]) > 1e-12).sum() == 7
    assert rankme(low) < 7.01
    orthonormal = torch.linalg.qr(rows(256, 256))[0]
    assert rankme(orthonormal).item() == pytest.approx(256, rel=1e-10) and rankme(orthonormal) <= 256
    assert rankme(torch.eye(512, 40, dtype=torch.float32)) <= 40
    # one public library adds 1e-5 to every share and reports 517 of 512 dimensions
    assert rankme(rows(4096, 512, dtype=torch.float32)).item() == pytest.approx(503.6, abs=0.3)


def test_cookbook_values_under_cloning_padding_and_a_mean():
    z = rows(4096, 256)
    base = rankme(z)
    assert base.item() == pytest.approx(254.0, abs=0.2)
    for same in (torch.cat([z, z]), torch.cat([z, z], 1), torch.cat([z, torch.zeros_like(z)], 1)):
        torch.testing.assert_close(rankme(same), base, rtol=1e-6, atol=0)
    assert rankme(z, normalize=True).item() == pytest.approx(base.item(), abs=0.1)
    assert rankme(z + 10).item() == pytest.approx(57.9, abs=2)
    torch.testing.assert_close(rankme(z + 10, center=True), rankme(z, center=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("first, last", [(1, None), (5, 20)])
def test_alpha_of_a_power_law(alpha, first, last):
    q = torch.linalg.qr(rows(300, 30))[0]
    q = torch.linalg.qr(q - q.mean(0))[0]
    assert alpha_req(q * torch.arange(1, 31, dtype=torch.float64) ** (-alpha / 2), first, last).item() == pytest.approx(
        alpha, abs=1e-9
    )


def test_alpha_is_the_weighted_least_squares_slope():
    z = rows(200, 25) * torch.linspace(1, 0.05, 25)
    values = singular_spectrum(z, normalize=False).numpy()
    j = np.arange(1, 26)
    slope = np.polyfit(np.log(j), np.log(values), 1, w=np.sqrt(1 / j))[0]
    assert alpha_req(z).item() == pytest.approx(-slope, rel=1e-9)


def test_std_is_that_of_unit_rows():
    z = rows(3000, 64, 4) + 0.3
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    assert embedding_std(z).item() == pytest.approx(unit.std(0).mean(), rel=1e-10)
    assert embedding_std(rows(20000, 64)).item() == pytest.approx(1 / 8, rel=1e-2)


def test_many_rows_in_low_precision_are_read_in_float64():
    z = rows(70_000, 8, 2).half() + 4
    np.testing.assert_allclose(
        singular_spectrum(z, True, False), singular_values(z, True, False) ** 2 / len(z), rtol=1e-9
    )


def test_metric_class_over_batches_merged():
    z = rows(40, 12, 3)
    whole = rankme(z)
    a, b = RankMe(12), RankMe(12)
    a.update(z[:7])
    a.update(z[7:20])
    b.update(z[20:])
    a.merge_state(b)
    torch.testing.assert_close(a.compute(), whole)
    few = RankMe(12)
    few.update(z[:5])
    torch.testing.assert_close(few.compute(), rankme(z[:5]), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    "call",
    [
        lambda: rankme(torch.zeros(4)),
        lambda: singular_spectrum(torch.full((4, 4), math.inf)),
        lambda: alpha_req(torch.ones(4, 4), 3, 3),
        lambda: RankMe(4).update(torch.ones(3, 5)),
        lambda: RankMe(4).compute(),
    ],
)
def test_bad_input(call):
    with pytest.raises(ValueError, match="^expected .*; received "):
        call()
