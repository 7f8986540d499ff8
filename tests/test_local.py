"""Local agreement: pairs are the nearest ones, the loss is VICReg on them, and many processes make one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.data.views import crop_resize_flip
from wssl.losses.local import closest_pairs, feature_distances, local_vicreg, map_places
from wssl.methods.vicregl import VICRegL, stage
from wssl.models import encoder, initialised_from

HEADS = dict(hidden=32, out=16)


def _maps(n=6, p=9, m=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, p, m, generator=g, dtype=dtype).requires_grad_() for _ in range(2))


@given(n=st.integers(1, 4), p=st.integers(1, 7), q=st.integers(1, 7), data=st.data())
@settings(max_examples=40, deadline=None)
def test_pairs_are_nearest_neighbours_and_the_closest_of_them(n, p, q, data):
    matches = data.draw(st.integers(1, p))
    distance = torch.rand(n, p, q, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    first, second = closest_pairs(distance, matches)
    for table, i, j in zip(distance.numpy(), first.tolist(), second.tolist(), strict=True):
        assert len(set(i)) == matches
        assert j == [int(np.argmin(table[a])) for a in i]
        kept = [table[a, b] for a, b in zip(i, j, strict=True)]
        assert kept == sorted(table.min(1))[:matches]


def test_a_shuffled_map_finds_itself():
    u, _ = _maps()
    order = torch.stack([torch.randperm(9) for _ in range(6)])
    shuffled = u.gather(1, order.unsqueeze(2).expand_as(u))
    first, second = closest_pairs(feature_distances(u, shuffled), 9)
    assert torch.equal(order.gather(1, second), first)
    assert local_vicreg(u, shuffled, 9, variance=0.0, covariance=0.0).item() == pytest.approx(0, abs=1e-12)


def test_places_are_where_the_crop_took_its_pixels_from():
    """An image whose channels are its own row and column: what a crop shows of it is where it lies."""
    side, size, s = 48, 24, 6
    row, column = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    x = torch.stack([row, column, 0 * row]).expand(2, 3, side, side) / side
    box, flip = torch.tensor([[4.0, 10, 36, 24], [0, 0, 48, 48]]), torch.tensor([True, False])
    view = crop_resize_flip(x, box, flip, size, "bilinear")
    seen = torch.nn.functional.avg_pool2d(view, size // s)[:, :2].flatten(2).mT * side
    torch.testing.assert_close(
        map_places(box, flip, s), seen, atol=0.35, rtol=0
    )  # edges are interpolated from one side
    inner = torch.arange(s * s).view(s, s)[1:-1, 1:-1].flatten()
    torch.testing.assert_close(map_places(box, flip, s)[:, inner], seen[:, inner], atol=1e-3, rtol=0)


def _by_hand(u, v, matches, distance):
    """The criterion over the pairs that u finds in v, in numpy."""
    x, y = [], []
    for a, b, d in zip(u, v, distance, strict=True):
        nearest = d.argmin(1)
        for i in np.argsort(d.min(1), kind="stable")[:matches]:
            x.append(a[i])
            y.append(b[nearest[i]])
    x, y = np.array(x), np.array(y)
    hinge = [np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() for z in (x, y)]
    off = [(c**2).sum() - (np.diag(c) ** 2).sum() for c in (np.cov(z.T) for z in (x, y))]
    return 25 * ((x - y) ** 2).mean() + 25 * sum(hinge) / 2 + sum(off) / x.shape[1]


@pytest.mark.parametrize("located", [False, True])
def test_the_loss_is_vicreg_on_both_directions_of_each_matching(located):
    u, v = _maps()
    places = tuple(torch.rand(6, 9, 2, dtype=torch.float64) * 32 for _ in range(2))
    loss = local_vicreg(u, v, 3, places if located else None)

    def formula(a, b):
        tables = [((a[:, :, None] - b[:, None]) ** 2).sum(3)]
        if located:
            p, q = (place.numpy() for place in places)
            tables.append(np.sqrt(((p[:, :, None] - q[:, None]) ** 2).sum(3)))
        return sum(_by_hand(a, b, 3, d) + _by_hand(b, a, 3, d.transpose(0, 2, 1)) for d in tables) / 2

    a, b = u.detach().numpy(), v.detach().numpy()
    assert loss.item() == pytest.approx(formula(a, b), abs=1e-9)
    loss.backward()
    for z, which in ((u, 0), (v, 1)):
        for at in [(0, 0, 0), (5, 8, 3), (2, 4, 1)]:
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy(), b.copy()]
                moved[which][at] += step
                ends.append(formula(*moved))
            assert z.grad[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("located", [False, True])
def test_a_collapse_costs_what_it_costs_vicreg(located):
    same, places = torch.ones(6, 9, 4), (torch.rand(6, 9, 2), torch.rand(6, 9, 2))
    loss = local_vicreg(same, same, 4, places if located else None)
    assert loss.item() == pytest.approx(24.75 * (1 + located), abs=1e-4)


def test_the_loss_is_symmetric_and_finite_in_half_precision():
    u, v = _maps()
    assert local_vicreg(u, v, 3).item() == pytest.approx(local_vicreg(v, u, 3).item())
    assert local_vicreg(u.bfloat16(), v.bfloat16(), 3).isfinite()


def _build(options):
    with initialised_from(0, "test"):
        return options.build(encoder("small", width=4))


def _views(n=8):
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, 3, 32, 32, generator=g) for _ in range(2))


def _two(rank):
    u, v = _maps(8, 9, 4)
    mine = [z[4 * rank : 4 * rank + 4].detach().requires_grad_() for z in (u, v)]
    loss = local_vicreg(*mine, 3, group=WORLD)
    loss.backward()
    return loss.item(), [z.grad.numpy() for z in mine]


def test_two_processes_are_one():
    found = run_ranks(_two)
    u, v = _maps(8, 9, 4)
    loss = local_vicreg(u, v, 3)
    loss.backward()
    for value, _ in found:
        assert value == pytest.approx(loss.item(), abs=1e-10)
    for k, z in enumerate((u, v)):
        both = torch.from_numpy(np.concatenate([grads[k] for _, grads in found]))
        torch.testing.assert_close(both / 2, z.grad)  # world size times the gradient of one


def test_vicregl_weighs_whole_views_and_places():
    method = _build(VICRegL(alpha=0.6, matches=3, **HEADS))
    output = method(_views())
    torch.testing.assert_close(output.loss, 0.6 * output.terms["whole"] + 0.4 * output.terms["local"])
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    method.eval()
    output = method(_views())
    net, maps = method.encoder, []
    for x, z in zip(_views(), output.z, strict=True):
        torch.testing.assert_close(z, method.project(x))
        places = net.stages[2](net.stages[1](net.stages[0](net.stem(x))))
        rows = places.permute(0, 2, 3, 1).reshape(8, 16, -1)
        maps.append(torch.stack([method.local_projector(row) for row in rows]))
    torch.testing.assert_close(output.terms["local"], local_vicreg(*maps, 3))


def test_vicregl_at_alpha_1_is_vicreg_and_has_nothing_local():
    method = _build(VICRegL(alpha=1, **HEADS))
    assert [name for name, _ in method.named_children()] == ["encoder", "projector"]
    output = method(_views())
    assert output.terms == {} and not math.isnan(output.loss.item())


def test_a_vicregl_step_is_one_graph():
    method = _build(VICRegL(matches=3, **HEADS))
    compiled = torch.compile(lambda views: method(views).loss, fullgraph=True, backend="aot_eager")
    compiled(_views()).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_stages_of_a_torchvision_resnet():
    net = encoder("resnet18")
    assert stage(net, -1) is net.layer4 and stage(net, -2) is net.layer3
    method = VICRegL(matches=2, **HEADS).build(net)
    assert method.local_projector[0].in_features == 256


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: local_vicreg(*_maps(), 10), "matches from 1 to the 9 places; received 10"),
        (lambda: local_vicreg(torch.ones(2, 9, 4), torch.ones(2, 8, 4)), "two maps of one shape"),
        (lambda: _build(VICRegL(alpha=0)), "alpha in"),
        (lambda: _build(VICRegL(matches=0)), "at least 1 match; received 0"),
        (lambda: _build(VICRegL(stage=0)), "a stage from -4 to -1 of SmallResNet; received 0"),
        (
            lambda: VICRegL().build(torch.nn.Linear(2, 2)),
            "expected an encoder with stages .small, or a ResNet.; received Linear",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
