"""What may change when a run is started again, more epochs of a finished one, and a start from another's weights."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from wssl.companion.cli import main
from wssl.core.checks import InputError
from wssl.methods import BYOL, SimCLR
from wssl.training import Run, TrainConfig, train

TINY = TrainConfig(
    method=SimCLR(hidden=16, out=8), size=16, per_class=8, test_per_class=8, epochs=2, batch=40, knn_k=5, eval_every=1
)


def quiet(config, say=None):
    return train(config, say=say, events=False)


def measured(line):
    return {name: value for name, value in line.items() if "seconds" not in name}


def test_a_finished_run_is_extended_on_the_schedule_of_all_its_epochs(tmp_path):
    short = quiet(replace(TINY, out=str(tmp_path / "run")))
    said = []
    long = quiet(replace(TINY, out=str(tmp_path / "run"), epochs=4, extend=True), said.append)
    assert [measured(line) for line in long.history[:3]] == [measured(line) for line in short.history]
    assert [line["epoch"] for line in long.history] == [0, 1, 2, 3, 4]
    rates = [line["lr"] for line in long.history[1:]]
    assert rates[1] < rates[0] and rates[2] > rates[1] > rates[3]  # the seam
    assert any("extending from 2 to 4 epochs" in line and "from 50% on" in line for line in said)
    assert Run.read(tmp_path / "run").config.epochs == 4
    again = []
    quiet(replace(TINY, out=str(tmp_path / "run"), epochs=4), again.append)
    assert any("is complete" in line for line in again)


def test_stopped_before_its_first_new_checkpoint_an_extended_run_goes_on(tmp_path, monkeypatch):
    quiet(replace(TINY, out=str(tmp_path / "run")))
    with monkeypatch.context() as patch:
        patch.setattr("wssl.training.loop.train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            quiet(replace(TINY, out=str(tmp_path / "run"), epochs=3, extend=True))
    assert len(Run.read(tmp_path / "run").history) == 3
    found = quiet(replace(TINY, out=str(tmp_path / "run"), epochs=3, extend=True))
    assert found.final["epoch"] == 3 and found.summary


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_more_epochs_without_extend_and_fewer_with_it_are_another_training(tmp_path):
    quiet(replace(TINY, out=str(tmp_path / "run")))
    for change, told in (
        ({"epochs": 4}, "epochs 2 there, 4 here"),
        ({"epochs": 1, "extend": True}, "epochs 2 there, 1 here"),
    ):
        with pytest.raises(InputError, match=told):
            quiet(replace(TINY, out=str(tmp_path / "run"), **change))
    assert Run.read(tmp_path / "run").summary


def photos(folder):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (16, 16), (50 * k, 20, 10)).save(folder / split / name / f"{k}.png")


def test_looking_otherwise_or_data_that_moved_are_no_other_training(tmp_path):
    photos(tmp_path / "here" / "photos")
    config = replace(
        TINY, source=f"folder:{tmp_path}/here/photos", root=str(tmp_path / "a"), per_class=None, test_per_class=None
    )
    config = replace(config, batch=4, epochs=1, out=str(tmp_path / "run"))
    quiet(config)
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "photos").rename(tmp_path / "there" / "photos")
    moved = replace(config, source=f"folder:{tmp_path}/there/photos", root=str(tmp_path / "b"), knn_k=2, eval_every=0)
    assert quiet(replace(moved, epochs=2, extend=True)).final["epoch"] == 2
    with pytest.raises(InputError, match="per_class"):
        quiet(replace(moved, per_class=2))


def test_a_start_from_another_run_is_said_and_counts_as_another_training(tmp_path):
    old = quiet(replace(TINY, out=str(tmp_path / "old")))
    said = []
    new = quiet(replace(TINY, out=str(tmp_path / "new"), start_from=str(tmp_path / "old"), seed=3), said.append)
    assert "starting from all weights of old" in said
    assert new.history[0]["w2"] == pytest.approx(old.final["w2"], rel=1e-6)
    with pytest.raises(InputError, match="start_from"):
        quiet(replace(TINY, out=str(tmp_path / "new"), seed=3))
    other = replace(TINY, method=BYOL(hidden=16, out=8), out=str(tmp_path / "byol"), start_from=str(tmp_path / "old"))
    assert quiet(other).history[0]["knn"] == old.final["knn"]
    with pytest.raises(InputError, match="expected a run directory with a config.json; received nowhere"):
        quiet(replace(TINY, out=str(tmp_path / "none"), start_from=str(tmp_path / "nowhere")))
    assert not (tmp_path / "none").exists()


def test_the_old_run_may_be_gone_when_the_new_one_goes_on(tmp_path):
    quiet(replace(TINY, out=str(tmp_path / "old")))
    new = replace(TINY, out=str(tmp_path / "new"), start_from=str(tmp_path / "old"))
    quiet(new)
    for path in sorted((tmp_path / "old").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert quiet(replace(new, epochs=3, extend=True)).final["epoch"] == 3


def test_on_the_command_line_extend_is_a_word_of_its_own(tmp_path, capsys):
    words = "train --method simclr --method.hidden 16 --method.out 8 --size 16 --per-class 8 --test-per-class 8 --batch 40 --knn-k 5"
    words = [*words.split(), "--out", str(tmp_path / "run")]
    assert main([*words, "--epochs", "1"]) == 0
    assert main([*words, "--epochs", "2"]) == 2
    assert "epochs 1 there, 2 here" in capsys.readouterr().err
    assert main([*words, "--epochs", "2", "--extend"]) == 0
    assert "extending from 1 to 2 epochs" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and all("lr" in line for line in lines[1:])
    assert torch.isfinite(torch.tensor([line["lr"] for line in lines[1:]])).all()
