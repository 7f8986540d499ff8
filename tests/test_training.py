"""The loop: same seed, same run; killed anywhere, the same run; and one sentence where it cannot go on."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import wssl.training.loop as loop
from wssl.losses import w2_of_views
from wssl.methods import BYOL, AlignW2, SimCLR
from wssl.training import Run, TrainConfig, TrainingError, train

ROOT = Path(__file__).parent.parent
SMALL = TrainConfig(
    method=BYOL(momentum=0.9, hidden=32, out=16),
    regularizer="w2",
    weight=0.5,
    weight_end=0.1,
    per_class=12,
    test_per_class=8,
    size=16,
    epochs=3,
    batch=40,
    lr=2e-3,
    eval_every=1,
    knn_k=10,
    threads=1,
)


def _train(config, out, **changes):
    return train(replace(config, out=str(out), **changes), say=None, events=False)


def _numbers(run):
    """All that was measured, wall time aside."""
    lines = [{name: value for name, value in line.items() if "seconds" not in name} for line in run.history]
    return lines, run.summary["final"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _train(SMALL, tmp_path_factory.mktemp("whole"))


def test_a_run_is_its_directory(whole):
    assert [line["epoch"] for line in whole.history] == [0, 1, 2, 3]
    assert [line["step"] for line in whole.history] == [0, 3, 6, 9]
    names = sorted(path.name for path in whole.path.iterdir())
    assert names == [".lock", "checkpoint-6", "checkpoint-9", "config.json", "metrics.jsonl", "summary.json"]
    again = Run.read(whole.path)
    assert again.config.identity() == SMALL.identity() and _numbers(again) == _numbers(whole)
    assert 0 <= whole.final["knn"] <= 1 and 0 <= whole.final["w2"] <= math.sqrt(2) and whole.final["lu"] <= 0
    assert len(whole.summary["final"]["spectrum"]) == 16
    assert whole.final["w2"] < whole.history[0]["w2"], "W2 as a loss lowers W2"


def test_evaluation_is_of_the_checkpoint(whole):
    method = whole.load()
    train_images, test_images = loop.load_data(whole.config)
    measured = loop.evaluate(method, train_images, test_images, whole.config, spectrum=True)
    expected = dict(whole.summary["final"])
    assert measured.pop("spectrum") == pytest.approx(expected.pop("spectrum"), rel=1e-3, abs=1e-8)
    assert measured == pytest.approx(expected, rel=1e-4)


def test_same_seed_same_run_and_evaluation_does_not_disturb_it(whole, tmp_path):
    again = _train(SMALL, tmp_path / "again", eval_every=0)
    assert [line["loss"] for line in again.history[1:]] == [line["loss"] for line in whole.history[1:]]
    assert again.final["w2"] == whole.final["w2"]
    other = _train(SMALL, tmp_path / "other", seed=1, epochs=1, eval_every=0)
    assert other.history[1]["loss"] != whole.history[1]["loss"]


def test_every_draw_of_a_training_has_a_name_of_its_own(tmp_path, monkeypatch):
    """Two steps that share a stream would see the same crops; two seeds that share one would not be two seeds."""
    keys, real = [], loop.generator
    monkeypatch.setattr(loop, "generator", lambda *key, **kwargs: keys.append(key) or real(*key, **kwargs))
    for seed in (0, 1):
        _train(SMALL, tmp_path / str(seed), seed=seed, epochs=2, eval_every=0)
    drawn = [key for key in keys if "evaluation views" not in key]
    assert len(drawn) == 2 * 2 * (1 + 3) and len(set(drawn)) == len(drawn)


KILLED = """
    import json, os, signal, sys
    import wssl.training.loop as loop
    from wssl.training.config import TrainConfig

    def die_at(call, function):
        calls = []
        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapped

    place = sys.argv[2]
    if place == "step":
        loop.train_step = die_at(8, loop.train_step)
    elif place == "rename":
        loop.os.rename = die_at(2, loop.os.rename)
    elif place == "save":
        loop.save_checkpoint = die_at(2, loop.save_checkpoint)
    loop.train(TrainConfig.from_dict(json.loads(sys.argv[1])), say=None, events=False)
