"""Losses of the clustering methods against their formulas typed in numpy, float64, value and gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.losses import dino_loss, excb_loss, info_nce, resa_loss, soft_cross_entropy, swav_loss

SIZES = dict(n=st.integers(1, 7), k=st.integers(1, 6), seed=st.integers(0, 99))
TAUS = st.sampled_from([0.05, 0.1, 0.4, 2.0])


def _random(seed):
    return np.random.default_rng(seed)


def _distributions(rng, *shape):
    p = rng.exponential(size=shape)
    return p / p.sum(-1, keepdims=True)


def _cross_entropy(p, s, tau):
    """-sum_k p_k log softmax(s / tau)_k, the mean over rows, entry by entry."""
    total = 0.0
    for i in range(len(s)):
        denominator = sum(math.exp((x - s[i].max()) / tau) for x in s[i])
        total -= sum(p[i, k] * ((s[i, k] - s[i].max()) / tau - math.log(denominator)) for k in range(s.shape[1]))
    return total / len(s)


def _unit(z):
    return z / np.sqrt((z**2).sum(1, keepdims=True))


def _codes(s, epsilon=0.05, iterations=3):
    """Caron et al. 2020: as often as asked, every prototype's total to 1 / K, every sample's to 1 / B."""
    q = np.exp((s - s.max()) / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdims=True) * q.shape[1]
        q /= q.sum(1, keepdims=True) * q.shape[0]
    return q * len(q)


def _leaves(*arrays):
    return [torch.tensor(a, requires_grad=True) for a in arrays]


def _check(loss, formula, arrays, constant=()):
    """`loss` of leaves against `formula` of arrays, and its gradient against differences of the formula in up to six entries of each; no gradient into the arrays numbered in `constant`."""
    leaves = _leaves(*arrays)
    value = loss(*leaves)
    assert value.ndim == 0 and value.item() == pytest.approx(formula(*arrays), abs=1e-9)
    value.backward()
    for which, leaf in enumerate(leaves):
        if which in constant:
            assert leaf.grad is None
            continue
        for place in list(np.ndindex(leaf.shape))[:: max(1, leaf.numel() // 6)]:
            slope = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arrays]
                moved[which][place] += step
                slope.append(formula(*moved))
            assert leaf.grad[place].item() == pytest.approx((slope[0] - slope[1]) / 2e-6, abs=1e-6)


# ---- the cross-entropy


@settings(deadline=None, max_examples=25)
@given(**SIZES, tau=TAUS)
def test_soft_cross_entropy_is_its_formula(n, k, seed, tau):
    rng = _random(seed)
    arrays = rng.normal(size=(n, k)), _distributions(rng, n, k)
    _check(
        lambda s, p: soft_cross_entropy(s, p, tau).mean(), lambda s, p: _cross_entropy(p, s, tau), arrays, constant=[1]
    )


def test_soft_cross_entropy_of_a_target_that_does_not_sum_to_1():
    """A sum of three distributions, and one with empty entries."""
    rng = _random(0)
    s, p = rng.normal(size=(5, 4)), _distributions(rng, 3, 5, 4)
    p[0, :, 2] = 0
    found = soft_cross_entropy(torch.tensor(s), torch.tensor(p.sum(0)), 0.3).mean().item()
    assert found == pytest.approx(sum(_cross_entropy(each, s, 0.3) for each in p), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_soft_cross_entropy_is_computed_in_single_precision(dtype):
    rng = _random(1)
    s, p = torch.tensor(rng.normal(size=(8, 1000))).to(dtype), torch.tensor(_distributions(rng, 8, 1000)).to(dtype)
    found = soft_cross_entropy(s.requires_grad_(), p, 0.05)
    expected = -(p.double() * (s.double() / 0.05).log_softmax(1)).sum(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    found.sum().backward()
    assert s.grad.dtype == dtype and s.grad.isfinite().all()


# ---- each loss


@settings(deadline=None, max_examples=10)
@given(n=st.integers(2, 7), k=st.integers(2, 5), seed=st.integers(0, 99), tau=TAUS, epsilon=st.sampled_from([0.1, 0.5]))
def test_swav_is_swapped_prediction_of_codes_that_are_constants(n, k, seed, tau, epsilon):
    rng = _random(seed)
    a, b = rng.uniform(-1, 1, size=(2, n, k))
    codes = _codes(a, epsilon), _codes(b, epsilon)

    def formula(s1, s2):  # the codes stay those of the point at which the gradient is taken
        return (_cross_entropy(codes[1], s1, tau) + _cross_entropy(codes[0], s2, tau)) / 2

    _check(lambda s1, s2: swav_loss(s1, s2, tau, epsilon), formula, (a, b))


def test_swav_asks_for_as_many_sweeps_as_it_is_told():
    a, b = _random(3).uniform(-1, 1, size=(2, 9, 4))
    for iterations in (1, 3, 10):
        ours = swav_loss(torch.tensor(a), torch.tensor(b), 0.1, 0.05, iterations).item()
        codes = [_codes(s, 0.05, iterations) for s in (a, b)]
        assert ours == pytest.approx((_cross_entropy(codes[1], a, 0.1) + _cross_entropy(codes[0], b, 0.1)) / 2)


@settings(deadline=None, max_examples=10)
@given(**SIZES, views=st.integers(2, 5), tau=TAUS)
def test_dino_is_the_mean_over_pairs_of_different_views(n, k, seed, views, tau):
    rng = _random(seed)
    student, teacher = rng.normal(size=(views, n, k)), _distributions(rng, 2, n, k)

    def formula(s, t):
        pairs = [(i, j) for i in range(2) for j in range(views) if i != j]
        assert len(pairs) == 2 * (views - 1)
        return np.mean([_cross_entropy(t[i], s[j], tau) for i, j in pairs])

    _check(lambda s, t: dino_loss(list(s), list(t), tau), formula, (student, teacher), constant=[1])


@settings(deadline=None, max_examples=10)
@given(**SIZES, local=st.integers(0, 6), tau=TAUS)
def test_excb_is_the_mean_over_its_explicit_terms(n, k, seed, local, tau):
    rng = _random(seed)
    projected, predicted = rng.normal(size=(2, n, k)), rng.normal(size=(2 + local, n, k))
    targets = _distributions(rng, 2, n, k)

    def formula(h, g, p):
        terms = []
        for t in range(2):
            terms.append(_cross_entropy(p[t], h[1 - t], tau))
            terms += [_cross_entropy(p[t], g[v], tau) for v in range(2 + local)]
        assert len(terms) == 2 * (3 + local)
        return np.mean(terms)

    _check(
        lambda h, g, p: excb_loss(list(h), list(g), list(p), tau),
        formula,
        (projected, predicted, targets),
        constant=[2],
    )


def test_excb_gives_centroids_a_gradient_through_the_projector_only():
    """Where the predictor's scores use detached centroids, two of the 2(3 + L) terms are all that reaches them."""
    generator = torch.Generator().manual_seed(0)
    u, g = (torch.randn(count, 6, 4, generator=generator, dtype=torch.float64) for count in (2, 5))
    targets = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64).softmax(-1)
    centroids = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    excb_loss(u @ centroids.T, g @ centroids.detach().T, targets).backward()
    found, centroids.grad = centroids.grad, None
    two = sum(-(targets[t] * (u[1 - t] @ centroids.T / 0.1).log_softmax(1)).sum(1).mean() for t in range(2))
    (two / (2 * (3 + 3))).backward()
    torch.testing.assert_close(found, centroids.grad)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 7), m=st.integers(2, 6), seed=st.integers(0, 99), tau=TAUS)
