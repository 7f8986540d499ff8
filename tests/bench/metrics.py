"""Metrics of embeddings, forward only, beside POT, torchmetrics' FID, `torch.linalg.svdvals` and `torch.pdist`."""

import torch
import torch.nn.functional as F

from tests.bench.compare import Case, Peer, table
from tests.bench.losses import draw
from wssl.metrics import rankme, singular_spectrum, uniformity, wasserstein_uniformity

WIDE = "ours finds the eigenvalues of a float64 Gram matrix, the peer works in float32"


def answer(function, *inputs):
    """A function that computes one number without gradient."""

    def run():
        with torch.no_grad():
            return (function(*inputs),)

    return run


def moments(z):
    z = F.normalize(z)
    mean = z.mean(0)
    return mean, (z - mean).T @ (z - mean) / len(z)


def wasserstein(n, m):
    z = draw(n, m)

    def of_pot():
        from ot.gaussian import bures_wasserstein_distance

        def distance(z):
            mean, cov = moments(z)
            return bures_wasserstein_distance(torch.zeros(m), mean, torch.eye(m) / m, cov)

        return answer(distance, z)

    def of_torchmetrics():
        from torchmetrics.image.fid import _compute_fid

        def distance(z):
            mean, cov = moments(z.double())
            target = torch.zeros(m, dtype=z.dtype).double(), torch.eye(m).double() / m
            return _compute_fid(mean, cov, *target).sqrt()

        return answer(distance, z)

    peers = [Peer("POT bures_wasserstein_distance", "ot", of_pot, reason=WIDE)]
    if m <= 512:
        peers.append(Peer("torchmetrics, the formula of its FID", "torchmetrics", of_torchmetrics))
    yield Case("W2, the metric", f"{n} x {m}", answer(wasserstein_uniformity, z), peers, n * m * min(n, m), 4 * n * m)


def pairs(n, m):
    z = draw(n, m)
    pdist = Peer(
        "torch.pdist",
        "torch",
        lambda: answer(lambda z: torch.pdist(F.normalize(z)).square().mul(-2).exp().mean().log(), z),
    )
    yield Case("L_U, the metric", f"{n} x {m}", answer(uniformity, z), [pdist], n * n * m, 4 * n * m)


def spectra(n, m):
    z = draw(n, m) / torch.arange(1, m + 1).sqrt()

    def effective_rank(z):
        share = torch.linalg.svdvals(z)
        share = share / share.sum()
        return (-share * share.clamp_min(1e-30).log()).sum().exp()

    def eigenvalues(z):
        z = F.normalize(z)
        return F.pad(torch.linalg.svdvals(z - z.mean(0)).square() / n, (0, max(0, m - n)))

    bound = n * m * min(n, m), 4 * n * m
    for what, ours, theirs in [("RankMe", rankme, effective_rank), ("spectrum", singular_spectrum, eigenvalues)]:
        peers = [Peer("torch.linalg.svdvals", "torch", lambda theirs=theirs: answer(theirs, z), reason=WIDE)]
        yield Case(what, f"{n} x {m}", answer(ours, z), peers, *bound)


SIZES = {
    wasserstein: [(10_000, 128), (10_000, 512), (10_000, 1024)],
    pairs: [(2000, 128), (4000, 512)],
    spectra: [(10_000, 128), (10_000, 512), (1024, 4096)],
}


def measure(ceiling, repeats=5, budget=2.0):
    """Rows: one a metric, a size and a peer."""
    cases = (case for family, sizes in SIZES.items() for size in sizes for case in family(*size))
    yield from table(cases, ceiling, repeats, budget)
