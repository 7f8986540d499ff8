"""Intrinsic dimension, neighbours and ranks of classes: brute force in numpy, digits of scikit-dimension, and laws of known clouds."""

import numpy as np
import pytest
import torch

from wssl.core.checks import InputError
from wssl.metrics import (
    class_ranks,
    collapsed_share,
    diagnose,
    hubness,
    isotropic_dimension,
    mle_dimension,
    nearest_rows,
    two_nn,
)
from wssl.metrics.resampling import leave_one_out, read_rows


def clouds():
    "The same four clouds that the digits below were computed on."
    draw = np.random.default_rng(0)
    cube = draw.random((800, 5))
    ball = draw.standard_normal((600, 9))
    plane = draw.standard_normal((500, 20)) @ draw.standard_normal((20, 50))
    t = draw.random((700, 2))
    turn = 1.5 * np.pi * (1 + 2 * t[:, 0])
    roll = np.c_[turn * np.cos(turn), 20 * t[:, 1], turn * np.sin(turn)]
    return {"cube": cube, "sphere": ball / np.linalg.norm(ball, axis=1, keepdims=True), "plane": plane, "roll": roll}


# scikit-dimension 0.5.0: TwoNN(discard_fraction=0.1); MLE(K=10) combined by "mle"; MLE(K=10, unbiased=True) by "mean"
DIGITS = {
    "cube": (4.669053686188818, 4.465029516566994, 4.484098817592513),
    "sphere": (7.735256293550022, 7.28543979472422, 7.211188266930309),
    "plane": (13.199245319133638, 12.843993980363475, 12.878626489378155),
    "roll": (1.9779011977951486, 1.8709709621672748, 1.8950995202291083),
}


@pytest.mark.parametrize("name", DIGITS)
def test_digits_of_scikit_dimension(name):
    z = clouds()[name]
    found = two_nn(z), mle_dimension(z), mle_dimension(z, pooled=False)
    assert found == pytest.approx(DIGITS[name], rel=1e-9)


def brute(z, k):
    "Distances and places of the nearest, by all pairs in float64."
    z = np.asarray(z, dtype=np.float64)
    distance = np.linalg.norm(z[:, None] - z[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1)[:, :k]
    return np.take_along_axis(distance, order, 1), order


@pytest.mark.parametrize("name", DIGITS)
def test_neighbours_by_all_pairs(name):
    z = clouds()[name] + 7
    found, (distance, which) = nearest_rows(z, 6), brute(z, 6)
    assert np.allclose(found.distances, distance, rtol=1e-9)
    assert (found.which.numpy() == which).all()
    counts = np.bincount(which.ravel(), minlength=len(z))
    about = counts - counts.mean()
    hubs = hubness(z, 6, normalize=False)
    assert hubs.skewness == pytest.approx((about**3).mean() / about.std() ** 3)
    assert (hubs.orphans, hubs.largest) == ((counts == 0).mean(), counts.max())


def test_close_groups_in_single_precision():
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=draw).repeat(30, 1)
    z = centres + 1e-4 * torch.randn(300, 16, generator=draw)
    distance, which = brute(z, 5)
    found = nearest_rows(z, 5)
    assert np.allclose(found.distances, distance, rtol=1e-3)
    assert (found.which.numpy() == which).mean() > 0.99


def test_rotation_shift_and_size_change_nothing():
    z = torch.as_tensor(clouds()["plane"])
    turn = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    for other in (z @ turn, z + 100, 1e-20 * z, 1e20 * z):
        assert mle_dimension(other) == pytest.approx(mle_dimension(z), rel=1e-6)
        assert two_nn(other) == pytest.approx(two_nn(z), rel=1e-6)


@pytest.mark.parametrize("copies", [2, 3, 40])
def test_repeated_rows_count_once(copies):
    z = torch.as_tensor(clouds()["roll"])[:200]
    many = z.repeat(copies, 1)
    assert mle_dimension(many) == pytest.approx(mle_dimension(z), rel=1e-9)
    assert torch.equal(nearest_rows(many).rows, torch.arange(len(z)))
    assert hubness(many, normalize=False) == hubness(z, normalize=False)


