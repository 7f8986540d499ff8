"""What other tools say of healthy rows: digits of three draws by their formulas, limits, and wrong input."""

import math

import pytest
import torch

from wssl.core.checks import InputError
from wssl.metrics import lidar, mle_dimension, reference_values

# n, m: MONAI's effective-rank score, torchgeo-bench's effective rank and participation ratio, stable-pretraining's
# RankMe; means of three draws of Gaussian rows, computed apart from this library
DRAWN = {
    (100, 768): (0.017, 93, 87, 98.6),
    (256, 128): (0.075, 99, 85, 119.0),
    (512, 128): (0.034, 113, 102, 124.3),
    (1024, 768): (0.124, 527, 438, 703.2),
    (2048, 768): (0.053, 636, 558, 759.8),
    (2000, 384): (0.025, 349, 322, 381.4),
    (10_000, 768): (0.010, 739, 713, 794.2),
}


def healthy(n, m):
    return {line.quantity: line.healthy for line in reference_values(n, m)}


@pytest.mark.parametrize("n, m", DRAWN)
def test_digits_of_draws(n, m):
    score, rank, ratio, rankme = DRAWN[n, m]
    found = healthy(n, m)
    assert found["effective_rank_score"] == pytest.approx(score, abs=0.00101)
    assert found["effective rank"] == pytest.approx(rank, abs=0.75)
    assert found["participation ratio"] == pytest.approx(ratio, abs=0.75)
    assert found["RankMe"] == pytest.approx(rankme, abs=0.11)


def test_rank_above_the_number_of_dimensions():
    assert healthy(10_000, 768)["RankMe"] > 768


def test_the_limit_of_many_rows_is_health():
    found = healthy(10**8, 64)
    assert found["effective_rank_score"] == pytest.approx(0, abs=1e-4)
    assert found["effective rank"] == pytest.approx(64, abs=0.01)
    assert found["PC1 variance ratio"] == pytest.approx(1 / 64, rel=0.01)
    assert found["spectral anisotropy"] == pytest.approx(0, abs=1e-3)
    assert found["domain_shift"] < 1e-5 and found["W2"] < 1e-2
    assert found["isotropy (partition)"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("n, m", [(3, 1), (3, 5), (5, 3), (12, 2), (40, 40), (41, 40), (64, 1024)])
def test_every_shape_has_finite_values(n, m):
    for line in reference_values(n, m):
        assert math.isfinite(line.healthy), line
        assert line.collapsed != line.healthy or m <= 10, line


def test_one_draw_of_lidar_and_of_a_dimension():
    draw = torch.Generator().manual_seed(5)
    found = healthy(600, 32)
    views = torch.randn(60, 10, 32, generator=draw)
    assert found["LiDAR"] == pytest.approx(lidar(views, 0.9e-4).item(), rel=0.05)
    pooled = [mle_dimension(torch.randn(600, 32, generator=draw), normalize=True) for _ in range(4)]
    assert found["intrinsic dimensionality"] == pytest.approx(9 / 8 * sum(pooled) / 4, rel=0.03)


def test_wrong_input_is_one_sentence():
    with pytest.raises(InputError, match="at least 3 rows"):
        reference_values(2, 4)
