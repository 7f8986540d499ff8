"""Forty kinds of embeddings with a known truth, at several sizes and seeds: a floor is never taken for collapse, a collapse never for health."""

import pytest
import torch
import torch.nn.functional as F

from wssl.metrics.diagnosis import diagnose
from wssl.metrics.resampling import read_rows
from wssl.metrics.verdict import Facts, effective_dimensions, judge

SEEDS = range(2)
TELLS = {"healthy": "healthy", "anisotropic": "anisotropic", "constant": "constant collapse", "few": "too few rows"}
TELLS |= {"dead": "dimensional collapse", "cluster": "cluster collapse"}


class Draw:
    "Generated clouds; every call draws anew."

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, n, m):
        return torch.randn(n, m, generator=self.generator)

    def turned(self, z):
        return z @ torch.linalg.qr(self.normal(z.shape[1], z.shape[1]))[0]

    def alive(self, n, m, r, leak=0.0):
        return self.turned(torch.cat([self.normal(n, r), leak * self.normal(n, m - r)], 1))

    def clusters(self, n, m, k, spread):
        centres = F.normalize(self.normal(k, m), dim=1)
        return centres[torch.randint(k, (n,), generator=self.generator)] + spread * F.normalize(
            self.normal(n, m), dim=1
        )

    def lengths(self, n):
        return self.normal(n, 1).exp()


# name -> (make, truth, effective dimensions or None)
SITUATIONS = {
    # healthy
    "Gaussian, many rows": (lambda d: d.normal(3000, 64), "healthy", 64),
    "Gaussian, n = 2m": (lambda d: d.normal(256, 128), "healthy", 128),
    "Gaussian, n = m": (lambda d: d.normal(256, 256), "healthy", 256),
    "Gaussian, n = m / 2": (lambda d: d.normal(128, 256), "healthy", 256),
    "Gaussian, m = 2": (lambda d: d.normal(500, 2), "healthy", 2),
    "sphere, n = 4m": (lambda d: F.normalize(d.normal(512, 128), dim=1), "healthy", 128),
    "norms from 0.1 to 10": (lambda d: d.normal(2000, 64) * d.lengths(2000), "healthy", 64),
    "one norm of a million": (lambda d: torch.cat([d.normal(999, 32), 1e6 * d.normal(1, 32)]), "healthy", 32),
    "Laplace entries": (lambda d: d.normal(2000, 64) * d.normal(2000, 64).abs(), "healthy", 64),
    "coin flips": (lambda d: d.normal(2000, 64).sign(), "healthy", 64),
    "cube in the positive corner, centred": (lambda d: d.normal(2000, 64).sigmoid() - 0.5, "healthy", 64),
    "mildly uneven": (lambda d: d.normal(2000, 128) * torch.arange(1, 129) ** -0.15, "healthy", None),
    "every row twice": (lambda d: d.normal(400, 64).repeat(2, 1), "healthy", 64),
    "every row eight times, n different = m": (lambda d: d.normal(128, 128).repeat_interleave(8, 0), "healthy", 128),
    "two hundred clusters, isotropic": (lambda d: d.clusters(4000, 32, 200, 0.5), "healthy", None),
    "one-hot codes, 64 of 64": (lambda d: torch.eye(64)[torch.arange(4096) % 64], "healthy", 64),
    "ReLU of a Gaussian": (lambda d: d.normal(4000, 64).relu(), "healthy", 64),
    "half precision": (lambda d: d.normal(1000, 32).half(), "healthy", 32),
    # collapsed in part, or decaying
    "half of 128": (lambda d: d.alive(2000, 128, 64), "dead", 64),
    "half of 128, n = m": (lambda d: d.alive(128, 128, 64), "dead", 64),
    "a quarter of 256, n = m / 2": (lambda d: d.alive(128, 256, 64), "dead", 64),
    "38 of 256": (lambda d: d.alive(3000, 256, 38), "dead", 38),
    "8 of 128": (lambda d: d.alive(2000, 128, 8), "dead", 8),
    "2 of 64": (lambda d: d.alive(1000, 64, 2), "dead", 2),
    "one line": (lambda d: d.alive(500, 32, 1), "dead", 1),
    "127 of 128": (lambda d: d.alive(2000, 128, 127), "healthy", 127),
    "half, with a leak": (lambda d: d.alive(2000, 128, 64, leak=0.05), "dead", None),
    "half, uneven norms": (lambda d: d.alive(2000, 64, 32) * d.lengths(2000), "dead", 32),
    "spectrum 1/k^2": (lambda d: d.normal(2000, 128) / torch.arange(1, 129), "anisotropic", None),
    "large mean": (lambda d: d.normal(2000, 64) + 1.0, "anisotropic", 64),
    "large mean, half of the dimensions": (lambda d: d.alive(2000, 64, 32) + d.normal(1, 64), "dead", None),
    "ten tight clusters in 128": (lambda d: d.clusters(2000, 128, 10, 0.1), "cluster", None),
    "two clusters, opposite": (lambda d: d.normal(1000, 1).sign() * torch.ones(1, 64) / 8 + 0.05 * d.normal(1000, 64), "anisotropic", None),
    "three quarters of the rows zero": (lambda d: torch.cat([d.normal(500, 32), torch.zeros(1500, 32)]), "cluster", None),
    "ReLU, half of the units dead": (lambda d: d.normal(4000, 64).relu() * (torch.arange(64) < 32), "dead", 32),
    "one-hot codes, 64 of 128": (lambda d: torch.eye(128)[torch.arange(4096) % 64], "few", None),
    # constant
    "one point": (lambda d: d.normal(1, 64).expand(500, 64).contiguous(), "constant", 0),
    "one point and noise of a thousandth": (lambda d: d.normal(1, 64) + 1e-3 * d.normal(500, 64), "constant", 0),
    "one direction, many lengths": (lambda d: d.normal(1, 64) * d.lengths(500), "constant", 0),
    "one point, seen five times": (lambda d: torch.ones(5, 16), "constant", 0),
    "zeros": (lambda d: torch.zeros(100, 16), "constant", 0),
    # cannot be told
    "Gaussian, n = m / 8": (lambda d: d.normal(64, 512), "few", None),
    "20 rows": (lambda d: d.normal(20, 4), "few", None),
    "two rows": (lambda d: d.normal(2, 128), "few", None),
    "half of 1024, n = m / 16": (lambda d: d.alive(64, 1024, 512), "few", None),
    "ten rows, each a hundred times": (lambda d: d.normal(10, 64).repeat(100, 1), "few", None),
    "128 rows, each eight times with noise": (lambda d: d.normal(128, 128).repeat(8, 1) + 1e-4 * d.normal(1024, 128), "few", None),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_verdict_is_the_truth(name):
    make, truth, dimensions = SITUATIONS[name]
    for seed in SEEDS:
        found = diagnose(make(Draw(seed)))
        assert found.status == TELLS[truth], (seed, found.sentence)
        assert found.sentence.startswith("too few rows to tell" if truth == "few" else TELLS[truth])
        alive = found.values["effective dimensions"]
        assert (alive.value is None) == (truth == "few")
        if dimensions is not None:
            m = found.values["dimensions"].value
            assert abs(alive.value - dimensions) <= max(1, 0.05 * dimensions, 0.02 * m), (seed, found.sentence)
            assert truth == "constant" or alive.low - 1 <= dimensions <= alive.high + 1


def facts(z):
    r = read_rows(z)
    return Facts(r.n, r.effective_rows(), r.n, *r.whole(), r.zeros / r.n, r.lowest >= 0)


@pytest.mark.parametrize("m", [8, 32, 128, 384])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7, 1.0])
def test_never_the_opposite_of_the_truth(m, share):
    "Over forty numbers of rows each: 'too few' is allowed where n is small, the other pole never, and the truth is told from 4m rows on."
    r = max(1, round(share * m))
    for number, n in enumerate(torch.logspace(0.7, 3.3, 40).int().tolist()):
        draw = Draw(number)
        verdict = judge(facts(draw.normal(n, m) if share == 1 else draw.alive(n, m, r)))
        truth = "healthy" if share == 1 else "dimensional collapse"
        assert verdict.status in {truth, "too few rows"}, (n, verdict.sentence)
        if n >= max(64, 4 * m):
            assert verdict.status == truth, (n, verdict.sentence)
            assert abs(verdict.effective - r) <= max(1, 0.05 * r), (n, verdict.sentence)


