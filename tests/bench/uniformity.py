"""W2 as a loss, forward and backward, against the forms in circulation; the streaming moments.

The peers are retyped from the formula: the paper's code rebuilds the matrix root with a general eigensolver, a kind reader would write
`eigh`, and almost everybody computes L_U with `torch.pdist`. All start from rows that are not normalised and end in their gradient.
"""

import torch
import torch.nn.functional as F

from tests.bench.harness import floor, take_turns
from wssl.metrics import Moments, uniformity, wasserstein_uniformity

SIZES = [(512, 256), (512, 512), (1024, 1024), (256, 2048), (1_000_000, 128)]
AGAINST_PDIST = [(192, 64), (384, 128), (768, 256), (1536, 512)]  # n = 3m
TARGETS = {
    (512, 256): {"general eig": 4},
    (512, 512): {"general eig": 5},
    (1024, 1024): {"general eig": 5},
    (256, 2048): {"eigh": 100},
    (1_000_000, 128): {"eigh": 3},
}


def from_root(z, decompose):
    z = F.normalize(z)
    mean = z.mean(0)
    cov = (z - mean).T @ (z - mean) / len(z)
    values, vectors = decompose(cov)
    root = vectors @ values.abs().sqrt().diag() @ vectors.T
    return (mean @ mean + cov.trace() + 1 - 2 / z.shape[1] ** 0.5 * root.trace()).clamp_min(0).sqrt()


def general_eig(z):
    return from_root(z, lambda cov: [part.real for part in torch.linalg.eig(cov)])


def symmetric_eigh(z):
    return from_root(z, torch.linalg.eigh)


def pdist_uniformity(z):
    return torch.pdist(F.normalize(z)).square().mul(-2).exp().mean().log()


def step(loss, z):
    """A function that computes `loss` and its gradient."""
    leaf = z.clone().requires_grad_()

    def run():
        leaf.grad = None
        loss(leaf).backward()

    return run


def loss_row(n, m, ceiling, peers, repeats):
    z = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
    seconds = take_turns(
        {name: step(loss, z) for name, loss in {"W2": wasserstein_uniformity, **peers}.items()}, repeats
    )
    # a symmetric product on the smaller side, one product for the gradient; k^3 work counted as free
    least = floor(3 * n * m * min(n, m), 2 * 4 * n * m, ceiling)
    ratios = {name: round(seconds[name] / seconds["W2"], 2) for name in peers}
    targets = TARGETS.get((n, m)) or ({"L_U pdist": 1} if (n, m) in AGAINST_PDIST else {})
    met = all(ratios[name] >= target for name, target in targets.items())
    aim = ", ".join(f"{target} x {name}" for name, target in targets.items())
    return {
        "n": n,
        "m": m,
        "W2 ms": round(seconds["W2"] * 1e3, 2),
        "x floor": round(seconds["W2"] / least, 1),
        **ratios,
        "aim": aim,
        "met": met,
    }


def losses(ceiling, repeats=15):
    """Rows: milliseconds of W2 forward and backward, as a multiple of its floor, and how many times as long each peer takes."""
    pairs = {"L_U pdist": pdist_uniformity, "L_U chunked": uniformity}
    for n, m in SIZES:
        peers = {"general eig": general_eig, "eigh": symmetric_eigh, **(pairs if n < 10_000 else {})}
        if (n, m) == (256, 2048):
            peers.pop("general eig")  # repeated zero eigenvalues: its gradient is noise, after seven seconds
        yield loss_row(n, m, ceiling, peers, repeats)
    for n, m in AGAINST_PDIST:
        yield loss_row(n, m, ceiling, pairs, repeats)


def moments(ceiling, repeats=9):
    """Rows: rows a second of the streaming moments, from chunks of 10,000, and of the one-pass product in float64."""
    for n, m in [(1_000_000, 128), (100_000, 512)]:
        z = torch.randn(n, m, generator=torch.Generator().manual_seed(0))

        def stream(z=z, m=m):
            seen = Moments(m)
            for chunk in z.split(10_000):
                seen.update(chunk)

        def one_pass(z=z):
            wide = z.double()
            wide -= wide.mean(0)
            wide.T @ wide

        seconds = take_turns({"streamed": stream, "one pass": one_pass}, repeats)
        least = floor(n * m * m, 4 * n * m, ceiling)
        yield {
            "n": n,
            "m": m,
            "rows/s": round(n / seconds["streamed"]),
            "x floor": round(seconds["streamed"] / least, 1),
            "one pass in float64": round(seconds["one pass"] / seconds["streamed"], 2),
            "aim": "1,500,000 rows/s" if m == 128 else "",
            "met": m != 128 or n / seconds["streamed"] >= 1.5e6,
        }
