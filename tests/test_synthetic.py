"""Synthetic embeddings: what is promised of each generator holds for every size, and follows from the draw alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wssl.core.seeds import generator
from wssl.data.synthetic import (
    LAWS,
    append_zeros,
    clone_features,
    clone_rows,
    clusters,
    collapsed_gaussian,
    cone,
    constant_collapse,
    cross_polytope,
    isotropic_gaussian,
    law,
    live_dimensions,
    one_hot,
    power_law,
    power_spectrum,
)

SIZES = {"n": st.integers(1, 40), "m": st.integers(1, 24), "seed": st.integers(0, 1000)}
FAST = settings(max_examples=40, deadline=None)


def w2_squared(z):
    "Eq. 8 of Fang et al. 2024, retyped with numpy in float64 through the singular values."
    z = np.asarray(z, dtype=np.float64)
    n, m = z.shape
    roots = np.linalg.svd(z - z.mean(0), compute_uv=False).sum() / n**0.5
    return (z**2).sum() / n + 1 - 2 / m**0.5 * roots


DRAWN = {
    "isotropic": lambda n, m, g: isotropic_gaussian(n, m, g),
    "collapsed": lambda n, m, g: collapsed_gaussian(n, m, 0.3 if m > 1 else 0.0, generator=g),
    "constant": lambda n, m, g: constant_collapse(n, m, 0.1, g),
    "clusters": lambda n, m, g: clusters(n, m, generator=g)[0],
    "cone": lambda n, m, g: cone(n, m, 2.0, g),
    "power": lambda n, m, g: power_law(n, m, 1.0, g),
    **{name: lambda n, m, g, name=name: law(name, n, m, g) for name in LAWS},
}


@pytest.mark.parametrize("name", DRAWN)
@given(**SIZES)
@FAST
def test_a_draw_is_a_function_of_its_generator(name, n, m, seed):
    first, again = (DRAWN[name](n, m, generator(seed, name)) for _ in range(2))
    assert first.shape == (n, m) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "isotropic"])
def test_rows_have_length_one(name):
    z = DRAWN[name](500, 12, generator(0, name))
    assert torch.allclose(z.norm(dim=1), torch.ones(500), atol=1e-5)


def test_the_global_generator_is_used_where_none_is_given():
    torch.manual_seed(3)
    first = isotropic_gaussian(4, 3)
    torch.manual_seed(3)
    assert torch.equal(first, torch.randn(4, 3) / 3**0.5)


@given(m=st.integers(1, 2000), dead=st.integers(0, 1999))
@settings(max_examples=200, deadline=None)
def test_no_live_dimension_is_lost_to_binary_rounding(m, dead):
    if dead < m:
        assert live_dimensions(m, dead / m) == m - dead


@pytest.mark.parametrize("degree", [0.05 * i for i in range(20)])
def test_live_dimensions_at_the_degrees_of_figure_3(degree):
    assert [live_dimensions(m, degree) for m in (200, 500, 1000)] == [m - round(m * degree) for m in (200, 500, 1000)]


@pytest.mark.parametrize(
    ("order", "norm"), [("zero_then_normalize", 1.0), ("normalize_then_zero", 0.25)], ids=["zero first", "norm first"]
)
def test_the_two_orders_have_their_own_limit(order, norm):
    z = collapsed_gaussian(20_000, 32, 0.75, order, generator(0, "order"), torch.float64)
    assert (z[:, 8:] == 0).all() and (z[:, :8] != 0).all()
    assert z.square().sum(1).mean().item() == pytest.approx(norm, abs=5e-3)
    limit = 2 - 2 * 0.25**0.5 if norm == 1 else 0.75  # Eq. 8 with trace of the root sqrt(r), or r / sqrt(m)
    assert w2_squared(z) == pytest.approx(limit, abs=3e-3)


@given(m=st.integers(1, 20), data=st.data())
@FAST
def test_cross_polytope_is_an_exact_dimensional_collapse(m, data):
    live = data.draw(st.integers(1, m))
    z = cross_polytope(m, live, torch.float64)
    assert w2_squared(z) == pytest.approx(2 - 2 * (live / m) ** 0.5, abs=1e-12)
    assert len(z.unique(dim=0)) == 2 * live


@given(m=st.integers(1, 40))
@FAST
def test_one_hot_rows_have_their_closed_form(m):
    assert w2_squared(one_hot(m)) == pytest.approx(2 / m, abs=1e-12)


def test_constant_collapse_is_constant_without_noise():
    z = constant_collapse(50, 8, generator=generator(0, "c"))
    assert (z == z[0]).all()
    assert w2_squared(z) == pytest.approx(2, abs=1e-6)


@given(n=st.integers(1, 60), k=st.integers(1, 12))
@FAST
def test_clusters_have_equal_sizes(n, k):
    z, labels = clusters(n, 6, k, spread=0.0, generator=generator(k, "clusters"))
    sizes = torch.bincount(labels, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert all(len(z[labels == i].unique(dim=0)) <= 1 for i in range(k))


@given(n=st.integers(2, 20), m=st.integers(1, 10), k=st.integers(0, 4))
@FAST
def test_operations_keep_what_the_axioms_say(n, m, k):
    z = isotropic_gaussian(n, m, generator(0, "axioms", n, m), dtype=torch.float64)
    gram = z @ z.T
    assert torch.allclose(append_zeros(z, k) @ append_zeros(z, k).T, gram, atol=1e-13)
    assert torch.allclose(clone_features(z, k) @ clone_features(z, k).T, (k + 1) * gram, atol=1e-12)
    again = clone_features(z, k, renormalize=True)
    assert torch.allclose(again @ again.T, gram, atol=1e-12) and again.shape == (n, m * (k + 1))
    rows = clone_rows(z, k)
    assert rows.shape == (n * (k + 1), m)
    assert sorted(map(tuple, rows.tolist())) == sorted([row for row in map(tuple, z.tolist()) for _ in range(k + 1)])


REFERENCE = {
    "isotropic Gaussian": stats.norm(),
    "uniform on [-1, 1]": stats.uniform(-1, 2),
    "Laplace": stats.laplace(),
    "Student t, 3 degrees": stats.t(3),
    "Gaussian, mean 0.5": stats.norm(0.5),
    "Gaussian, mean 1": stats.norm(1),
    "exponential": stats.expon(),
    "uniform on [0, 1]": stats.uniform(),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_laws_follow_scipys_distribution(name):
    z = law(name, 400, 50, generator(0, name), normalize=False, dtype=torch.float64)
    assert stats.kstest(z.flatten().numpy(), REFERENCE[name].cdf).pvalue > 1e-3


def test_laws_without_a_reference_have_their_shape():
    assert set(LAWS) - set(REFERENCE) == {"coin flips", "two Gaussians, means +1 and -1", "ten Gaussians, random means"}
    coins = law("coin flips", 200, 50, generator(0, "coin"), normalize=False)
    assert set(coins.unique().tolist()) == {-1.0, 1.0} and abs(coins.mean()) < 0.05
    halves = law("two Gaussians, means +1 and -1", 400, 400, generator(0, "two"), normalize=False).mean(1)
    assert ((halves.abs() - 1).abs() < 0.3).all() and 120 < (halves > 0).sum() < 280
    ten = law("ten Gaussians, random means", 400, 400, generator(0, "ten"), normalize=False)
    assert (torch.cov(ten.reshape(40, 10, 400).mean(0)).diagonal() > 0.8).all()


@given(m=st.integers(1, 64), exponent=st.floats(0, 4))
@FAST
def test_power_spectrum(m, exponent):
    expected = np.arange(1, m + 1, dtype=np.float64) ** -exponent
    got = power_spectrum(m, exponent, torch.float64).numpy()
    assert np.allclose(got, expected / expected.sum(), rtol=1e-12)


def test_power_law_has_its_covariance():
    z = power_law(200_000, 6, 1.5, generator(0, "power"), normalize=False, dtype=torch.float64)
    assert torch.allclose(z.T.cov(), torch.diag(power_spectrum(6, 1.5, torch.float64)), atol=5e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: isotropic_gaussian(0, 4), "at least 1 row and 1 dimension; received n = 0, m = 4"),
        (lambda: collapsed_gaussian(4, 8, 1.0), r"collapse in \[0, 1\); received 1.0"),
        (lambda: collapsed_gaussian(4, 8, 0.5, "other"), "an order among .*; received 'other'"),
        (lambda: cross_polytope(4, 0), "live dimensions in 1..4; received 0"),
        (lambda: clusters(4, 4, 0), "at least 1 cluster; received 0"),
        (lambda: append_zeros(torch.zeros(3), 1), r"a matrix \(n, m\); received shape \(3,\)"),
        (lambda: law("none", 4, 4), "a law among .*; received 'none'"),
        (lambda: power_spectrum(4, -1.0), "an exponent from 0; received -1.0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
