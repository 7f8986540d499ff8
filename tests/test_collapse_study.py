"""Metrics of collapse in an evaluation, parts with a learning rate of their own, long tails, solo-learn's table, and the lab's verdicts from its records."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from wssl.companion.records import read_claims, read_runs
from wssl.core.checks import InputError
from wssl.data.images import long_tail_rows
from wssl.evaluation.collapse_study import HEALTHY, collapse_numbers, collapse_study, view_embeddings
from wssl.training import TrainConfig, train
from wssl.training.checkpoints import checkpoints
from wssl.training.config import views_of
from wssl.training.evaluation import load_data
from wssl.training.presets import PRESETS, SOLO_SETTINGS
from wssl.training.step import build_method, make_optimizer, train_step

TINY = TrainConfig(per_class=20, test_per_class=8, size=16, epochs=2, batch=50, eval_every=1, knn_k=10, threads=1)


def test_numbers_of_a_cloud_are_those_of_numpy():
    z = np.random.default_rng(0).normal(size=(300, 6)) * [3, 2, 1, 1, 0.5, 0.1] + 0.2
    found = collapse_numbers(torch.from_numpy(z))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    mean = unit.mean(0)
    w2 = math.sqrt(mean @ mean + 1 + values.sum() - 2 / math.sqrt(6) * np.sqrt(values).sum())
    share = np.linalg.svd(z, compute_uv=False)
    share /= share.sum()
    squared = ((unit[:, None] - unit[None]) ** 2).sum(-1)[np.triu_indices(300, 1)]
    assert found["w2"] == pytest.approx(w2, rel=1e-6)
    assert found["std"] == pytest.approx(math.sqrt(6) * unit.std(0).mean(), rel=1e-6)
    assert found["rankme"] == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert found["lu"] == pytest.approx(math.log(np.exp(-2 * squared).mean()), rel=1e-5)
    assert found["stable_rank"] == pytest.approx(values.sum() / values.max(), rel=1e-6)
    assert found["participation_ratio"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)


def test_one_point_has_no_power_law_and_the_names_are_one_list():
    point = torch.ones(50, 4)
    study = collapse_study({"z": point}, {"z": torch.ones(5, 2, 4)})["z"]
    assert study.keys() == HEALTHY.keys() and study["alpha_req"] is None
    assert study["w2"] == pytest.approx(math.sqrt(2), abs=1e-5) and study["alignment"] == 0


def test_views_are_of_the_same_images_and_leave_the_network_alone():
    config = replace(TINY, method="simclr")
    method, (_, test) = build_method(config), load_data(config)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    views = view_embeddings(method.encoder, method.projector, test, views_of(config), count=7, q=4)
    assert {name: tuple(z.shape) for name, z in views.items()} == {"h": (7, 4, 128), "z": (7, 4, 128)}
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items()) and method.training
    assert not torch.equal(views["h"][:, 0], views["h"][:, 1])
    with pytest.raises(InputError, match="even number of views; received"):
        view_embeddings(method.encoder, method.projector, test, views_of(config), q=3)


def test_a_run_keeps_the_study_of_every_evaluation(tmp_path):
    run = train(replace(TINY, method="alignw2", collapse_study=True, out=str(tmp_path / "run")), None, events=False)
    assert [set(line["collapse"]) for line in run.history] == [{"h", "z"}] * 3
    assert run.final["collapse"]["z"]["w2"] == pytest.approx(run.final["w2"], rel=1e-4)
    assert run.final["collapse"]["z"]["lu"] == pytest.approx(run.final["lu"], rel=1e-4)
    json.dumps(run.summary, allow_nan=False)


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_a_predictor_moves_at_its_own_rate(name):
    """Plain SGD of one step: ten times the rate is ten times the way; at 0 it stays."""
    moved = {}
    views = tuple(torch.randn(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    for rate in (0.0, 1.0, 10.0):
        method = {"name": name, "predictor_rate": rate, "hidden": 16, "out": 8}
        config = TrainConfig(method=method, optimizer="sgd", lr=0.05, weight_decay=0.0, warmup=0.0)
        net = build_method(config)
        before = [p.clone() for p in net.predictor.parameters()], [p.clone() for p in net.encoder.parameters()]
        train_step(net, make_optimizer(net, config), views, config, 0.0, 0.1)
        after = net.predictor.parameters(), net.encoder.parameters()
        moved[rate] = [
            torch.cat([(a - b).flatten() for a, b in zip(*pair, strict=True)])
            for pair in zip(after, before, strict=True)
        ]
    assert moved[0.0][0].abs().max() == 0 < moved[1.0][0].abs().max()
    torch.testing.assert_close(moved[10.0][0], 10 * moved[1.0][0], rtol=1e-2, atol=2e-6)
    assert all(torch.equal(moved[rate][1], moved[1.0][1]) for rate in moved)


def test_a_checkpoint_without_kinds_and_rates_continues(tmp_path):
    """As versions before these had them: the run ends in the numbers of the one that was never stopped."""
    whole = train(replace(TINY, method="simclr", out=str(tmp_path / "a")), None, events=False)
    run = train(replace(TINY, method="simclr", out=str(tmp_path / "b")), None, events=False)
    last, first = checkpoints(run.path)
    for path in [*last.iterdir(), last]:
        path.unlink() if path.is_file() else path.rmdir()
    (run.path / "summary.json").unlink()
    state = torch.load(first / "state.pt", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        del group["kind"], group["rate"]
    torch.save(state, first / "state.pt")
    (first / "manifest.json").unlink()
    again = train(replace(TINY, method="simclr", out=str(tmp_path / "b")), None, events=False)
    assert again.history[-1]["loss"] == whole.history[-1]["loss"] and again.final["w2"] == whole.final["w2"]


def test_a_long_tail_falls_geometrically(tmp_path):
    y = torch.arange(5).repeat_interleave(100)[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    counts = y[long_tail_rows(y, 16.0)].bincount().tolist()
    assert counts == [100, 50, 25, 12, 6]  # 100 * 16^(-c / 4)
    assert torch.equal(long_tail_rows(y, 1.0), torch.arange(500))
    assert torch.equal(long_tail_rows(y, 16.0), long_tail_rows(y, 16.0))
    train_images, _ = load_data(replace(TINY, imbalance=4.0, batch=10))
    assert train_images.y.bincount().tolist() == [round(20 * 4 ** (-c / 9)) for c in range(10)]
    for wrong in (
        lambda: long_tail_rows(y, 0.9),
        lambda: long_tail_rows(y * 0, 2.0),
        lambda: TrainConfig(imbalance=0.5),
    ):
        with pytest.raises(InputError, match=r"^expected .*; received "):
            wrong()


@pytest.mark.parametrize("name", SOLO_SETTINGS)
def test_solo_presets_train_on_generated_images(tmp_path, name):
    config = PRESETS["solo-cifar10"](method=name)
    assert (config.batch, config.epochs, config.stem, config.warmup * config.epochs) == (
        256,
        1000,
        "34",
        pytest.approx(10),
    )
    own = {item.name for item in fields(config.method)}
    fit = {"hidden": 32, "out": 8, "queue": 48, "size": 16, "prototypes": 12, "memory": 64, "bottleneck": 8}
    method = replace(config.method, **{key: value for key, value in fit.items() if key in own})
    little = dict(source="synthetic", size=32, per_class=4, test_per_class=1, batch=16, epochs=1, warmup=0.5, knn_k=3)
    little |= dict(encoder="small", stem=None, probe="none", eval_every=0, out=str(tmp_path / "run"), device="cpu")
    run = train(replace(config, method=method, **little), None, events=False)
    assert math.isfinite(run.final["loss"]) and run.history[-1]["step"] >= 1


def test_the_labs_verdicts_follow_from_its_records():
    """CB-05, CB-06, CB-07 and CB-23, computed anew from the committed runs with SciPy's t test."""
    runs = {(f"{r['method']}-{r['variant']}", r["seed"]): r for r in read_runs("collapse_lab")}
    assert len(runs) >= 40 + 2 * 13
    ledger = read_claims().set_index("id")

    def knn(arm):
        return 100 * np.array([runs[arm, seed]["final"]["knn"] for seed in range(3)])

    def gain(arm):
        return knn(arm) - 100 * np.array([runs[arm, seed]["history"][0]["knn"] for seed in range(3)])

    dead = {arm: (gain(arm), 3, -1) for arm in ("simsiam-nostop", "simsiam-nopredictor", "vicreg-novariance")}
    asked = {
        "CB-05": [dead["simsiam-nostop"], dead["simsiam-nopredictor"], (gain("simsiam-all"), 3, 1)],
        "CB-06": [(knn("byol-nopredictor") - knn("byol-all"), -2, -1)],
        "CB-07": [dead["vicreg-novariance"], (gain("vicreg-all"), 3, 1)],
        "CB-23": [(knn("byol-nodecay") - knn("byol-all"), -2, -1)],
    }
    for claim, parts in asked.items():
        holds = [side * (x.mean() - bound) > 0 for x, bound, side in parts]
        p = [stats.ttest_1samp(x, bound).pvalue for x, bound, _ in parts]
        decided = max(p) if all(holds) else len(p) * min(q for q, held in zip(p, holds, strict=True) if not held)
        assert decided > 0.05 and ledger.verdict[claim] == "inconclusive", claim
        values = [figure["value"] for figure in ledger.figures[claim].values() if "asked" in figure]
        assert sorted(values) == pytest.approx(sorted(x.mean() for x, _, _ in parts), abs=1e-4)