def test_shuffling_and_turning_and_scaling_change_nothing():
    draw = Draw(0)
    z = draw.alive(600, 48, 20)
    first = diagnose(z)
    others = [
        z[torch.randperm(600, generator=draw.generator)],
        draw.turned(z),
        1e-3 * z,
        z * draw.lengths(600),
        z.double(),
    ]
    for other in others:
        found = diagnose(other)
        assert found.status == first.status
        assert found.values["effective dimensions"].value == first.values["effective dimensions"].value
        assert found.values["W2"].value == pytest.approx(first.values["W2"].value, abs=1e-5)


def test_the_floor_of_few_rows_is_not_half_a_collapse():
    "Two points of any dimension read as half collapsed by an effective rank over m; here they are too few."
    for m in (2, 4, 64):
        assert diagnose(Draw(0).normal(2, m)).status == "too few rows"
    for n in (32, 48, 64, 96):
        assert diagnose(Draw(n).normal(n, 64)).status in ("healthy", "too few rows")


def test_a_range_holds_the_truth_and_narrows():
    widths = []
    for n in (160, 512, 4096):
        values = diagnose(Draw(n).alive(n, 128, 64)).values
        effective, dead = values["effective dimensions"], values["dead directions"]
        assert effective.low <= 64 <= effective.high and dead.low == dead.value == dead.high == 64
        decaying = diagnose(Draw(n).normal(n, 128) * torch.arange(1, 129) ** -0.5).values["effective dimensions"]
        widths.append(decaying.high - decaying.low)
    assert widths[2] < widths[0]


def test_effective_dimensions_inverts_the_null_distribution():
    from wssl.theory.null_distribution import null_distribution

    for n, m, r in [(64, 128, 30), (1000, 64, 64), (4096, 512, 7)]:
        assert effective_dimensions((r / m) ** 0.5 * null_distribution(n, r)[0] * (1 + 1e-12), n, m) == r
