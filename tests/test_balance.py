"""Balanced assignments against numpy in float64, their laws as properties, and the same numbers on one process as on two."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.balance import (
    Centering,
    ClusterBalancer,
    assignment_softness,
    balanced,
    self_assignment,
    sinkhorn_knopp,
    spherical_kmeans,
)
from wssl.core.seeds import generator
from wssl.data import sphere_mixture

HALF = (torch.float16, torch.bfloat16)


def _cosines(n, k, seed=0, dtype=torch.float64):
    return 2 * torch.rand(n, k, generator=generator(seed, "cosines"), dtype=dtype) - 1


# --- Sinkhorn-Knopp


def _sinkhorn(scores, epsilon=0.05, iterations=3):
    """Caron et al. 2020, listing 1: total 1, columns to 1/K, rows to 1/n, times n; in long double, so that exponents up to 11,000 hold."""
    q = np.exp(np.asarray(scores, dtype=np.longdouble) / epsilon)
    n, k = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for j in range(k):
            q[:, j] /= q[:, j].sum() * k
        for i in range(n):
            q[i] /= q[i].sum() * n
    return (q * n).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 12),
    k=st.integers(1, 9),
    epsilon=st.sampled_from([0.02, 0.05, 0.3, 1.0]),
    iterations=st.integers(1, 6),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_sinkhorn_is_its_listing(n, k, epsilon, iterations, scale, seed):
    scores = scale * _cosines(n, k, seed)
    found = sinkhorn_knopp(scores, epsilon, iterations)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), _sinkhorn(scores, epsilon, iterations), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(
        sinkhorn_knopp(scores.float(), epsilon, iterations).sum(1).numpy(), np.ones(n), atol=1e-6
    )


def test_sinkhorn_without_rounds_is_a_softmax_and_with_many_it_is_balanced():
    scores = 0.3 * _cosines(40, 8)
    assert torch.allclose(sinkhorn_knopp(scores, iterations=0), (scores / 0.05).softmax(1), atol=1e-14)
    errors = [(sinkhorn_knopp(scores, iterations=i).sum(0) / 5 - 1).abs().max().item() for i in (0, 1, 3, 20, 200)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4 and errors[2] > 1e-3


def test_sinkhorn_takes_columns_first_and_rows_last():
    """A constant added to a column vanishes in the first round; rows are exact and columns are not."""
    scores = 0.5 * _cosines(16, 4)
    shifted = scores + torch.tensor([0.3, 0.0, -1.0, 0.1])
    assert torch.allclose(sinkhorn_knopp(shifted, iterations=1), sinkhorn_knopp(scores, iterations=1), atol=1e-12)
    found = sinkhorn_knopp(scores, iterations=1)
    assert (found.sum(1) - 1).abs().max() < 1e-14 and (found.sum(0) - 4).abs().max() > 0.05


def test_sinkhorn_follows_a_permutation():
    scores = _cosines(9, 5)
    rows, columns = torch.randperm(9), torch.randperm(5)
    assert torch.allclose(
        sinkhorn_knopp(scores[rows][:, columns]), sinkhorn_knopp(scores)[rows][:, columns], atol=1e-13
    )


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_sinkhorn_survives_extreme_scores(dtype, scale):
    scores = (scale * _cosines(64, 16)).to(dtype)
    found = sinkhorn_knopp(scores)
    assert found.isfinite().all() and (found >= 0).all()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (found.sum(1) - 1).abs().max() < 1e-6
    if scale == 1:  # the same scores, rounded as they are, in double precision
        assert (found - sinkhorn_knopp(scores.double())).abs().max() < 1e-4
    equal = sinkhorn_knopp(torch.full((8, 4), scale, dtype=dtype))
    assert torch.equal(equal.float(), torch.full((8, 4), 0.25))


def test_sinkhorn_keeps_a_scores_tensor_and_has_no_gradient():
    scores = _cosines(6, 3).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn_knopp(scores, epsilon=1.0).requires_grad
    assert torch.equal(scores.detach(), before)


# --- The operator


def _operator(z, r):
    """Metaxas et al. 2024 as its code has it: first the distance map with min(r, 1), then the similarity map with min(1/r, 1)."""
    low, high = np.minimum(r, 1), np.minimum(1 / np.maximum(r, 1e-300), 1)
    z = 1 - (1 - z) * low
    return (1 + z) * high - 1


SIZES = st.floats(1e-3, 1e3)
COSINES = st.floats(-1, 1)


def _b(z, r, gamma=1.0):
    return balanced(torch.tensor([[z]], dtype=torch.float64), torch.tensor([r], dtype=torch.float64), gamma).item()


@settings(deadline=None, max_examples=60)
@given(z=COSINES, r=st.one_of(SIZES, st.just(0.0), st.just(1.0)), gamma=st.sampled_from([0.5, 1.0, 2.0]))
def test_operator_is_its_two_maps(z, r, gamma):
    assert _b(z, r, gamma) == pytest.approx(float(_operator(z, r**gamma)), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(z=COSINES, y=COSINES, r=SIZES, s=SIZES)
def test_operator_laws(z, y, r, s):
    assert _b(-z, 1 / r) == pytest.approx(-_b(z, r), abs=1e-12)  # antisymmetry
    if (r - 1) * (s - 1) >= 0:  # semigroup on either side of 1
        assert _b(_b(z, r), s) == pytest.approx(_b(z, r * s), abs=1e-9)
    low, high = (1 - 2 * r, 1.0) if r <= 1 else (-1.0, 2 / r - 1)
    assert low - 1e-12 <= _b(z, r) <= high + 1e-12  # range
    assert _b(-1, r) == pytest.approx(low, abs=1e-12) and _b(1, r) == pytest.approx(high, abs=1e-12)
    assert (_b(z, r) - _b(y, r)) * (z - y) >= 0  # rises with the cosine
    assert (_b(z, r) - _b(z, s)) * (r - s) <= 1e-12  # falls with the size


def test_operator_is_continuous_at_one_and_uniform_sizes_change_nothing():
    z = _cosines(20, 7)
    assert torch.equal(balanced(z, torch.ones(7, dtype=torch.float64)), z)
    below, above = (balanced(z, torch.full((7,), 1 + d, dtype=torch.float64)) for d in (-1e-7, 1e-7))
    # the slopes in r on either side: -(1 - z) from below, -(1 + z) from above
    assert torch.allclose((z - below) / 1e-7, -(1 - z), atol=1e-5)
    assert torch.allclose((above - z) / 1e-7, -(1 + z), atol=1e-5)


def test_operator_follows_a_permutation_of_the_clusters():
    z, r, order = _cosines(6, 9), torch.rand(9).double() * 3, torch.randperm(9)
    assert torch.equal(balanced(z[:, order], r[order]), balanced(z, r)[:, order])


def test_operator_has_the_gradient_of_its_slope():
    z = _cosines(3, 4).requires_grad_()
    r = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    balanced(z, r).sum().backward()
    assert torch.allclose(z.grad, torch.tensor([0.0, 0.5, 1.0, 0.25]).double().expand(3, 4))


# --- Sizes


def test_sizes_are_the_closed_form_of_one_hot_votes():
    balancer = ClusterBalancer(32, momentum=0.99)
    for t in range(1, 301):
        balancer.update(torch.full((5,), 7))
        if t in (1, 10, 300):
            expected = np.full(32, 0.99**t / 32)
            expected[7] = 1 - 0.99**t * 31 / 32
            np.testing.assert_allclose(balancer.sizes.numpy(), expected, atol=1e-6)
            np.testing.assert_allclose(balancer.relative.numpy(), 32 * expected, atol=1e-5)
            assert abs(balancer.sizes.double().sum().item() - 1) < 1e-6


@settings(deadline=None, max_examples=15)
@given(
    k=st.integers(1, 50),
    n=st.integers(1, 40),
    momentum=st.sampled_from([0.0, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 99),
)
def test_sizes_are_the_moving_average_of_histograms(k, n, momentum, seed):
    balancer, expected = ClusterBalancer(k, momentum), np.full(k, 1 / k)
    draw = np.random.default_rng(seed)
    for _ in range(20):
        labels = draw.integers(0, k, n)
        balancer.update(torch.from_numpy(labels))
        expected = momentum * expected + (1 - momentum) * np.bincount(labels, minlength=k) / n
    assert balancer.sizes.dtype == torch.float32
    np.testing.assert_allclose(balancer.sizes.numpy(), expected, atol=2e-6)
    assert abs(balancer.sizes.double().sum().item() - 1) < 1e-6


def test_sizes_keep_their_sum():
    """Rounding alone lets the sum walk away by 1.6e-6 in this stream."""
    balancer, draw, worst = ClusterBalancer(512, momentum=0.9999), torch.Generator().manual_seed(0), 0.0
    for step in range(20_000):
        balancer.update(torch.randint(512, (256,), generator=draw))
        if step % 50 == 0:
            worst = max(worst, abs(balancer.sizes.double().sum().item() - 1))
    assert worst < 3e-7


def test_sizes_do_not_freeze():
    """A step of a large batch at m = 0.9999 is lost in half precision."""
    balancer = ClusterBalancer(512, momentum=0.9999)
    labels = torch.arange(8192) % 256
    for _ in range(2000):
        balancer.update(labels)
    expected = (1 - 0.9999**2000) / 256 + 0.9999**2000 / 512
    assert balancer.sizes[0].item() == pytest.approx(expected, rel=1e-4)
    assert abs(balancer.sizes.double().sum().item() - 1) < 1e-6


@pytest.mark.parametrize("dtype", HALF)
def test_half_similarities_leave_the_sizes_in_single_precision(dtype):
    balancer, z = ClusterBalancer(8, momentum=0.5), _cosines(16, 8).to(dtype)
    for _ in range(3):
        out = balancer(z)
        balancer.update(out.argmax(1))
    assert out.dtype == balancer.sizes.dtype == torch.float32
    # against the operator in double precision on the rounded cosines
    exact = _operator(z.double().numpy(), balancer.relative.double().numpy())
    np.testing.assert_allclose(balancer(z).numpy(), exact, atol=1e-6)


def test_empty_clusters_tie_at_random_and_others_do_not():
    balancer = ClusterBalancer(16, momentum=0.0)
    balancer.update(torch.zeros(4, dtype=torch.long))
    assert (balancer.sizes[1:] == 0).all()
    z = torch.zeros(1, 16)
    torch.manual_seed(0)
    winners = [balancer(z).argmax().item() for _ in range(300)]
    counts = np.bincount(winners, minlength=16)
    assert counts[0] == 0 and (counts[1:] > 5).all()
    assert (balancer(z)[0, 1:] >= 1 - 1e-3).all()
    with_size = ClusterBalancer(16)
    assert torch.equal(with_size(z), with_size(z))
    strong = ClusterBalancer(
        16, momentum=0.0, gamma=4.0
    )  # the draw must not be raised to the fourth power: all would be 1
    strong.update(torch.zeros(4, dtype=torch.long))
    assert len({strong(z).argmax().item() for _ in range(50)}) > 8


def test_gamma_and_boost():
    z = _cosines(12, 6).float()
    plain, squared, boosted = ClusterBalancer(6), ClusterBalancer(6, gamma=2.0), ClusterBalancer(6, boost=0.01)
    sizes = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    for balancer in (plain, squared, boosted):
        balancer.sizes.copy_(sizes)
    relative = 6 * sizes.double().numpy()
    np.testing.assert_allclose(plain(z).numpy(), _operator(z.double().numpy(), relative), atol=1e-6)
    np.testing.assert_allclose(squared(z).numpy(), _operator(z.double().numpy(), relative**2), atol=1e-6)
    expected = plain(z).numpy().copy()
    for row in expected:
        row[row.argmax()] *= 1.01
    np.testing.assert_allclose(boosted(z).numpy(), expected.clip(-1, 1), atol=1e-6)
    assert not torch.equal(boosted(z), plain(z))


def test_centring_is_the_moving_average_of_means():
    centering, expected = Centering(5, momentum=0.9), np.zeros(5)
    for seed in range(12):
        scores = _cosines(7, 5, seed, torch.float32)
        np.testing.assert_allclose(centering(scores).numpy(), scores.numpy() - expected, atol=1e-6)
        centering.update(scores)
        expected = 0.9 * expected + 0.1 * scores.double().numpy().mean(0)
    np.testing.assert_allclose(centering.center.numpy(), expected, atol=1e-6)
    centering.update(_cosines(7, 5).half())
    assert centering.center.dtype == torch.float32


@pytest.mark.parametrize("make", [lambda: ClusterBalancer(6, 0.9), lambda: Centering(6)])
def test_state_survives_a_round_trip(make, tmp_path):
    first, scores = make(), _cosines(10, 6).float()
    first.update(scores.argmax(1) if isinstance(first, ClusterBalancer) else scores)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make()
    assert not torch.equal(second(scores), first(scores))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(second(scores), first(scores)) and len(second.state_dict()) == 1


# --- No wait for the device, no large matrix


def _teacher_step(balancer, centering, similarities, encodings):
    target = balancer(similarities)
    balancer.update(target.argmax(1), group=WORLD)
    centred = centering(similarities)
    centering.update(similarities, group=WORLD)
    return (
        target,
        centred,
        sinkhorn_knopp(similarities, group=WORLD),
        self_assignment(encodings, encodings, group=WORLD),
    )


def test_a_step_is_one_graph():
    """`fullgraph` fails at any value that Python reads; aot_eager also traces the buffers' updates."""
    torch.compiler.reset()
    balancers = [ClusterBalancer(48, momentum=0.9, boost=0.01) for _ in range(2)]
    centerings = [Centering(48) for _ in range(2)]
    compiled = torch.compile(_teacher_step, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        z, h = _cosines(16, 48, seed, torch.float32), _cosines(16, 8, seed, torch.float32)
        traced = compiled(balancers[0], centerings[0], z, h)
        for a, b in zip(traced, _teacher_step(balancers[1], centerings[1], z, h), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(balancers[0].sizes, balancers[1].sizes, atol=1e-7)
    assert torch.allclose(centerings[0].center, centerings[1].center, atol=1e-7)
    torch.compiler.reset()


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.numel() > self.elements:
                self.elements = value.untyped_storage().nbytes() // value.element_size()
        return out


def test_sizes_of_65536_clusters_need_no_matrix():
    balancer = ClusterBalancer(65_536)
    labels = torch.randint(65_536, (2048,), generator=generator(0, "votes"))
    with _Largest() as largest:
        balancer.update(labels)
    assert largest.elements <= 65_536
    with _Largest() as largest:
        balancer(torch.zeros(4, 65_536))
    assert largest.elements <= 4 * 65_536
    assert balancer.relative.max().item() == pytest.approx(
        0.999 + 0.001 * 32 * labels.bincount().max().item(), rel=1e-4
    )


# --- ReSA


def _self_assignment(h, g, epsilon=0.05, iterations=3):
    unit = [x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (h, g)]
    return _sinkhorn(unit[0] @ unit[1].T, epsilon, iterations)


def test_self_assignment_is_its_formula():
    h, g = 5 * _cosines(12, 6, 0), 0.1 * _cosines(12, 6, 1)
    found = self_assignment(h, g)
    np.testing.assert_allclose(found.numpy(), _self_assignment(h.numpy(), g.numpy()), rtol=1e-9, atol=1e-12)
    assert (self_assignment(h.float(), g.float()).sum(1) - 1).abs().max() < 1e-6
    order = torch.randperm(12)
    assert torch.allclose(self_assignment(h[order], g[order]), found[order][:, order], atol=1e-13)


def test_self_assignment_limits():
    assert torch.allclose(self_assignment(torch.ones(8, 3), torch.ones(8, 3)), torch.full((8, 8), 1 / 8), atol=1e-7)
    assert torch.allclose(self_assignment(torch.eye(8), torch.eye(8)), torch.eye(8), atol=1e-7)
    assert torch.allclose(
        self_assignment(_cosines(9, 4), _cosines(9, 4, 1), epsilon=1e3), torch.full((9, 9), 1 / 9).double(), atol=1e-3
    )
    learning = _cosines(8, 3).requires_grad_()
    assert not self_assignment(learning, learning).requires_grad


def test_self_assignment_ignores_autocast():
    """bfloat16 cosines would be off by 1e-3, divided by 0.05."""
    h = _cosines(32, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = self_assignment(h, h)
    np.testing.assert_allclose(inside.numpy(), _self_assignment(*2 * [h.double().numpy()]), rtol=1e-4, atol=1e-7)


def test_softness_is_counted():
    a, labels = sinkhorn_knopp(_cosines(10, 10), 0.3), torch.arange(10) % 3
    found, exact = assignment_softness(a, labels), a.numpy()
    same = sum(exact[i, j] for i in range(10) for j in range(10) if i != j and i % 3 == j % 3) / 10
    support = sum(math.exp(-sum(p * math.log(p) for p in row)) for row in exact) / 10
    assert found == pytest.approx({"self": np.trace(exact) / 10, "same": same, "support": support}, abs=1e-12)
    assert set(assignment_softness(a)) == {"self", "support"}
    assert assignment_softness(torch.eye(4)) == {"self": 1.0, "support": 1.0}  # 0 log 0 = 0


# --- Two processes


def _on_two(rank):
    draw = torch.Generator().manual_seed(0)
    balancer, centering = ClusterBalancer(7, momentum=0.9), Centering(7)
    outputs = []
    for _ in range(4):
        z = 2 * torch.rand(10, 7, generator=draw) - 1
        h, g = torch.randn(2, 10, 5, generator=draw)
        part = slice(5 * rank, 5 * rank + 5) if rank is not None else slice(None)
        target = balancer(z[part])
        balancer.update(target.argmax(1), group=WORLD)
        centred = centering(z[part])
        centering.update(z[part], group=WORLD)
        assignment = self_assignment(h[part], g[part], epsilon=0.3, group=WORLD)
        outputs.append([target, centred, sinkhorn_knopp(z[part], epsilon=0.3, group=WORLD), assignment])
    softness = assignment_softness(assignment, (torch.arange(10) % 3)[part], group=WORLD)
    return outputs, balancer.sizes, centering.center, softness


def test_two_processes_are_one():
    ranks, (outputs, sizes, center, softness) = run_ranks(_on_two), _on_two(None)
    assert torch.equal(ranks[0][1], ranks[1][1]) and torch.allclose(ranks[0][1], sizes, atol=1e-7)
    assert torch.equal(ranks[0][2], ranks[1][2]) and torch.allclose(ranks[0][2], center, atol=1e-7)
    assert ranks[0][3] == pytest.approx(ranks[1][3]) and ranks[0][3] == pytest.approx(softness, abs=1e-6)
    for first, second, whole in zip(ranks[0][0], ranks[1][0], outputs, strict=True):
        for a, b, both in zip(first, second, whole, strict=True):
            assert torch.allclose(torch.cat([a, b]), both, atol=1e-6)
    alone = sinkhorn_knopp(2 * torch.rand(10, 7, generator=torch.Generator().manual_seed(0))[:5] - 1, epsilon=0.3)
    assert (alone - ranks[0][0][0][2]).abs().max() > 1e-3  # half a batch alone is another answer


# --- k-means


def _lloyd(x, centroids, rounds):
    """Assign to the nearest, average, normalise: with loops, without care for empty clusters."""
    for _ in range(rounds):
        labels = (x @ centroids.T).argmax(1)
        centroids = np.stack([x[labels == j].sum(0) for j in range(len(centroids))])
        centroids /= np.sqrt((centroids**2).sum(1, keepdims=True))
    return centroids


def test_kmeans_is_lloyds_iteration_on_the_sphere():
    x, _, _ = sphere_mixture(600, 6, dim=8, zipf=0.0, generator=generator(0, "lloyd"), dtype=torch.float64)
    start = x[torch.randperm(600, generator=generator(1, "start"))[:6]]
    for rounds in (1, 3, 200):
        found = spherical_kmeans(5 * x, 6, rounds, generator(1, "start"))
        np.testing.assert_allclose(found.numpy(), _lloyd(x.numpy(), start.numpy(), rounds), atol=1e-9)


def test_kmeans_finds_a_planted_mixture():
    """Of a few starts the best by its mean cosine has every direction; a single one may share a centroid between two groups."""
    x, labels, truth = sphere_mixture(2000, 10, zipf=0.5, sigma=0.05, generator=generator(0, "planted"))
    tries = [spherical_kmeans(x, 10, generator=generator(seed, "planted start")) for seed in range(20)]
    best = max(tries, key=lambda c: (x @ c.T).max(1).values.mean().item())
    nearest = truth @ best.T
    assert (nearest.max(1).values > 0.99).all() and nearest.argmax(1).unique().numel() == 10
    assert torch.equal((x @ best.T).argmax(1), nearest.argmax(1)[labels])


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 60),
    m=st.integers(2, 6),
    share=st.floats(0, 1),
    iterations=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_kmeans_leaves_no_cluster_empty(n, m, share, iterations, seed):
    x = torch.randn(n, m, generator=generator(seed, "rows"), dtype=torch.float64)
    k = 1 + round(share * (n - 1))
    centroids = spherical_kmeans(x, k, iterations, generator(seed, "start"))
    unit = x / x.norm(dim=1, keepdim=True)
    assert centroids.shape == (k, m) and (centroids.norm(dim=1) - 1).abs().max() < 1e-6
    assert (unit @ centroids.T).argmax(1).unique().numel() == k


def test_kmeans_with_copies_opposites_and_a_crowd():
    crowd = torch.cat([torch.ones(500, 3), torch.eye(3), -torch.eye(3)])  # a draw of rows starts with equal centroids
    centroids = spherical_kmeans(crowd, 7, generator=generator(0, "crowd"))
    assert (crowd @ centroids.T).argmax(1).unique().numel() == 7
    opposite = spherical_kmeans(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1)
    assert opposite.abs().tolist() == [[1.0, 0.0]]  # the mean is 0: the centroid stays a row
    with pytest.raises(ValueError, match="at least 8 different directions"):
        spherical_kmeans(crowd, 8, iterations=3)


def test_kmeans_holds_no_full_matrix():
    x = torch.randn(3000, 4, generator=generator(0, "many"))
    with _Largest() as largest:
        spherical_kmeans(x, 2500, 1, generator(0, "start"))
    assert largest.elements <= 2**22


# --- Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn_knopp(torch.ones(3)), "scores to be a matrix"),
        (lambda: sinkhorn_knopp(torch.ones(3, 2).long()), "scores in floating point"),
        (lambda: sinkhorn_knopp(torch.tensor([[0.0, math.inf]])), "finite scores"),
        (lambda: sinkhorn_knopp(torch.ones(3, 2), epsilon=-1), "an epsilon above 0; received -1"),
        (lambda: sinkhorn_knopp(torch.ones(3, 2), iterations=-1), "a number of iterations from 0"),
        (lambda: balanced(torch.ones(3, 2), torch.ones(3)), r"relative sizes of shape \(2,\)"),
        (lambda: balanced(torch.ones(3, 2), torch.ones(2), gamma=0), "a gamma above 0"),
        (lambda: ClusterBalancer(0), "at least 1 cluster"),
        (lambda: ClusterBalancer(3, momentum=2), r"a momentum in \[0, 1\]"),
        (lambda: ClusterBalancer(3, boost=-1), "a boost from 0"),
        (lambda: ClusterBalancer(3)(torch.ones(2, 4)), "similarities to 3 centroids"),
        (lambda: ClusterBalancer(3).update(torch.tensor([0, 3])), "labels in 0..2; received 0..3"),
        (lambda: ClusterBalancer(3).update(torch.tensor([-1])), "labels in 0..2; received -1..-1"),
        (lambda: ClusterBalancer(3).update(torch.tensor([], dtype=torch.long)), "at least 1 label"),
        (lambda: ClusterBalancer(3).update(torch.tensor([0.5])), "labels as integers"),
        (lambda: Centering(0), "at least 1 cluster"),
        (lambda: Centering(3, momentum=-1), r"a momentum in \[0, 1\]"),
        (lambda: Centering(3)(torch.ones(2, 4)), "scores of 3 clusters"),
        (lambda: Centering(3).update(torch.ones(2, 4)), "scores of 3 clusters"),
        (lambda: self_assignment(torch.ones(3, 2), torch.ones(4, 2)), "two views of the same shape"),
        (lambda: assignment_softness(torch.ones(3, 2)), r"an assignment of shape \(3, 3\)"),
        (lambda: assignment_softness(torch.eye(3), torch.ones(2).long()), r"labels of shape \(3,\)"),
        (lambda: spherical_kmeans(torch.ones(3, 2), 4), "a number of clusters in 1..3; received 4"),
        (lambda: spherical_kmeans(torch.ones(3, 2), 1, iterations=0), "at least 1 iteration"),
        (lambda: spherical_kmeans(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 1), "rows of a length above 1e-12"),
        (lambda: sphere_mixture(5, 0), "at least 1 component"),
        (lambda: sphere_mixture(5, 2, zipf=-1), "an exponent from 0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_at_full_size_nothing_is_asked_of_the_device(monkeypatch):
    """K = 65,536 at batch 1,024 on tensors that have a device and no values: one graph, and any read of a value is an error."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no such device
    parts = ClusterBalancer(65_536).to("meta"), Centering(65_536).to("meta")
    inputs = torch.empty(1024, 65_536, device="meta"), torch.empty(1024, 2048, device="meta")
    for step in (_teacher_step, torch.compile(_teacher_step, backend="eager", fullgraph=True)):
        target, centred, codes, assignment = step(*parts, *inputs)
        assert target.shape == centred.shape == codes.shape == (1024, 65_536) and assignment.shape == (1024, 1024)
    torch.compiler.reset()
