"""LiDAR against the generalised eigenvalues of scipy, and at its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh
from scipy.stats import entropy

from wssl.metrics import lidar
from wssl.metrics.lidar import discriminant_spectrum


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_covariances(views, delta):
    """Sums over images and views as the paper writes them, in numpy."""
    z = views.double().numpy()
    images, q, m = z.shape
    between, within, grand = np.zeros((m, m)), delta * np.eye(m), z.reshape(-1, m).mean(0)
    for image in z:
        centre = image.mean(0)
        between += np.outer(centre - grand, centre - grand) / images
        within += (image - centre).T @ (image - centre) / (images * q)
    return between, within


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 20),
    st.integers(2, 5),
    st.integers(1, 15),
    st.integers(0, 2**16),
    st.sampled_from([1e-4, 1e-2, 1.0]),
    st.sampled_from([0.1, 1.0, 30.0]),
)
def test_against_generalised_eigenvalues(images, q, m, seed, delta, scale):
    views = scale * (draw(images, 1, m, seed=seed) + 0.5 * draw(images, q, m, seed=seed + 1))
    values = eigh(*two_covariances(views, delta), eigvals_only=True)[::-1].clip(0)[: min(images - 1, m)]
    np.testing.assert_allclose(discriminant_spectrum(views, delta), values, rtol=1e-7, atol=1e-7 * values[0])
    found = lidar(views, delta)
    assert found.dtype == torch.float64 and not found.requires_grad
    assert found.item() == pytest.approx(np.exp(entropy(values)), rel=1e-5)
    assert 1 <= found <= min(images - 1, m)


def test_known_spectrum():
    """Views are the mean plus and minus a diagonal: within and between are diagonal, and their ratio is known."""
    ratio = np.array([5.0, 3.0, 2.0])
    corners = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.float64)
    means = corners * torch.tensor((0.04 + 1e-4) * ratio).sqrt()
    views = means[:, None] + 0.2 * corners[None]
    np.testing.assert_allclose(discriminant_spectrum(views), ratio, rtol=1e-12)
    assert lidar(views).item() == pytest.approx(np.exp(entropy(ratio)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e3])
def test_one_mean_for_all_images_is_nothing_to_count(dtype, value):
    assert lidar(torch.full((6, 3, 4), value, dtype=dtype)) == 0
    assert lidar(draw(1, 3, 4).to(dtype).expand(6, 3, 4) + value) == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
def test_equal_views_leave_the_rank_of_the_means(scale):
    means = draw(40, 1, 6) * torch.tensor([1, 1, 0.5, 0.1, 0, 0])
    values = np.linalg.eigvalsh(np.cov(means[:, 0].T)).clip(0)
    views = (scale * means).expand(40, 5, 6)
    assert lidar(views).item() == pytest.approx(np.exp(entropy(values)), rel=1e-6)
    assert (discriminant_spectrum(views) > 0).sum() == 4


def test_dead_and_turned_dimensions_change_nothing_cloned_views_neither():
    views = draw(60, 1, 8) + 0.4 * draw(60, 4, 8, seed=1)
    rotation = torch.linalg.qr(draw(12, 12, seed=2))[0]
    padded = torch.cat([views, torch.zeros(60, 4, 4)], 2)
    for same in (padded, padded @ rotation, torch.cat([views, views], 1), torch.cat([views, views]), views + 100):
        assert lidar(same).item() == pytest.approx(lidar(views).item(), rel=1e-8)


def test_noise_of_the_views_counts_for_one_part_in_q():
    """A direction of pure augmentation has variance sigma^2 / q between the means, 1 / q of what is within."""
    noise = draw(4000, 10, 3, seed=3)
    values = discriminant_spectrum(noise)
    np.testing.assert_allclose(values, 1 / 9, rtol=0.1)  # within loses a tenth to the mean: (1/10) / (9/10)


@pytest.mark.parametrize(
    "views, delta",
    [
        (draw(4, 1, 3), 1e-4),
        (draw(1, 4, 3), 1e-4),
        (draw(4, 3), 1e-4),
        (torch.ones(4, 3, 2, dtype=torch.int64), 1e-4),
        (np.ones((4, 3, 2)), 1e-4),
        (torch.full((4, 2, 3), float("inf")), 1e-4),
        (draw(4, 2, 3), 0.0),
    ],
)
def test_bad_input(views, delta):
    with pytest.raises(ValueError, match="^expected .*; received "):
        lidar(views, delta)