def test_resa_is_its_double_sum(n, m, seed, tau):
    rng = _random(seed)
    z, keys, a = rng.normal(size=(n, m)), rng.normal(size=(n, m)), _distributions(rng, n, n)

    def formula(z, keys, a):
        cosines, total = _unit(z) @ _unit(keys).T, 0.0
        for i in range(n):
            denominator = sum(math.exp(cosines[i, j] / tau) for j in range(n))
            total -= sum(a[i, j] * math.log(math.exp(cosines[i, j] / tau) / denominator) for j in range(n))
        return total / n

    _check(lambda z, keys, a: resa_loss(z, keys, a, tau), formula, (z, keys, a), constant=[2])


@pytest.mark.parametrize("tau", [0.07, 0.4])
def test_resa_with_the_identity_is_info_nce(tau):
    """Value and both gradients, against the loss of another room and against numpy."""
    rng = _random(5)
    arrays = rng.normal(size=(2, 16, 6))
    ours, theirs = _leaves(*arrays), _leaves(*arrays)
    values = resa_loss(*ours, torch.eye(16), tau), info_nce(*theirs, temperature=tau)
    for value in values:
        value.backward()
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-8)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-10)
    s = _unit(arrays[0]) @ _unit(arrays[1]).T / tau
    assert values[0].item() == pytest.approx(np.mean(np.log(np.exp(s).sum(1)) - s.diagonal()), abs=1e-8)


