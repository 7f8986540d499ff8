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
from wssl.losses import vicreg_loss
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
        assert len(set(i)) == matches and i == sorted(i)
        assert j == [int(np.argmin(table[a])) for a in i]
        kept = [table[a, b] for a, b in zip(i, j, strict=True)]
        assert sorted(kept) == sorted(table.min(1))[:matches]


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


def _by_hand(u, v, matches, distance, weights=(25, 25, 1)):
    """The criterion over the pairs that u finds in v, one kept place after the other, in numpy."""
    places = [np.sort(np.argsort(d.min(1), kind="stable")[:matches]) for d in distance]
    loss = 0
    for k in range(matches):
        x = np.array([a[i[k]] for a, i in zip(u, places, strict=True)])
        y = np.array([b[d[i[k]].argmin()] for b, d, i in zip(v, distance, places, strict=True)])
        hinge = [np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() for z in (x, y)]
        off = [(c**2).sum() - (np.diag(c) ** 2).sum() for c in (np.cov(z.T) for z in (x, y))]
        terms = ((x - y) ** 2).mean(), sum(hinge) / 2, sum(off) / x.shape[1]
        loss += sum(weight * term for weight, term in zip(weights, terms, strict=True)) / matches
    return loss


@pytest.mark.parametrize("located", [False, True])
@pytest.mark.parametrize("m", [4, 8])  # fewer coordinates than the 6 images, and more
@pytest.mark.parametrize("weights", [(25, 25, 1), (0, 0, 1)])
def test_the_loss_is_vicreg_at_each_kept_place_in_both_directions_of_each_matching(located, m, weights):
    u, v = _maps(m=m)
    places = tuple(torch.rand(6, 9, 2, dtype=torch.float64) * 32 for _ in range(2))
    named = dict(zip(("invariance", "variance", "covariance"), weights, strict=True))
    loss = local_vicreg(u, v, 3, places if located else None, **named)

    def formula(a, b):
        tables = [((a[:, :, None] - b[:, None]) ** 2).sum(3)]
        if located:
            p, q = (place.numpy() for place in places)
            tables.append(np.sqrt(((p[:, :, None] - q[:, None]) ** 2).sum(3)))
        both = ((_by_hand(a, b, 3, d, weights), _by_hand(b, a, 3, d.transpose(0, 2, 1), weights)) for d in tables)
        return sum(map(sum, both)) / 2

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


@pytest.mark.parametrize("n", [12, 4])  # more images than coordinates, and fewer
def test_one_place_is_vicreg_and_places_are_averaged(n):
    u, v = _maps(n, 1, 6)
    one = local_vicreg(u, v, 1)
    assert one.item() == pytest.approx(vicreg_loss(u[:, 0], v[:, 0]).item(), abs=1e-10)
    far = torch.arange(3.0, dtype=torch.float64).view(1, 3, 1) * 1e3  # every place finds itself
    a, b = _maps(n, 3, 6)
    apart = sum(vicreg_loss(a[:, k], b[:, k]) for k in range(3)) / 3
    assert local_vicreg(a + far, b + far, 3).item() == pytest.approx(apart.item(), abs=1e-8)


def test_places_that_differ_alike_in_every_image_are_a_collapse():
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).expand(64, -1, -1)
    assert local_vicreg(table, table, 9).item() == pytest.approx(24.75, abs=1e-4)
    assert vicreg_loss(table.flatten(0, 1), table.flatten(0, 1)).item() < 10  # all rows together do not see it


def test_no_product_is_larger_than_the_rows():
    """Few images with long vectors: between images, not between coordinates."""
    u, v = _maps(4, 6, 64)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        local_vicreg(u, v, 5, variance=0.0, invariance=0.0)
    assert max(sizes) == u.numel()


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
    found = []
    for m in (4, 12):
        mine = [z[4 * rank : 4 * rank + 4].detach().requires_grad_() for z in _maps(8, 9, m)]
        loss = local_vicreg(*mine, 3, group=WORLD)
        loss.backward()
        found.append((loss.item(), [z.grad.numpy() for z in mine]))
    return found


def test_two_processes_are_one():
    found = run_ranks(_two)
    for case, m in enumerate((4, 12)):  # fewer coordinates than the 8 images, and more
        u, v = _maps(8, 9, m)
        loss = local_vicreg(u, v, 3)
        loss.backward()
        for rank in found:
            assert rank[case][0] == pytest.approx(loss.item(), abs=1e-10)
        for k, z in enumerate((u, v)):
            both = torch.from_numpy(np.concatenate([rank[case][1][k] for rank in found]))
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
    for n in (8, 20):  # fewer images than the 16 coordinates, and more
        compiled(_views(n)).backward()
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
        (lambda: local_vicreg(*_maps(1), 3), "at least 2 rows; received 1"),
        (lambda: local_vicreg(*_maps(), 3, covariance=-1), "weights of at least 0, not all 0"),
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
