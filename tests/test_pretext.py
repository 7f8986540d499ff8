"""Pretext tasks are exact: what is hidden can be put back, labels fit, and a network that knows nothing pays the logarithm of the classes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wssl.losses import cut_tiles, permutation_set, rotations, standardize_tiles, task_loss
from wssl.losses.pretext import (
    LIMIT,
    NEIGHBOURS,
    colour_centres,
    colour_mean,
    colour_targets,
    colours,
    lightness,
    neighbour_pairs,
    rarity_weights,
)


def _images(n=6, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [2, 4])
def test_turning_back_gives_the_image_bit_by_bit(count):
    x = _images(size=15)
    turned, labels = rotations(x, count)
    assert labels.tolist() == [k for k in range(count) for _ in range(6)]
    for image, label, original in zip(turned, labels.tolist(), x.repeat(count, 1, 1, 1), strict=True):
        quarters = label * 4 // count
        for _ in range(quarters):  # one quarter turn with the clock: transpose, then mirror the columns
            image = image.transpose(1, 2).flip(2)
        assert torch.equal(image, original)


def test_eight_rotations_are_every_45_degrees_within_a_disc():
    """A smooth picture turned by its formula: the value at (x, y) of the image at angle a is f(R(-a) (x, y))."""
    side = 65
    line = (torch.arange(side, dtype=torch.float64) - 32) / 32.5
    y, x = -line.unsqueeze(1), line.unsqueeze(0)  # y upwards, so that angles go against the clock

    def picture(x, y):
        return torch.sin(2 * x) + x * y + 0.5 * y

    inside = (x**2 + y**2).sqrt() < 0.95
    turned, labels = rotations(picture(x, y).view(1, 1, side, side), 8)
    for image, label in zip(turned, labels.tolist(), strict=True):
        a = math.radians(45 * label)
        expected = picture(math.cos(a) * x + math.sin(a) * y, math.cos(a) * y - math.sin(a) * x)
        torch.testing.assert_close(image[0][inside], expected[inside], atol=2e-3, rtol=0)
        assert (image[0][(x**2 + y**2).sqrt() > 1.05] == 0).all()


@given(size=st.integers(2, 1512))
@settings(max_examples=25, deadline=None)
def test_permutations_lie_as_far_apart_as_the_bound_allows(size):
    chosen = permutation_set(size)
    assert chosen.shape == (size, 9) and torch.equal(chosen.sort(1).values, torch.arange(9).expand(size, 9))
    largest = max(d for d in range(6, 10) if d == 6 or math.factorial(9) // math.factorial(d - 1) >= size)
    some = range(size) if size <= 60 else torch.randperm(size)[:60].tolist()
    for i, j in itertools.combinations(some, 2):
        assert sum(a != b for a, b in zip(chosen[i].tolist(), chosen[j].tolist(), strict=True)) >= largest


def test_a_permutation_set_is_the_same_every_time_and_not_handed_out_itself():
    first = permutation_set(20)
    first.zero_()
    assert torch.equal(permutation_set(20), permutation_set(20)) and permutation_set(20).sum() == 20 * 36


@given(side=st.integers(6, 33), data=st.data())
@settings(max_examples=40, deadline=None)
def test_tiles_are_pieces_of_their_own_cells(side, data):
    gap = data.draw(st.integers(0, side // 3 - 2))
    u = torch.rand(3, 18, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    x = _images(3, side)
    tiles = cut_tiles(x, gap, u)
    cell, pixels = side // 3, side // 3 - gap
    assert tiles.shape == (3, 9, 3, pixels, pixels)
    border = (side - 3 * cell) // 2
    for i, k in itertools.product(range(3), range(9)):
        top = border + k // 3 * cell + math.floor(u[i, 2 * k].item() * (gap + 1))
        left = border + k % 3 * cell + math.floor(u[i, 2 * k + 1].item() * (gap + 1))
        assert torch.equal(tiles[i, k], x[i, :, top : top + pixels, left : left + pixels])
        assert top + pixels <= border + (k // 3 + 1) * cell and left + pixels <= border + (k % 3 + 1) * cell


def test_standardised_tiles_forget_brightness_and_contrast():
    tiles = cut_tiles(_images())
    factor, shift = torch.rand(6, 9, 3, 1, 1) + 0.5, torch.randn(6, 9, 3, 1, 1)
    torch.testing.assert_close(
        standardize_tiles(tiles * factor + shift), standardize_tiles(tiles), atol=1e-3, rtol=1e-3
    )
    assert (standardize_tiles(torch.ones(2, 9, 3, 4, 4)) == 0).all()


def test_pairs_ask_for_each_neighbour_of_each_image_once():
    z = torch.randn(5, 9, 4)
    pairs, labels = neighbour_pairs(z)
    for row, (i, label) in enumerate(itertools.product(range(5), range(8))):
        assert labels[row] == label
        assert torch.equal(pairs[row], torch.cat([z[i, 4], z[i, NEIGHBOURS[label]]]))


def test_lightness_and_colours_are_an_orthonormal_change_of_the_channels():
    x = _images(4, 8).double()
    light, ab = lightness(x), colours(x, 8)
    assert torch.equal(light[:, 0], light[:, 2])
    square = 3 * light[:, 0].flatten(1).square() + ab.square().sum(2)
    torch.testing.assert_close(square, x.square().sum(1).flatten(1))
    assert colours(x + 5 * torch.randn(4, 1, 8, 8), 8).sub(ab).abs().max() < 1e-5


def test_colour_bins_invert():
    grid = torch.linspace(-0.9 * LIMIT, 0.9 * LIMIT, 23, dtype=torch.float64)
    ab = torch.cartesian_prod(grid, grid)
    for bins in (4, 8, 16):
        target, cell = colour_targets(ab, bins), 2 * LIMIT / bins
        inner = ab.abs().amax(1) < LIMIT - cell
        assert (colour_mean(target) - ab)[inner].norm(dim=1).max() < 0.15 * cell
        nearest = ((ab[:, None] - colour_centres(bins)) ** 2).sum(2).argmin(1)
        hit = target.argmax(1) == nearest
        centres = colour_centres(bins).double()
        tie = ((centres[target.argmax(1)] - ab).norm(dim=1) - (centres[nearest] - ab).norm(dim=1)).abs() < 1e-6
        assert (hit | tie).all()
    outside = torch.tensor([[9.0, -9.0]])
    assert colour_targets(outside, 4).argmax() == 12  # the last row's first cell


def test_soft_targets_are_a_gaussian_over_the_five_nearest():
    ab, bins = torch.tensor([[0.1, -0.3]], dtype=torch.float64), 8
    centres, cell = colour_centres(bins).double(), 2 * LIMIT / bins
    square = ((centres - ab) ** 2).sum(1)
    weight = torch.exp(-square / (2 * (cell / 2) ** 2))
    weight[square.argsort()[5:]] = 0
    torch.testing.assert_close(colour_targets(ab, bins)[0], weight / weight.sum())


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12).filter(lambda p: sum(p) > 1e-3), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_rare_colours_count_more_and_the_mean_weight_is_1(p, uniform):
    p = torch.tensor(p, dtype=torch.float64)
    w = rarity_weights(p, uniform)
    assert (w * p).sum() / p.sum() == pytest.approx(1, abs=1e-9)
    order = p.argsort()
    assert (w[order].diff() <= 1e-9 * w.max()).all()
    if uniform == 1:
        assert w.std() < 1e-9


@pytest.mark.parametrize("classes", [2, 4, 8, 64, 200])
def test_a_network_that_knows_nothing_pays_the_logarithm(classes):
    scores = torch.full((12, classes), 3.0, requires_grad=True)
    loss, _ = task_loss(scores, torch.arange(12) % classes)
    assert loss.item() == pytest.approx(math.log(classes), abs=1e-6)
    soft = torch.rand(12, classes).softmax(1)
    assert task_loss(scores, soft)[0].item() == pytest.approx(math.log(classes), abs=1e-6)
    p = soft.mean(0)
    hard = torch.nn.functional.one_hot(torch.arange(12) % classes, classes).float()
    weights = rarity_weights(hard.mean(0) + 0 * p)
    assert task_loss(scores, hard, weights)[0].item() == pytest.approx(math.log(classes), abs=1e-5)


def test_task_loss_is_its_formula_with_gradient():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 5, generator=g, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(9, 5, generator=g, dtype=torch.float64).mul(4).softmax(1)
    weights = torch.rand(5, generator=g, dtype=torch.float64)
    loss, right = task_loss(scores, soft, weights)
    p = scores.detach().exp() / scores.detach().exp().sum(1, keepdim=True)
    w = torch.stack([weights[row.argmax()] for row in soft])
    assert loss.item() == pytest.approx(-(w.unsqueeze(1) * soft * p.log()).sum().item() / 9, abs=1e-12)
    loss.backward()
    torch.testing.assert_close(scores.grad, w.unsqueeze(1) * (p - soft) / 9)
    assert right.item() == pytest.approx((p.argmax(1) == soft.argmax(1)).double().mean().item())
    assert task_loss(scores.detach().bfloat16(), soft)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rotations(_images(), 3), "expected 2, 4 or 8 rotations; received 3"),
        (lambda: rotations(torch.ones(1, 3, 8, 9)), "expected square images"),
        (lambda: cut_tiles(_images(), 9), "expected a gap from 0 to 8 pixels; received 9"),
        (lambda: permutation_set(1), "permutations from 2 to 1512; received 1"),
        (lambda: permutation_set(1513), "permutations from 2 to 1512; received 1513"),
        (lambda: neighbour_pairs(torch.ones(2, 8, 3)), "embeddings of nine tiles"),
        (lambda: colour_centres(1), "at least 2 bins a side; received 1"),
        (lambda: rarity_weights(torch.ones(3), 0), "a uniform share in"),
        (lambda: task_loss(torch.ones(3, 2), torch.ones(4).long()), "targets of shape"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
