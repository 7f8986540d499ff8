"""The guides for people who have a training already: short, and on the real packages. (`test_notebooks` executes them.)"""

import json
import subprocess
import sys
from functools import partial

import nbformat
import numpy as np
import pytest
import torch

from tests.checkout import ROOT

GUIDES = ("embeddings_files", "lightning", "own_loop", "table", "torchmetrics", "torchrun")
SCREEN = 75  # lines of code


def sources(name):
    "The code cells of a guide."
    nb = nbformat.read(ROOT / "nbs/guides" / f"{name}.ipynb", 4)
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


def w2(z):
    "Eq. 8 of Fang et al. 2024 on unit rows, with numpy's own square root of the spectrum, in float64."
    z = np.asarray(z, dtype=np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    mean, m = z.mean(0), z.shape[1]
    values = np.linalg.eigvalsh((z - mean).T @ (z - mean) / len(z)).clip(0)
    return (mean @ mean + 1 + values.sum() - 2 / m**0.5 * np.sqrt(values).sum()) ** 0.5


def test_there_are_six_and_each_is_a_screen_of_code():
    assert sorted(path.stem for path in (ROOT / "nbs/guides").glob("*.ipynb")) == sorted(GUIDES)
    for name in GUIDES:
        lines = [line for source in sources(name) for line in source.splitlines() if line.strip()]
        assert len(lines) <= SCREEN, f"{name}: {len(lines)} lines"
        assert max(map(len, lines)) <= 120, name


def lightning_guide(monkeypatch, embed=None, **stop):
    "The table of a run of the Lightning guide's own `fit`, with another embedding or threshold."
    pytest.importorskip("lightning", reason="the guide needs Lightning, part of the extra dev")
    space = {}
    imports, module, fit = sources("lightning")[:3]
    exec(imports, space)
    exec(module, space)
    exec(fit.split("with tempfile")[0], space)
    monkeypatch.setitem(space, "lightning_watch", partial(space["lightning_watch"], embed=embed))
    early = space["EarlyStopping"]
    monkeypatch.setitem(space, "EarlyStopping", lambda monitor, **kwargs: early(monitor, **kwargs | stop))
    return space["fit"]


def test_the_callback_logs_what_the_held_out_rows_give(monkeypatch, tmp_path):
    "A real `lightning.Trainer` and its CSV file: the logged values against numpy on the rows that were embedded."
    seen = []

    def embed(module, x):
        seen.append(module(x))
        return seen[-1]

    table = lightning_guide(monkeypatch, embed)(1.0, tmp_path)
    assert list(table["step"]) == list(range(0, 101, 5)) and len(seen) == len(table)
    for z, values in zip(seen, table.to_dict("records"), strict=True):
        rows = z.double().numpy()
        assert len(rows) == 297 and values["collapse/w2"] == pytest.approx(w2(rows), abs=1e-6)
        roots = np.linalg.svd(rows, compute_uv=False)
        share = roots / roots.sum()
        assert values["collapse/rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_a_collapsed_run_is_stopped(monkeypatch, tmp_path):
    "The threshold acts: a run that must be below everything that can be ends after its first epoch."
    table = lightning_guide(monkeypatch, divergence_threshold=-3)(1.0, tmp_path)
    assert table["step"].max() == 5


def test_a_metric_collection_gives_the_value_of_all_rows():
    from torchmetrics import MetricCollection

    from wssl.metrics import Alignment, RankMe, Uniformity, WassersteinUniformity

    z1 = torch.randn(300, 24, generator=torch.Generator().manual_seed(1)) + 0.3
    z2 = z1 + 0.1
    metrics = MetricCollection([WassersteinUniformity(24), RankMe(24), Alignment(), Uniformity()])
    for first, second in zip(z1.split(70), z2.split(70), strict=True):
        metrics.update(z=first, z1=first, z2=second)
    found = {name: float(value) for name, value in metrics.compute().items()}
    a, b = (torch.nn.functional.normalize(z.double(), dim=1).numpy() for z in (z1, z2))
    pairs = ((a[:, None] - a[None]) ** 2).sum(-1)[np.triu_indices(300, 1)]
    assert found["WassersteinUniformity"] == pytest.approx(w2(z1), abs=1e-6)
    assert found["Alignment"] == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-5)
    assert found["Uniformity"] == pytest.approx(np.log(np.exp(-2 * pairs).mean()), rel=1e-5)


def test_the_script_of_the_torchrun_guide_against_eigenvalues_in_one_process(tmp_path):
    "Loss and averaged gradient of two processes, against a formula of numpy's and one of torch's on all rows."
    space = {}
    script = next(source for source in sources("torchrun") if source.startswith("script"))
    exec(script.split("with tempfile")[0], space)
    (tmp_path / "train.py").write_text(space["script"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    torch.manual_seed(0)
    net = torch.nn.Linear(16, 16).double()
    z = net(torch.randn(128, 16, dtype=torch.double))
    assert found["processes"] == 2 and found["W2"] == pytest.approx(w2(z.detach()), abs=1e-9)
    w2_by_eigvalsh(torch.nn.functional.normalize(z, dim=1)).backward()
    assert torch.allclose(torch.tensor(found["gradient"]).double(), net.weight.grad, atol=1e-7)


def w2_by_eigvalsh(z):
    "W2 by torch's eigvalsh, whose derivative autograd knows, for rows that have full rank."
    mean, m = z.mean(0), z.shape[1]
    values = torch.linalg.eigvalsh((z - mean).T @ (z - mean) / len(z))
    return (mean @ mean + 1 + values.sum() - 2 / m**0.5 * values.sqrt().sum()) ** 0.5
