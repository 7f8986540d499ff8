"""Pretext tasks are exact: what is hidden can be put back, labels fit, and a network that knows nothing pays the logarithm of the classes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl.core.collectives import sync_batchnorm
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
from wssl.methods.pretext import Colorization, Jigsaw, RelativePosition, RotNet, question_draws
from wssl.models import encoder, initialised_from


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


HEADS = dict(hidden=32, out=16)
OPTIONS = {
    "rotnet": RotNet(**HEADS),
    "relative": RelativePosition(gap=1, **HEADS),
    "jigsaw": Jigsaw(permutations=24, gap=1, **HEADS),
    "colorization": Colorization(bins=4, cells=2, **HEADS),
}
CLASSES = {"rotnet": 4, "relative": 8, "jigsaw": 24, "colorization": 16}


def _build(options):
    with initialised_from(0, "test"):
        return options.build(encoder("small", width=4))


def _views(n=8):
    return _images(n, 16, 1), _images(n, 16, 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_learns_its_task_and_hands_out_whole_views(name):
    method = _build(OPTIONS[name])
    assert [each for each, _ in method.named_children()] == ["encoder", "projector", "classifier"]
    output = method(_views())
    assert [tuple(z.shape) for z in output.z] == [(8, 16)] * 2 and [tuple(h.shape) for h in output.h] == [(8, 32)] * 2
    assert 0 <= output.terms["accuracy"] <= 1 and not output.terms["accuracy"].requires_grad
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    method.eval()
    whole = method(_views())
    for x, z, h in zip(_views(), whole.z, whole.h, strict=True):
        torch.testing.assert_close(z, method.project(x))
        torch.testing.assert_close(h, method.encoder(x))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_classifier_that_says_the_same_to_all_pays_chance(name):
    method = _build(OPTIONS[name])
    last = method.classifier if isinstance(method.classifier, torch.nn.Linear) else method.classifier[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    assert method(_views()).loss.item() == pytest.approx(math.log(CLASSES[name]), abs=1e-5)


def test_rotnet_is_the_mean_over_all_angles_of_both_views():
    method, views = _build(RotNet(**HEADS)).eval(), _views()
    each = []
    for x in views:
        for quarter in range(4):
            turned = torch.from_numpy(np.rot90(x.numpy(), quarter, (2, 3)).copy())
            scores = method.classifier(method.project(turned))
            each.append(-scores.log_softmax(1)[:, quarter])
    torch.testing.assert_close(method(views).loss, torch.cat(each).mean())


@pytest.mark.parametrize("name", ["relative", "jigsaw"])
def test_tiles_leave_no_trace_in_running_statistics_but_whole_views_do(name):
    method, other = _build(OPTIONS[name]), _build(OPTIONS[name])
    method(_views())
    other.embed(_views())
    for part in ("encoder", "projector"):
        mine, whole = getattr(method, part).state_dict(), getattr(other, part).state_dict()
        assert any("running_mean" in key for key in mine)
        for key, value in mine.items():
            assert torch.equal(value, whole[key]), key
    assert all(m.track_running_stats for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_jigsaw_shows_one_permutation_to_each_view():
    method, seen = _build(Jigsaw(permutations=12, gap=1, **HEADS)), []
    method.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.embed_tiles = lambda x, u: torch.arange(9.0).view(1, 9, 1).expand(len(x), 9, 16) + 0 * u.sum()
    torch.manual_seed(0)
    method(_views(64))
    shown = seen[0].view(128, 9, 16)[:, :, 0].long()
    known = {tuple(row) for row in permutation_set(12).tolist()}
    found = {tuple(row) for row in shown.tolist()}
    assert found == known, "all of the set and nothing else, in 128 draws"


def test_questions_are_a_function_of_the_global_seed():
    for name in ("relative", "jigsaw"):
        method, values = _build(OPTIONS[name]), []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            values.append(method.eval()(_views()).loss.item())
        assert values[0] == values[1] != values[2]


def test_colorization_is_blind_to_colour_and_counts_it():
    method, views = _build(Colorization(bins=4, cells=2, **HEADS)), _views()
    tint = torch.randn(8, 3, 1, 1)
    tint = tint - tint.mean(1, keepdim=True)
    torch.testing.assert_close(method.eval().encoder(views[0] + tint), method.encoder(views[0]), atol=1e-4, rtol=1e-4)
    assert (method.weights == 1).all()
    method.start(iter([views, views]))
    counts = method.targets(torch.cat(views)).double().sum(0)
    p = counts / counts.sum()
    expected = 1 / (0.5 * p + 0.5 / 16)
    torch.testing.assert_close(method.weights.double(), expected / (p * expected).sum(), atol=1e-5, rtol=1e-5)
    assert "weights" in method.state_dict(), "a run that is continued keeps them"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_one_graph_and_takes_bfloat16(name):
    method = _build(OPTIONS[name])
    compiled = torch.compile(lambda views: method(views).loss, fullgraph=True, backend="aot_eager")
    compiled(_views()).backward()
    assert all(p.grad is not None for p in method.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        output = method(_views())
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()


def _loss_of(rank):
    torch.manual_seed(1)
    draws = question_draws(3, 5, "cpu").numpy()
    torch.manual_seed(0)
    method = sync_batchnorm(_build(OPTIONS["jigsaw"]))
    mine = tuple(x[4 * rank : 4 * rank + 4] for x in _views())
    output = method(mine)
    output.loss.backward()
    return output.loss.item(), method.encoder.stem[0].weight.grad.numpy(), draws


def test_two_processes_ask_and_solve_what_one_would():
    found = run_ranks(_loss_of)
    torch.manual_seed(1)
    alone = question_draws(6, 5, "cpu").view(2, 6, 5)
    assert torch.equal(torch.cat([torch.from_numpy(draws).view(2, 3, 5) for *_, draws in found], 1), alone)
    torch.manual_seed(0)
    method = _build(OPTIONS["jigsaw"])
    output = method(_views())
    output.loss.backward()
    assert sum(loss for loss, *_ in found) / 2 == pytest.approx(output.loss.item(), abs=1e-5)
    mean = torch.from_numpy(sum(grad for _, grad, _ in found) / 2)
    torch.testing.assert_close(mean, method.encoder.stem[0].weight.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RotNet(rotations=5), "expected 2, 4 or 8 rotations; received 5"),
        (Jigsaw(permutations=1), "permutations from 2 to 1512; received 1"),
        (Jigsaw(gap=-1), "a gap of at least 0 pixels; received -1"),
        (RelativePosition(gap=-2), "a gap of at least 0 pixels; received -2"),
        (Colorization(bins=1), "at least 2 bins and 1 cell"),
        (Colorization(uniform=0), "a uniform share in"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        _build(options)
