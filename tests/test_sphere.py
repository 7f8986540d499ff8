"""The uniform law on the sphere against closed forms, published digits, scipy and simulation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from wssl.core.seeds import generator
from wssl.theory.sphere import (
    coordinate_kl,
    coordinate_kl_bound,
    coordinate_pdf,
    coordinate_w2,
    sample_sphere,
    sphere_gaussian_w2,
    uniformity_of_sphere,
)

# m: KL, the paper's bound, W2; computed once with mpmath in 30 digits, given to 6
DIGITS = {
    2: (0.620782, 0.177635, 0.227091),
    3: (0.176485, 0.176485, 0.123275),
    4: (0.0810615, 0.149209, 0.0796692),
    8: (0.0152361, 0.0851387, 0.0277603),
    16: (0.00333039, 0.0448264, 0.00970492),
    32: (7.80288e-4, 0.0229375, 0.00340822),
    64: (1.88956e-4, 0.0115952, 0.00120061),
    128: (4.64996e-5, 0.00582868, 4.23681e-4),
    256: (1.1534e-5, 0.00292204, 1.4965e-4),
    512: (2.87223e-6, 0.00146293, 5.28837e-5),
}


@pytest.mark.parametrize("m", DIGITS)
def test_digits(m):
    got = coordinate_kl(m), coordinate_kl_bound(m), coordinate_w2(m)
    np.testing.assert_allclose(got, DIGITS[m], rtol=1e-5)


@pytest.mark.parametrize("m", [2, 3, 4, 7, 64, 65, 1000, 4096])
def test_pdf_is_the_shifted_beta_law(m):
    y = np.linspace(-1, 1, 401)[1:-1]
    law = stats.beta((m - 1) / 2, (m - 1) / 2, loc=-1, scale=2)
    np.testing.assert_allclose(coordinate_pdf(y, m), law.pdf(y), rtol=1e-8, atol=1e-300)
    assert coordinate_pdf(1.5, m) == 0 and coordinate_pdf(torch.tensor([-7.0]), m).shape == (1,)


def test_pdf_at_the_ends():
    assert [float(coordinate_pdf(1.0, m)) for m in (2, 3, 4)] == pytest.approx([math.inf, 0.5, 0.0])


def test_kl_has_no_cancellation_for_large_m():
    """The integrand f log(f/g) - f + g is never negative, so its quadrature keeps its digits; beyond the end only g is left."""
    for m in (17, 200, 4096):
        f = lambda y, m=m: float(coordinate_pdf(y, m))  # noqa: E731
        g = stats.norm(scale=m**-0.5).pdf
        bregman = lambda y: f(y) * math.log(f(y) / g(y)) - f(y) + g(y)  # noqa: E731, B023
        end = min(1 - 1e-9, 12 * m**-0.5)
        inner = integrate.quad(bregman, 0, end, epsabs=0, epsrel=1e-10, limit=400)[0] + stats.norm(scale=m**-0.5).sf(
            end
        )
        assert coordinate_kl(m) == pytest.approx(2 * inner, rel=1e-6)


def test_bound_holds_from_three_on_and_fails_at_two():
    assert coordinate_kl(2) > 3 * coordinate_kl_bound(2)
    assert coordinate_kl(3) == pytest.approx(coordinate_kl_bound(3), rel=1e-12)
    assert all(coordinate_kl(m) < coordinate_kl_bound(m) for m in range(4, 500))


def test_w2_closed_form_at_three():
    """A coordinate on S^2 is uniform on [-1, 1]; the cross term with a normal quantile is 1/sqrt(pi)."""
    assert coordinate_w2(3) == pytest.approx(math.sqrt(2 / 3 - 2 / math.sqrt(3 * math.pi)), rel=1e-10)


@pytest.mark.parametrize("m", [2, 5, 12])
def test_w2_against_the_quantile_integral(m):
    quantile = stats.beta((m - 1) / 2, (m - 1) / 2, loc=-1, scale=2).ppf
    cross = (
        2 * integrate.quad(lambda u: quantile(u) * special.ndtri(u), 0, 0.5, epsabs=1e-12, epsrel=1e-12, limit=400)[0]
    )
    assert coordinate_w2(m) ** 2 == pytest.approx(2 / m - 2 * cross / math.sqrt(m), abs=1e-10)


def test_w2_rate_and_talagrand():
    scaled = [coordinate_w2(m) * m**1.5 for m in (1024, 2048, 4096)]
    limit = math.sqrt(3 / 8)
    assert limit < scaled[2] < scaled[1] < scaled[0] < 1.001 * limit
    # the distance to the limit halves with m: only digits that are right to 1e-8 show that
    assert (scaled[0] - limit) / (scaled[1] - limit) == pytest.approx(2, rel=2e-3)
    assert all(coordinate_w2(m) <= math.sqrt(2 * coordinate_kl(m) / m) for m in (2, 3, 10, 100, 4096))


def test_vector_distance():
    np.testing.assert_allclose(
        [sphere_gaussian_w2(m) for m in (2, 8, 32, 128, 256, 1024)],
        [0.4770, 0.2478, 0.1248, 0.0625, 0.0442, 0.0221],
        atol=6e-5,
    )
    assert sphere_gaussian_w2(1) == pytest.approx(math.sqrt(2 - 2 * math.sqrt(2 / math.pi)))
    assert sphere_gaussian_w2(10**8) == pytest.approx(1 / math.sqrt(2 * 10**8), rel=1e-6)


def test_uniformity_of_sphere():
    digits = {
        1: -0.6928,
        2: -1.5750,
        3: -2.0798,
        4: -2.4149,
        8: -3.0825,
        16: -3.5130,
        64: -3.8752,
        256: -3.9688,
        1024: -3.9922,
        4096: -3.9980,
    }
    for m, value in digits.items():
        assert uniformity_of_sphere(m) == pytest.approx(value, abs=6e-5)
    for m, t in [(2, 0.5), (3, 7.0), (50, 20.0)]:
        bessel = special.gammaln(m / 2) + np.log(special.ive(m / 2 - 1, 2 * t)) + 2 * t - (m / 2 - 1) * math.log(t)
        assert uniformity_of_sphere(m, t) == pytest.approx(-2 * t + bessel, rel=1e-10)
    assert math.isfinite(uniformity_of_sphere(2, 5000.0)) and uniformity_of_sphere(10**9) > -4


def test_sample_is_uniform():
    z = sample_sphere(4000, 6, generator(1, "test"))
    assert z.dtype == torch.float32 and torch.allclose(z.norm(dim=1), torch.ones(4000), atol=1e-6)
    law = stats.beta(2.5, 2.5, loc=-1, scale=2)
    assert all(stats.kstest(z[:, k].numpy(), law.cdf).pvalue > 1e-4 for k in range(6))
    assert torch.equal(z, sample_sphere(4000, 6, generator(1, "test")))
    assert not torch.equal(z, sample_sphere(4000, 6, generator(2, "test")))
    assert set(sample_sphere(50, 1).flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: coordinate_pdf(0.0, 1),
        lambda: coordinate_kl(1),
        lambda: coordinate_w2(2.5),
        lambda: sphere_gaussian_w2(0),
        lambda: uniformity_of_sphere(8, 0),
    ],
)
def test_bad_input(call):
    with pytest.raises(ValueError, match="^expected .*; received "):
        call()
