"""The loop of votes and sizes at rest: against the resting points of a pilot, and against what follows from the operator."""

import math

import numpy as np
import pytest
import torch

from wssl.balance import ClusterBalancer, balanced
from wssl.core.seeds import generator
from wssl.data import sphere_mixture


def _votes(z, s, gamma=1.0):
    k = len(s)
    return balanced(z, k * s, gamma).argmax(1).bincount(minlength=k) / len(z)


def _rest(z, gamma=1.0):
    s = torch.full((z.shape[1],), 1 / z.shape[1])
    for momentum, steps in ((0.9, 40), (0.97, 40), (0.99, 40)):
        for _ in range(steps):
            s = momentum * s + (1 - momentum) * _votes(z, s, gamma)
    return s


def _similarities(n, k, zipf, sigma, seed=0):
    x, _, centroids = sphere_mixture(n, k, zipf=zipf, sigma=sigma, generator=generator(seed, "m"))
    return x @ centroids.T


def _measures(s):
    r = len(s) * s.double().numpy()
    return np.array([np.abs(r - 1).mean() / 2, r.max(), r.min()])


# K, Zipf exponent, sigma -> total variation to equal sizes, largest and smallest relative size (50,000 samples, another generator)
PILOT = {
    (16, 1.0, 0.35): (0.035, 1.205, 0.898),
    (64, 1.0, 0.35): (0.019, 1.198, 0.912),
    (64, 1.5, 0.35): (0.023, 1.254, 0.877),
    (64, 1.0, 0.15): (0.054, 1.415, 0.767),
}


@pytest.mark.parametrize("case", PILOT)
def test_resting_points_are_the_pilots(case):
    found = np.mean([_measures(_rest(_similarities(25_000, *case, seed))) for seed in range(3)], 0)
    assert np.abs(found - PILOT[case])[0] < 0.01 and np.abs(found - PILOT[case])[1:].max() < 0.05
    raw = _measures(_votes(_similarities(25_000, *case), torch.full((case[0],), 1 / case[0])))
    assert raw[0] > 5 * found[0] > 0.05  # an imbalance stays, and is much smaller than the raw one


def test_the_stream_settles_at_the_resting_point_whatever_the_batch():
    z = _similarities(20_000, 16, 1.0, 0.35)
    rest = _rest(z)
    for n, momentum in ((4, 0.998), (64, 0.99)):
        balancer, draw, seen, steps = (
            ClusterBalancer(16, momentum),
            generator(0, "stream", n),
            [],
            int(12 / (1 - momentum)),
        )
        for step in range(steps):
            balancer.update(balancer(z[torch.randint(len(z), (n,), generator=draw)]).argmax(1))
            if step > steps / 4:
                seen.append(balancer.sizes.clone())
        assert (torch.stack(seen).mean(0) - rest).abs().sum() / 2 < 0.01


def test_gamma_shrinks_the_offset_in_proportion():
    z = _similarities(25_000, 16, 1.0, 0.35)
    offsets = {gamma: _measures(_rest(z, gamma))[0] for gamma in (1.0, 2.0, 4.0)}
    assert offsets[1.0] > 0.02
    for gamma in (2.0, 4.0):
        assert gamma * offsets[gamma] == pytest.approx(offsets[1.0], rel=0.2)


def test_two_starts_approach_each_other_at_the_rate_of_the_momentum():
    z, draw, momentum = _similarities(5_000, 16, 1.0, 0.35).double(), np.random.default_rng(0), 0.995
    starts = [
        np.full(16, 1 / 16),
        np.r_[0.985, np.full(15, 0.001)],
        draw.dirichlet(np.ones(16)),
        draw.dirichlet(np.ones(16)),
    ]
    now = [torch.from_numpy(start) for start in starts]
    first = [[(a - b).abs().sum().item() for a in now] for b in now]
    for t in range(1, 701):
        now = [momentum * s + (1 - momentum) * _votes(z, s).double() for s in now]
        for i, a in enumerate(now):
            for j, b in enumerate(now[:i]):
                assert (a - b).abs().sum().item() <= momentum**t * first[i][j] + 2e-4
    assert max((a - now[0]).abs().sum().item() for a in now) < 5e-3


@pytest.mark.parametrize("momentum", [0.9, 0.99])
@pytest.mark.parametrize("distance", [0.2, 0.3, 0.6])
def test_an_empty_cluster_comes_back_when_the_formula_says(momentum, distance):
    balancer = ClusterBalancer(2049, momentum)
    z = torch.full((1, 2049), -1.0)
    z[0, 0], z[0, 1] = 0.0, 1 - distance
    steps = 0
    while balancer(z).argmax().item() == 1:
        balancer.update(torch.arange(1, 2049))
        steps += 1
        assert steps < 1000
    assert abs(steps - math.ceil(math.log(1 / distance) / -math.log(momentum))) <= 1


def test_a_cluster_that_has_everything_is_left_and_one_that_has_nothing_is_everybodys():
    z = 2 * torch.rand(200, 8, generator=generator(0, "cosines"), dtype=torch.float64) - 1
    everything = torch.full((8,), 1e-9, dtype=torch.float64)
    everything[3] = 1
    assert _votes(z, everything)[3] == 0
    nothing = torch.full((8,), 1 / 7, dtype=torch.float64)
    nothing[3] = 1e-12
    assert _votes(z, nothing)[3] == 1


@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_noise_of_the_sizes_without_feedback_is_the_law(zipf):
    k, n, momentum, draw = 2048, 64, 0.98, generator(0, "noise")
    p = torch.arange(1, k + 1, dtype=torch.float64) ** -zipf
    p, balancer = p / p.sum(), ClusterBalancer(k, momentum)
    balancer.sizes.copy_(p)
    for _ in range(250):
        balancer.update(torch.multinomial(p, n, replacement=True, generator=draw))
    law = (1 - momentum) / (1 + momentum) * p * (1 - p) / n
    assert ((balancer.sizes - p).square() / law).mean().sqrt().item() == pytest.approx(1, abs=0.1)