# ---- values to know


@pytest.mark.parametrize("k", [2, 10, 65536])
def test_equal_scores_cost_the_logarithm_of_the_clusters(k):
    flat = torch.full((4, k), 0.3)
    peaked = torch.nn.functional.one_hot(torch.arange(4) % k, k).float()
    for value in (
        swav_loss(flat, flat),
        dino_loss([flat] * 4, [peaked] * 2),
        excb_loss([flat] * 2, [flat] * 8, [peaked] * 2),
    ):
        assert value.item() == pytest.approx(math.log(k), rel=1e-5)


@pytest.mark.parametrize("n", [2, 64, 256])
def test_values_of_resa_at_the_start_and_at_its_floor(n):
    """ln N at collapse whatever A is; ln(1 + (N - 1) e^(-1/tau)) for A = I and negatives at right angles: 3.09 for 256."""
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert resa_loss(torch.ones(n, 4), torch.ones(n, 4), a).item() == pytest.approx(math.log(n), abs=1e-5)
    floor = resa_loss(torch.eye(n), torch.eye(n), torch.eye(n)).item()
    assert floor == pytest.approx(math.log(1 + (n - 1) * math.exp(-1 / 0.4)), abs=1e-5)
    assert n != 256 or floor == pytest.approx(3.09, abs=0.005)


def test_a_loss_is_least_where_prediction_and_target_agree():
    """Cross-entropy is the target's entropy there, and its gradient is 0."""
    p = torch.tensor(_distributions(_random(2), 5, 4))
    scores = (0.1 * p.log()).requires_grad_()
    loss = dino_loss([scores, scores], [p, p])
    loss.backward()
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item())
    assert scores.grad.abs().max() < 1e-12


# ---- bad input


S, P = torch.zeros(4, 3), torch.full((4, 3), 1 / 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: swav_loss(S, S[:2]),
        lambda: swav_loss(S, S, temperature=0),
        lambda: swav_loss(S, S, epsilon=0),
        lambda: dino_loss([S], [P, P]),
        lambda: dino_loss([S, S], [P]),
        lambda: dino_loss([S, S], [P, P], temperature=-1),
        lambda: dino_loss([S, S], [P[:2], P[:2]]),
        lambda: excb_loss([S], [S, S], [P, P]),
        lambda: excb_loss([S, S], [S], [P, P]),
        lambda: excb_loss([S, S], [S, S], [P, P, P]),
        lambda: excb_loss([S, S], [S, S], [P, P], temperature=0),
        lambda: resa_loss(S, S, torch.eye(3)),
        lambda: resa_loss(S, S[:2], torch.eye(4)),
        lambda: resa_loss(S, S, torch.eye(4), temperature=0),
        lambda: resa_loss(S, S, torch.ones(4)),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        call()


# ---- two processes


def _whole():
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(2, 12, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    return scores, z, torch.rand(12, 12, generator=generator, dtype=torch.float64).softmax(1)


def _both(scores, z, assignment, group):
    scores, z = (each.clone().requires_grad_() for each in (scores, z))
    losses = swav_loss(*scores, group=group), resa_loss(*z, assignment, group=group)
    for loss in losses:
        loss.backward()
    return [loss.detach() for loss in losses], [scores.grad, z.grad]


def _on_a_rank(rank):
    scores, z, assignment = _whole()
    mine = slice(6 * rank, 6 * rank + 6)
    return _both(scores[:, mine], z[:, mine], assignment[mine], WORLD)


def test_two_processes_have_the_loss_and_twice_the_gradient_of_one():
    values, gradients = _both(*_whole(), None)
    for rank, (found, slopes) in enumerate(run_ranks(_on_a_rank)):
        torch.testing.assert_close(found, values, rtol=1e-10, atol=1e-12)
        for slope, whole in zip(slopes, gradients, strict=True):
            torch.testing.assert_close(slope, 2 * whole[:, 6 * rank : 6 * rank + 6], rtol=1e-9, atol=1e-12)
