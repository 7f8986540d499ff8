"""The guides for people who have a training already: short, and on the real packages. (`test_notebooks` executes them.)"""

import json
import subprocess
import sys

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


def test_the_callback_logs_what_the_rows_of_the_epoch_give(monkeypatch):
    "A real `lightning.Trainer`: the logged values against numpy on the rows that the steps returned, epoch by epoch."
    L = pytest.importorskip("lightning", reason="the guide needs Lightning, part of the extra dev")
    space = {}
    for source in sources("lightning")[:3]:
        exec(source, space)
    seen, logged = [[]], []

    class Spy(space["Siamese"]):
        def training_step(self, batch, batch_idx):
            out = super().training_step(batch, batch_idx)
            seen[-1].append(out["z"].numpy())
            return out

        def on_train_epoch_end(self):
            logged.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})
            seen.append([])

    images = torch.utils.data.TensorDataset(torch.rand(200, 64, generator=torch.Generator().manual_seed(0)))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=1, callbacks=[space["WatchCollapse"](32)], **quiet)
    trainer.fit(Spy(1.0), torch.utils.data.DataLoader(images, batch_size=64))
    assert len(logged) == 2 and trainer.global_step == 8
    for rows, values in zip(seen, logged, strict=False):
        rows = np.concatenate(rows)
        assert len(rows) == 200 and values["w2"] == pytest.approx(w2(rows), abs=1e-6)
        roots = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
        share = roots / roots.sum()
        assert values["rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_a_collapsed_run_is_stopped():
    "The threshold acts: a run that must be above everything that can be ends after its first epoch."
    L = pytest.importorskip("lightning", reason="the guide needs Lightning, part of the extra dev")
    space = {}
    for source in sources("lightning")[:3]:
        exec(source, space)
    images = torch.utils.data.TensorDataset(torch.rand(128, 64))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, callbacks=[space["WatchCollapse"](32, 1.1)], **quiet
    )
    trainer.fit(space["Siamese"](0), torch.utils.data.DataLoader(images, batch_size=64))
    assert trainer.current_epoch == 1


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