"""


@pytest.mark.parametrize("place", ["step", "rename", "save"])
def test_killed_and_started_again_it_ends_in_the_same_numbers(whole, tmp_path, place):
    """Within an epoch; with a checkpoint written but not yet named; with the epoch's line written but no checkpoint."""
    config = replace(SMALL, out=str(tmp_path / "run"))
    command = [sys.executable, "-c", textwrap.dedent(KILLED), json.dumps(config.to_dict()), place]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = Path(config.out)
    assert not (out / "summary.json").exists() and (out / "checkpoint-3").is_dir()
    assert (out / "checkpoint-6").is_dir() == (place == "step")
    assert (out / ".checkpoint-6.tmp").is_dir() == (place == "rename")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    resumed = _train(SMALL, out)
    assert _numbers(resumed) == _numbers(whole)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert not list(out.glob(".checkpoint*"))


def test_line_cut_short_and_broken_checkpoint(whole, tmp_path):
    out = tmp_path / "run"
    real, calls = loop.train_epoch, []

    def stop_in_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", stop_in_the_third)
        _train(SMALL, out)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "st')
    weights = out / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = []
    resumed = train(replace(SMALL, out=str(out)), say=said.append, events=False)
    assert any("checkpoint-6" in text and "trying the one before" in text for text in said)
    assert any("continuing after epoch 1 from checkpoint-3" in text for text in said)
    assert _numbers(resumed) == _numbers(whole)


def test_a_complete_run_is_not_trained_again(whole, monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", None)
    again = _train(SMALL, whole.path)
    assert _numbers(again) == _numbers(whole)


def test_another_config_in_the_same_directory_is_refused(whole):
    with pytest.raises(ValueError, match=r"to hold the same config; received lr 0\.002 there, 0\.1 here$"):
        _train(SMALL, whole.path, lr=0.1)
    with pytest.raises(ValueError, match=r"method\.momentum 0\.9 there, 0\.5 here"):
        _train(SMALL, whole.path, method=BYOL(momentum=0.5, hidden=32, out=16))
    assert _numbers(Run.read(whole.path)) == _numbers(whole)


@pytest.mark.parametrize("regularizer", ["none", "w2"])
def test_a_loss_that_is_not_finite_ends_in_one_sentence_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, regularizer
):
    real, calls = loop.train_step, []

    def poisoned(method, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            with torch.no_grad():
                next(method.projector.parameters()).fill_(float("nan"))
        return real(method, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", poisoned)
    weight = 0.5 if regularizer == "w2" else 0.0
    with pytest.raises(
        TrainingError,
        match=r"^training stopped in epoch 2: the loss is not finite; last good checkpoint: checkpoint-3$",
    ):
        _train(SMALL, tmp_path, regularizer=regularizer, weight=weight, weight_end=None)
    assert [path.name for path in loop.checkpoints(tmp_path)] == ["checkpoint-3"]
    assert all(p.isfinite().all() for p in Run.read(tmp_path).load().parameters())


def test_the_regularizer_is_added_to_any_method_with_its_weight(tmp_path):
    config = replace(SMALL, method=SimCLR(hidden=32, out=16), weight=3.0, weight_end=1.0)
    method = loop.build_method(config)
    images, _ = loop.load_data(config)
    views = loop.views_of(config)(images.x[:40], loop.generator(0, "test"))
    output = method(views)
    torch.testing.assert_close(loop.build_method(config)(views).loss, output.loss)
    expected = torch.autograd.grad(output.loss + 2.0 * w2_of_views(*output.z), list(method.parameters()))
    fresh = loop.build_method(config)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.0)
    terms = loop.train_step(fresh, optimizer, views, config, 0.5, 0.6)
    for p, grad in zip(fresh.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["loss"], output.loss.detach() + 2.0 * terms["regularizer"])


def test_learning_rate_and_decay(tmp_path):
    config = replace(
        SMALL,
        method=AlignW2(hidden=32, out=16),
        optimizer="sgd",
        lr=0.4,
        warmup=0.5,
        weight_decay=0.1,
        regularizer="none",
        weight=0.0,
        weight_end=None,
    )
    method = loop.build_method(config)
    optimizer = loop.make_optimizer(method, config)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in method.parameters())
    views = tuple(torch.randn(8, 3, 16, 16) for _ in range(2))
    rates = []
    for progress in (0.125, 0.25, 0.5, 0.75, 1.0):
        loop.train_step(method, optimizer, views, config, progress, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.4, 0.2, 0.0])


