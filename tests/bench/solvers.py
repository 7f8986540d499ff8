"""W2 forward and backward by its two solvers, on the GPU if there is one: products alone (no wait for the device) and `eigh`.

On a CPU this only shows why products are not the choice there.
"""

import torch

from tests.bench.harness import take_turns
from wssl.core.rows import normalize_rows
from wssl.metrics.polar import centre_rows, polar_by_gram, polar_by_products, root_and_inverse
from wssl.metrics.wasserstein import w2_squared

SIZES = [(256, 256), (512, 256), (512, 512), (1024, 1024), (256, 2048), (512, 2048)]


def _step(z, solver):
    """A function that finds W2 squared's gradient by `solver` and waits for the device."""
    total, m = z.shape
    by_rows = total <= m

    def run():
        rows, mean, _ = centre_rows(z)
        variance, root, polar = solver(rows, by_rows, total)
        value = w2_squared(variance + mean.square().sum(), root, m)
        run.last = value, 2 / total * (z - polar / m**0.5)
        if z.is_cuda:
            torch.cuda.synchronize()

    return run


def measure(ceiling, repeats=15):
    """Rows: milliseconds by products and by `eigh`, and how far they differ in value and gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    solvers = {
        "products": lambda rows, by_rows, total: polar_by_products(rows, by_rows, total, None),
        "eigh": lambda rows, by_rows, total: polar_by_gram(rows, by_rows, total, None, root_and_inverse),
    }
    rows = []
    for n, m in SIZES:
        z = normalize_rows(torch.randn(n, m, generator=torch.Generator().manual_seed(0))).to(device)
        steps = {name: _step(z, solver) for name, solver in solvers.items()}
        seconds = take_turns(steps, repeats)
        (a, ga), (b, gb) = steps["products"].last, steps["eigh"].last
        rows.append(
            {
                "device": device,
                "n": n,
                "m": m,
                "products ms": round(seconds["products"] * 1e3, 3),
                "eigh ms": round(seconds["eigh"] * 1e3, 3),
                "eigh / products": round(seconds["eigh"] / seconds["products"], 2),
                "value differs by": float((a - b).abs()),
                "gradient differs by (relative)": float((ga - gb).norm() / gb.norm()),
            }
        )
    return rows
