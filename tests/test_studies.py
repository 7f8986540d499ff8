"""A study reads what is recorded, trains what is missing, and never mistakes one configuration for another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import wssl.companion.studies as studies
from wssl.companion.jobs import read_study
from wssl.companion.records import read_runs
from wssl.core.paths import project_root
from wssl.methods import BYOL
from wssl.training import TrainConfig
from wssl.training.presets import W2_PAPER_WEIGHTS, w2_paper

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "byol-none": TrainConfig(method=BYOL(hidden=8, out=4), epochs=1),
    "byol-w2": TrainConfig(method=BYOL(hidden=8, out=4), epochs=1, regularizer="w2", weight=0.5),
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Names of the run directories that were trained, by a trainer that only counts."""
    seen = []

    def fake(config, out):
        seen.append(str(out))
        return {
            "config": config.identity(),
            "history": [{"epoch": 0, "knn": 0.1}],
            "final": {"knn": 0.5, "spectrum": [1]},
        }

    monkeypatch.setattr(studies, "train_arm", fake)
    return seen


def test_a_recorded_study_trains_each_arm_once_and_then_reads(checkout, trained):
    first = studies.run_study("study", ARMS, (0, 1), record=True)
    assert [out.removeprefix(str(checkout)) for out in trained] == [
        f"/runs/study/{arm}-s{seed}" for seed in (0, 1) for arm in ARMS
    ]
    records = sorted(path.name for path in (checkout / "data/measured/runs/study").iterdir())
    assert records == [f"{arm}-digits-s{seed}.json" for arm in ARMS for seed in (0, 1)]
    again = studies.run_study("study", ARMS, (0, 1), record=True)
    assert len(trained) == 4
    assert [(run["arm"], run["seed"], run["final"]) for run in again] == [
        (run["arm"], run["seed"], run["final"]) for run in first
    ]


def test_another_configuration_is_another_run(checkout, trained):
    studies.run_study("study", ARMS, (0,), record=True)
    changed = {**ARMS, "byol-w2": replace(ARMS["byol-w2"], weight=0.6)}
    studies.run_study("study", changed, (0,), record=True)
    assert [out.rsplit("/", 1)[1] for out in trained] == ["byol-none-s0", "byol-w2-s0", "byol-w2-s0"]


def test_an_unrecorded_study_neither_reads_nor_writes(checkout, trained):
    studies.run_study("study", ARMS, (0,), record=True)
    before = sorted(checkout.rglob("*"))
    studies.run_study("study", ARMS, (0,))
    assert len(trained) == 4 and sorted(checkout.rglob("*")) == before
    assert not trained[-1].startswith(str(checkout))


def test_a_record_of_an_older_version_still_counts():
    config = ARMS["byol-w2"]
    values = json.loads(json.dumps(config.identity()))
    assert studies.same_config(values, config)
    values.pop("lr_end")
    assert studies.same_config(values, config)
    assert not studies.same_config(values, replace(config, lr_end=0.1))
    assert not studies.same_config({**values, "method": {"name": "byol", "depth": 3}}, config)


def test_frames_have_a_row_for_each_run_and_each_epoch(checkout, trained):
    runs = studies.run_study("study", ARMS, (0, 1))
    assert studies.final_frame(runs).to_dict("list") == {
        "arm": list(ARMS) * 2,
        "seed": [0, 0, 1, 1],
        "knn": [0.5] * 4,
    }
    assert len(studies.history_frame(runs)) == 4


@pytest.mark.parametrize("method", W2_PAPER_WEIGHTS)
def test_the_papers_preset_has_the_papers_sizes(method):
    """Facts of Section 5: projector 512-2048-2048-256, and what Table 2 lists as 256 dimensions."""
    config = w2_paper(method, "w2", epochs=200)
    assert (config.method.hidden, config.method.out, config.method.layers) == (2048, 256, 3)
    assert (config.encoder, config.stem, config.batch, config.optimizer) == ("resnet18", "34", 256, "lars")
    assert config.warmup * config.epochs == pytest.approx(10)
    assert (config.lr, config.lr_bias, config.weight_decay) == (0.2, 0.005, 1e-4)


def test_rows_are_measured_once_written_one_by_one_and_replaced_with_their_configuration(tmp_path):
    path, asked = tmp_path / "rows.json", []

    def measure(arm, config):
        asked.append((arm, config.seed, config.weight))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"value": config.weight + config.seed}

    with pytest.raises(KeyboardInterrupt):
        studies.filled(ARMS, (0, 1), measure, path)
    kept = json.loads(path.read_text())["rows"]
    assert [(row["arm"], row["seed"], row["value"]) for row in kept] == [("byol-none", 0, 0.0), ("byol-w2", 0, 0.5)]
    rows = studies.filled(ARMS, (0, 1), measure, path)
    assert asked[3:] == [("byol-none", 1, 0.0), ("byol-w2", 1, 0.5)] and rows[:2] == kept
    other = {"byol-w2": replace(ARMS["byol-w2"], weight=0.25)}
    rows = studies.filled(other, (1,), measure, path)
    assert asked[5:] == [("byol-w2", 1, 0.25)]
    assert sorted((row["arm"], row["seed"], row["value"]) for row in rows) == [
        ("byol-none", 0, 0.0),
        ("byol-none", 1, 1.0),
        ("byol-w2", 0, 0.5),
        ("byol-w2", 1, 1.25),
    ]


def test_rows_without_a_file_are_measured_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    for _ in range(2):
        rows = studies.filled(ARMS, (0,), lambda arm, config: asked.append(arm) or {"value": (1, 2)})
    assert asked == [*ARMS] * 2 and rows[0]["value"] == [1, 2] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "data/studies").glob("*.json")), ids=lambda path: path.stem)
def test_planned_studies_can_be_run_and_say_how_they_will_be_judged(path):
    study = read_study(path)
    assert study.about and study.rules and study.runs()
    assert len({json.dumps(config.identity(), sort_keys=True) for config in study.arms.values()}) == len(study.arms)
    done = {
        (run["method"], run["variant"], run["seed"])
        for run in read_runs({"fast_path_more": "fast_path"}.get(path.stem, path.stem))
    }
    whole = all((*arm.split("-", 1), seed) in done for arm in study.arms for seed in study.seeds)
    assert whole or path.stem in (ROOT / "data/measured/PLAN.md").read_text()
