"""The same seed with 1, 2 and 4 threads: a process each, everything that it computed compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

THREADS = (1, 2, 4)
# largest relative difference between thread counts; sums in another order differ by rounding, and a training adds up its steps
TOLERANCES = {"losses": 1e-5, "gradients": 2e-4, "metrics": 1e-6, "kmeans": 1e-5, "sinkhorn": 1e-5, "training": 2e-3}


def _everything():
    """Numbers by family, as lists of floats."""
    from tests.torture.numerics_check import SUBJECTS, Case
    from wssl.balance import sinkhorn_knopp, spherical_kmeans

    found = {family: [] for family in TOLERANCES}
    for name, subject in SUBJECTS.items():
        case = Case(min(2048, subject.most), min(48, subject.columns), dtype="float32", seed=1)
        inputs = subject.inputs(case)
        if not subject.free:
            found["metrics"].append([name, float(subject.call(*inputs).double().sum())])
            continue
        leaves = [x.requires_grad_() for x in inputs[: subject.free]]
        total = subject.call(*inputs)
        total = (total * torch.arange(total.numel()).view(total.shape).cos()).sum()
        found["losses"].append([name, float(total)])
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        found["gradients"].append([name, sum(float(g.double().norm()) for g in grads if g is not None)])
    z = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    centroids = spherical_kmeans(z[:4000], 20, iterations=5, generator=torch.Generator().manual_seed(1))
    found["kmeans"] = [["spherical_kmeans", float(centroids.double().abs().sum())]]
    found["sinkhorn"] = [["sinkhorn_knopp", float((sinkhorn_knopp(z) ** 2).double().sum())]]
    found["training"] = [["simclr, 5 steps", _training()]]
    return found


def _training():
    from wssl.methods import METHODS
    from wssl.models import SmallResNet

    torch.manual_seed(0)
    method = METHODS["simclr"]().build(SmallResNet(width=8, blocks=(1,)))
    steps = torch.optim.SGD(method.parameters(), 0.05)
    views = torch.randn(2, 64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        steps.zero_grad()
        loss = method(tuple(views)).loss
        loss.backward()
        steps.step()
    return float(loss.detach())


def thread_rows():
    runs = []
    for threads in THREADS:
        command = [sys.executable, "-m", "tests.torture.numerics_threads", str(threads)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
        if done.returncode:
            print(f"  to repeat: {' '.join(command[1:])}: {done.stderr[-800:]}", flush=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {})
    for family, tolerance in TOLERANCES.items():
        broken, worst, same = [], 0.0, 0
        values = [run.get(family, []) for run in runs]
        for (name, one), *others in zip(*values, strict=False):
            apart = max(abs(value - one) for _, value in others) / (abs(one) + 1e-9)
            worst, same = max(worst, apart), same + (apart == 0)
            if not apart <= tolerance:
                broken.append(f"{name} differs by {apart:.2g} between {THREADS} threads")
        broken += [] if all(values) else ["a process that failed"]
        for each in broken:
            print(f"  to repeat: {each}", flush=True)
        note = f"{same} of {len(values[0])} bitwise with {', '.join(map(str, THREADS))} threads"
        yield {
            "function": family,
            "property": "threads",
            "examples": len(values[0]),
            "failed": len(broken),
            "worst": f"{worst:.1e} of {tolerance:.0e}",
            "note": note,
        }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(_everything()))