@pytest.mark.parametrize("n, m, k", [(100, 8, 10), (60, 2, 3), (400, 30, 20), (300, 200, 10)])
def test_law_of_isotropic_rows(n, m, k):
    draw = torch.Generator().manual_seed(n)
    inverse = [1 / mle_dimension(torch.randn(n, m, generator=draw), k, normalize=True) for _ in range(24)]
    error = np.std(inverse) / 24**0.5
    assert abs(np.mean(inverse) - 1 / isotropic_dimension(n, m, k)) < 4 * error


def test_bias_falls_with_rows_and_never_ends_above_the_truth():
    found = [isotropic_dimension(n, 33) for n in (50, 500, 5000, 500_000, 50_000_000)]
    assert found == sorted(found) and found[0] < 20 and 27 < found[-1] < 32


def test_diagnose_shows_both_beside_isotropic_rows():
    z = torch.randn(1500, 40, generator=torch.Generator().manual_seed(0))
    values = diagnose(z).values
    number = values["intrinsic dimension"]
    assert number.value == pytest.approx(mle_dimension(z, normalize=True), rel=1e-4)
    assert number.reference == isotropic_dimension(1500, 40)
    assert number.low < number.value < number.high and number.low < number.reference < number.high
    assert values["hubness"].value == pytest.approx(hubness(z).skewness, abs=0.02)
    sheet = torch.randn(1500, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 3)
    assert diagnose(sheet.sin().repeat(1, 13)).values["intrinsic dimension"].value < 3
    assert "hubness" not in diagnose(torch.ones(100, 4)).values


def test_interval_covers_isotropic_rows():
    draw = torch.Generator().manual_seed(3)
    numbers = [diagnose(torch.randn(300, 12, generator=draw)).values["intrinsic dimension"] for _ in range(30)]
    assert sum(x.low <= x.reference <= x.high for x in numbers) >= 25


def test_classes_that_are_points_and_lines():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 5
    z = torch.randn(1000, 32, generator=draw) + 2 * torch.randn(5, 32, generator=draw)[labels]
    full = class_ranks(z, labels)
    assert [one.collapsed for one in full] == [False] * 5 and min(one.effective for one in full) > 25
    z[labels == 2] = z[2] + 1e-3 * z[labels == 2]
    z[labels == 4] = z[4] + z[labels == 4][:, :1] * z[0]
    assert [one.collapsed for one in class_ranks(z, labels)] == [False, False, True, False, True]
    found = diagnose(z, labels=labels)
    assert found.values["collapsed classes"].value == 0.4
    assert [line["effective"] for line in found.classes][2] is None
    assert collapsed_share(class_ranks(z, torch.where(labels == 2, -1, labels))) == 0.25
    assert collapsed_share(class_ranks(z[:8], torch.arange(8))) is None
    assert torch.equal(torch.tensor([one.rows for one in full]), torch.full((5,), 200))


@pytest.mark.parametrize("n, m", [(600, 150), (700, 60)])
def test_kept_rows_give_the_intervals_of_the_covariances(n, m):
    reading = read_rows(torch.randn(n, m, generator=torch.Generator().manual_seed(0)) * torch.arange(1, m + 1) ** -0.5)
    with_rows = list(leave_one_out(reading))
    reading.rows = None
    for a, b in zip(with_rows, leave_one_out(reading), strict=True):
        assert torch.allclose(a[0], b[0], rtol=1e-4) and a[1:] == pytest.approx(b[1:])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mle_dimension(torch.zeros(50, 3)), "at least 11 different rows"),
        (lambda: mle_dimension(torch.randn(50, 3), k=2), "at least 3 neighbours"),
        (lambda: nearest_rows(torch.full((50, 3), torch.nan)), "finite"),
        (lambda: two_nn(torch.randn(50, 3), discard=1), "between 0 and 1"),
        (lambda: isotropic_dimension(5, 5), "more rows than neighbours"),
        (lambda: class_ranks(torch.randn(4, 3), torch.full((4,), -1)), "at least 1 row with a label"),
    ],
)
def test_wrong_input_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