def test_holdout_never_touches_the_test_set(monkeypatch):
    asked = []
    real = loop.load_images
    monkeypatch.setattr(
        loop, "load_images", lambda source, split, *rest: asked.append(split) or real(source, split, *rest)
    )
    kept, held = loop.load_data(replace(SMALL, holdout=0.25, per_class=None, test_per_class=None))
    assert asked == ["train"]
    rows = {bytes(x.numpy().tobytes()) for x in kept.x}
    assert len(held) == pytest.approx(0.25 * (len(kept) + len(held)), rel=0.02)
    assert sum(bytes(x.numpy().tobytes()) in rows for x in held.x) <= 2, "digits holds a few equal images"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs as a whole number of at least 1; received 0"),
        ({"lr": float("nan")}, "lr as a number above 0; received nan"),
        ({"batch": True}, "batch as a whole number of at least 2; received True"),
        ({"weight": 0.2}, "a regularizer"),
        ({"augmentation": "none"}, "augmentation w2, small, digits, solo"),
        ({"augmentation": "swav"}, "; received 'swav'"),
        ({"encoder": "vgg"}, "encoder small, resnet18"),
        ({"stem": "34"}, "a stem for a ResNet only; received stem 34 for small"),
        ({"encoder": "resnet18", "stem": "7"}, "stem 32, 34, imagenet; received '7'"),
        ({"optimizer": "adamw"}, "optimizer adam, sgd, lars; received 'adamw'"),
        ({"lr_end": 2}, "lr_end as a number of at least 0 and at most 1; received 2"),
        ({"lr_bias": 0}, "lr_bias as a number above 0; received 0"),
        ({"precision": "float16"}, "precision float32, bfloat16; received 'float16'"),
        ({"compile": "yes"}, "compile as true or false; received 'yes'"),
        ({"probe": "linear"}, "probe none, offline; received 'linear'"),
        ({"method": {"name": "byol", "momentun": 0.9}}, "received momentun"),
        ({"epoch": 3}, "received epoch"),
    ],
)
def test_bad_configs_are_one_sentence(values, message):
    with pytest.raises(ValueError, match=r"^expected .*; received ") as error:
        TrainConfig.from_dict(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_too_few_images_for_a_batch(tmp_path):
    with pytest.raises(ValueError, match="at least one batch of 500 training images; received 120"):
        _train(SMALL, tmp_path, batch=500)


def test_training_imports_nothing_that_a_bare_machine_lacks(tmp_path):
    """Nothing of [notebook] and [dev] is needed, and neither the companion nor the figures' libraries are loaded."""
    script = f"""
        import sys
        absent = "IPython ipykernel fastcore nbdev execnb papermill nbformat nbclient nbconvert jupytext hypothesis ot"
        sys.modules.update(dict.fromkeys(absent.split()))  # None: an import fails as if it were not installed
        from dataclasses import replace
        from wssl.training import TrainConfig, train
        import json
        config = TrainConfig.from_dict(json.loads({json.dumps(json.dumps(SMALL.to_dict()))}))
        run = train(replace(config, out={str(tmp_path / "run")!r}, epochs=1), say=None, events=False)
        assert run.final["knn"] > 0
        assert not any(name.split(".")[0] == "seaborn" or name.startswith("wssl.companion") for name in sys.modules)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
