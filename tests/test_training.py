"""The loop: same seed, same run; killed anywhere, the same run; and one sentence where it cannot go on."""

import contextlib
import errno
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

import wssl.evaluation
import wssl.metrics.polar as polar
import wssl.training.loop as loop
from wssl.companion.cli import main
from wssl.core.checks import InputError, NotFinite
from wssl.losses import w2_of_views
from wssl.methods import BYOL, METHODS, AlignW2, SimCLR
from wssl.models import SmallResNet, initialised_from
from wssl.training import LARS, Run, TrainConfig, TrainingError, train
from wssl.training.checkpoints import checkpoints
from wssl.training.config import views_of
from wssl.training.evaluation import Measurements, evaluate, extract_features, load_data, load_images, measure
from wssl.training.run_directory import RunDirectory
from wssl.training.runs import read_metrics
from wssl.training.step import (
    OnlineProbe,
    build_method,
    in_bfloat16,
    make_optimizer,
    objective,
    regularize,
    set_learning_rate,
    train_step,
)

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
    train_images, test_images = load_data(whole.config)
    measured = evaluate(method, train_images, test_images, whole.config, spectrum=True)
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
    assert len(keys) == 2 * 2 * (1 + 3) and len(set(keys)) == len(keys)


KILLED = """
    import json, os, signal, sys
    import wssl.training.loop as loop
    import wssl.training.run_directory as directory
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
        os.rename = die_at(2, os.rename)
    elif place == "save":
        directory.save_checkpoint = die_at(2, directory.save_checkpoint)
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


COMMAND = """-m wssl train --method byol --method.hidden 32 --method.out 16 --w2 0.5 --per-class 12 --test-per-class 8
    --size 16 --epochs 12 --batch 40 --eval-every 1 --knn-k 10 --threads 1 --online-probe true"""


def _wait_for(condition, process, pause=0.02):
    """Poll until `condition`; the process must still be there."""
    end = time.monotonic() + 200
    while not condition():
        time.sleep(pause)
        assert process.poll() is None, f"ended by itself with {process.returncode}"
        assert time.monotonic() < end, "waited too long"


@pytest.mark.timeout(900)
def test_killed_from_outside_the_same_command_ends_in_the_same_metrics(tmp_path):
    """At a random moment of epoch 3, then while a checkpoint is being written; `make torture` does it by the hundred."""
    moment, environment = random.Random(0), {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(out):
        command = [sys.executable, *COMMAND.split(), "--out", str(out)]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)

    undisturbed, out = start(tmp_path / "whole"), tmp_path / "run"
    half_written = lambda: out.is_dir() and any(name.startswith(".checkpoint-") for name in os.listdir(out))  # noqa: E731
    for epoch in (2, 4):
        for _ in range(5):
            process = start(out)
            _wait_for(lambda: len(read_metrics(out)) > epoch, process)  # noqa: B023
            if midway := epoch > 2:
                _wait_for(half_written, process, pause=0)
            else:
                time.sleep(moment.uniform(0, 0.3))
            process.kill()
            assert process.wait() == -signal.SIGKILL and not (out / "summary.json").exists()
            if not midway or half_written():
                break
            epoch += 1  # it was too quick: again, an epoch later
        else:
            pytest.fail("never caught in the middle of a checkpoint")
    assert start(out).wait() == 0 and undisturbed.wait() == 0
    assert _numbers(Run.read(out)) == _numbers(Run.read(tmp_path / "whole"))
    assert len(Run.read(out).history) == 13 and not half_written()


def test_a_second_process_in_the_directory_is_refused_until_the_first_is_gone(tmp_path):
    with RunDirectory(replace(SMALL, out=str(tmp_path))).lock(), pytest.raises(ValueError) as error:
        _train(SMALL, tmp_path, epochs=1)
    expected = f"expected a run directory that nobody trains in; received {tmp_path} (process {os.getpid()} does)"
    assert str(error.value) == expected and not (tmp_path / "config.json").exists()
    assert len(_train(SMALL, tmp_path, epochs=1).history) == 2
    with pytest.raises(ValueError, match=r"^expected a run directory to write to; received .*config.json \(.*\)$"):
        _train(SMALL, tmp_path / "config.json")


def test_no_space_for_a_checkpoint_ends_in_one_sentence_and_keeps_the_last_good_one(whole, tmp_path, monkeypatch):
    real, written = Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) == 4:  # the optimizer's state of the second checkpoint
            real(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    with monkeypatch.context() as patch, pytest.raises(TrainingError) as error:
        patch.setattr(Path, "write_bytes", full)
        _train(SMALL, tmp_path)
    where = f"training stopped after epoch 2: {tmp_path} could not be written (No space left on device)"
    assert str(error.value) == f"{where}; last good checkpoint: checkpoint-3"
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-3"]
    assert _numbers(_train(SMALL, tmp_path)) == _numbers(whole)


def test_a_file_that_the_system_cuts_off_is_exit_1_and_one_sentence(tmp_path, capsys):
    """The limit is the kernel's own: the weights do not fit, the lines of text do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = f"train --per-class 8 --test-per-class 4 --size 16 --epochs 2 --batch 40 --knn-k 5 --out {tmp_path}/run"
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        code = main(words.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert code == 1 and said.count("\n") == 1 and said.endswith("last good checkpoint: no checkpoint yet\n")
    assert "could not be written (File too large)" in said and not list((tmp_path / "run").glob("*checkpoint*"))


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
    real, calls = train_step, []

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
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
    assert all(p.isfinite().all() for p in Run.read(tmp_path).load().parameters())


@pytest.mark.parametrize("error", [NotFinite("reworded"), InputError("expected NaN in the words; received 1")])
def test_a_loss_that_is_not_finite_is_told_by_the_class_of_the_error(tmp_path, monkeypatch, error):
    def refused(*args, **kwargs):
        raise error

    monkeypatch.setattr(loop, "train_step", refused)
    told = isinstance(error, NotFinite)
    with pytest.raises(TrainingError if told else InputError, match="the loss is not finite" if told else "the words"):
        _train(SMALL, tmp_path)


def test_a_loss_at_its_value_of_full_collapse_is_named_once(tmp_path):
    said, blind = [], SimCLR(temperature=1e4, hidden=32, out=16)  # to which all pairs look alike
    for method in (blind, SimCLR(hidden=32, out=16)):
        config = replace(SMALL, method=method, regularizer="none", weight=0.0, weight_end=None, eval_every=0)
        train(replace(config, out=str(tmp_path / f"{method.temperature}")), say=said.append)
    named = [line for line in said if "full collapse" in line]
    assert len(named) == 1 and "simclr has after full collapse (ln(2N - 1), N = 40" in named[0], said


def test_the_regularizer_is_added_to_any_method_with_its_weight(tmp_path):
    config = replace(SMALL, method=SimCLR(hidden=32, out=16), weight=3.0, weight_end=1.0)
    method = build_method(config)
    images, _ = load_data(config)
    views = views_of(config)(images.x[:40], loop.generator(0, "test"))
    output = method(views)
    torch.testing.assert_close(build_method(config)(views).loss, output.loss)
    expected = torch.autograd.grad(output.loss + 2.0 * w2_of_views(*output.z), list(method.parameters()))
    fresh = build_method(config)
    optimizer = make_optimizer(fresh, replace(config, optimizer="sgd"))
    terms = train_step(fresh, optimizer, views, config, 0.5, 0.6)
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
    method = build_method(config)
    optimizer = make_optimizer(method, config)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in method.parameters())
    views = tuple(torch.randn(8, 3, 16, 16) for _ in range(2))
    rates = []
    for progress in (0.125, 0.25, 0.5, 0.75, 1.0):
        train_step(method, optimizer, views, config, progress, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.4, 0.2, 0.0])


def test_learning_rates_of_the_paper(tmp_path):
    config = replace(SMALL, optimizer="lars", lr=0.2, lr_bias=0.005, lr_end=0.001, warmup=0.1, weight_decay=1e-4)
    method = build_method(config)
    optimizer = make_optimizer(method, config)
    assert isinstance(optimizer, LARS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0]
    assert all(p.ndim > 1 for p in optimizer.param_groups[0]["params"])
    rates = []
    for progress in (0.05, 0.1, 0.55, 1.0):
        set_learning_rate(optimizer, config, progress)
        rates.append([group["lr"] for group in optimizer.param_groups])
    expected = [(share * 0.2, share * 0.005) for share in (0.5, 1, 0.5005, 0.001)]
    assert [rate for pair in rates for rate in pair] == pytest.approx([rate for pair in expected for rate in pair])


PINNED = {
    "byol": ([4.233104, 3.252377, 2.831970], [1.412234, 1.410989, 1.405815, 1.401782]),
    "simclr": ([4.528995, 4.316570, 4.336408], [1.412234, 1.404890, 1.395293, 1.389235]),
    "alignw2": ([3.413713, 3.265656, 3.261717], [1.413498, 1.412315, 1.410585, 1.408698]),
}


@pytest.mark.parametrize("name", PINNED)
def test_the_default_options_give_the_numbers_that_they_always_gave(whole, tmp_path, name):
    """Written down before the loop had any options but these; what another processor rounds grows to .003 by the third epoch."""
    run = whole
    if name == "simclr":
        method = SimCLR(hidden=32, out=16)
        run = _train(SMALL, tmp_path, method=method, regularizer="lu", optimizer="sgd", lr=0.05)
    if name == "alignw2":
        method, none = AlignW2(hidden=32, out=16), dict(regularizer="none", weight=0.0, weight_end=None)
        run = _train(SMALL, tmp_path, method=method, augmentation="w2", **none)
    losses, w2 = PINNED[name]
    assert run.history[1]["loss"] == pytest.approx(losses[0], rel=1e-4)
    assert [line["loss"] for line in run.history[1:]] == pytest.approx(losses, rel=5e-3)
    assert [line["w2"] for line in run.history] == pytest.approx(w2, rel=3e-3)


SIZES = {"hidden": 16, "out": 8, "queue": 48}
FITTING = {"directclr": {"share": 1.0}, "vicregl": {"stage": -1}}  # all of h; the only stage
SIDE = {"jigsaw": 24, "relative": 24}  # room for nine tiles with gaps
CASES = [(name, "none") for name in METHODS]
CASES += [(name, regularizer) for name in ("byol", "mocov2", "barlow") for regularizer in ("lu", "w2")]


def _tiny(name, width=4):
    options = METHODS[name]
    sizes = {item.name: SIZES[item.name] for item in fields(options) if item.name in SIZES}
    options = options(**sizes | FITTING.get(name, {}))
    with initialised_from(0, "tiny"):
        return options.build(SmallResNet(width=width, blocks=(1,)))


def _pair(n=12, name=""):
    side = SIDE.get(name, 8)
    return tuple(torch.randn(2, n, 3, side, side, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("name", "regularizer"), CASES)
def test_forward_loss_and_backward_trace_into_one_graph(name, regularizer):
    """A number asked of the device, or a branch on one, would break it."""
    torch.compiler.reset()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for function, weight in ((objective, 0.7), (compiled, torch.tensor(0.7))):
        method = _tiny(name)
        torch.manual_seed(0)  # slices and tasks that a method draws
        loss, terms, _ = function(method, _pair(name=name), regularizer, weight)
        loss.backward()
        found.append([loss.detach(), *terms.values(), *(p.grad for p in method.parameters() if p.requires_grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "regularizer"), CASES)
def test_a_step_asks_an_accelerator_for_nothing(monkeypatch, name, regularizer):
    """On tensors that have a device but no values, every `.item()` and every branch on a value is an error; W2 takes the path that it takes on a GPU."""
    products = polar.polar_by_products
    monkeypatch.setattr(
        polar, "polar_by_gram", lambda rows, by_rows, total, group, _: products(rows, by_rows, total, group)
    )
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no such device
    method, labels = _tiny(name).to("meta"), torch.empty(12, dtype=torch.long, device="meta")
    views = tuple(x.to("meta") for x in _pair(name=name))
    weight = 0.0 if regularizer == "none" else 0.5
    config = TrainConfig(method=name, regularizer=regularizer, weight=weight, optimizer="lars")
    optimizer, probe = make_optimizer(method, config), OnlineProbe(4, 3, device="meta")
    probe.optimizer = torch.optim.SGD(probe.parameters(), lr=0.1)  # Adam's counter is a number on the CPU
    for progress in (0.1, 0.2):
        terms = train_step(method, optimizer, views, config, progress, progress, probe=probe, labels=labels)
    assert {"loss", "online_hits"} <= set(terms) and all(value.is_meta for value in terms.values())
    with pytest.raises(RuntimeError, match="meta"):
        terms["loss"].item()


def test_a_compiled_run_is_the_plain_run_from_one_graph(whole, tmp_path, monkeypatch):
    real, asked, graphs = torch.compile, [], []

    def counted(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def quick(function, **options):
        asked.append(options)
        return real(function, **{**options, "backend": counted})

    monkeypatch.setattr(torch, "compile", quick)
    run = _train(SMALL, tmp_path, compile=True)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": None}]
    assert len(graphs) == 1, "another weight or another epoch must not compile anew"
    for line, expected in zip(_numbers(run)[0], _numbers(whole)[0], strict=True):
        assert line.pop("knn") == pytest.approx(expected.pop("knn"), abs=0.05)
        assert line == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_for_encoder_and_heads_only(name, monkeypatch):
    seen, real = [], regularize

    def watched(which, weight, *z, **kwargs):
        seen.append((torch.is_autocast_enabled("cpu"), *(part.dtype for part in z)))
        return real(which, weight, *z, **kwargs)

    monkeypatch.setattr("wssl.training.step.regularize", watched)
    narrow, wide, inner = in_bfloat16(_tiny(name, 8)), _tiny(name, 8), []
    first = next(part for part in narrow.encoder.modules() if isinstance(part, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, args, out: inner.append(out.dtype))
    losses = []
    for method in (narrow, wide):
        torch.manual_seed(0)
        losses.append(objective(method, _pair(32, name), "w2", 0.5)[0])
    assert set(inner) == {torch.bfloat16} and set(seen) == {(False, torch.float32, torch.float32)}
    assert losses[0].dtype == torch.float32 and losses[0] != losses[1]
    losses[0].backward()
    gradients = [p.grad for p in narrow.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.05, abs=0.05)
    wide.load_state_dict(narrow.state_dict())
    assert torch.equal(narrow.eval().project(_pair()[0]), wide.eval().project(_pair()[0])), "evaluation is in float32"


def test_a_bfloat16_run_measures_what_its_checkpoint_measures(tmp_path):
    run = _train(SMALL, tmp_path, precision="bfloat16")
    measured = evaluate(run.load(), *load_data(run.config), run.config)
    assert measured["w2"] == pytest.approx(run.final["w2"], rel=1e-4) and math.isfinite(run.final["loss"])


def test_the_online_probe_leaves_the_encoder_alone(whole, tmp_path):
    run = _train(SMALL, tmp_path / "run", online_probe=True)
    lines, _ = _numbers(whole)
    mine = [{name: value for name, value in line.items() if "online" not in name} for line in _numbers(run)[0]]
    assert mine == lines, "to the last bit"
    assert all(0 <= line["online_train"] <= 1 for line in run.history[1:])
    assert 0 < run.final["online_top1"] < 1 and run.summary["final"]["online_top1"] == run.final["online_top1"]


def test_the_online_probe_is_part_of_the_checkpoint(tmp_path, monkeypatch):
    expected = _train(SMALL, tmp_path / "whole", online_probe=True)
    real, calls = loop.train_epoch, []

    def stop_in_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", stop_in_the_third)
        _train(SMALL, tmp_path / "run", online_probe=True)
    assert _numbers(_train(SMALL, tmp_path / "run", online_probe=True)) == _numbers(expected)


def test_a_probe_step_is_the_cross_entropy_of_the_labelled_rows():
    draw = torch.Generator().manual_seed(0)
    h = tuple(torch.randn(6, 5, generator=draw).mul(3).add(1).requires_grad_() for _ in range(2))
    labels = torch.tensor([0, 2, -1, 1, -1, 2])
    probe = OnlineProbe(5, 3)
    probe.optimizer = torch.optim.SGD(probe.parameters(), lr=1.0)
    torch.nn.init.normal_(probe.linear.weight)
    start, known = probe.linear.weight.detach().double(), labels.repeat(2) >= 0
    rows = torch.cat(h).detach().double()
    rows = ((rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt())[known]
    y = labels.repeat(2)[known]
    chance = torch.softmax(rows @ start.T, 1) - torch.nn.functional.one_hot(y, 3)
    terms = probe.step(h, labels)
    torch.testing.assert_close(probe.linear.weight.detach().double(), start - chance.T @ rows / 8, rtol=1e-5, atol=1e-6)
    assert int(terms["online_rows"]) == 8
    assert int(terms["online_hits"]) == int(((rows @ start.T).argmax(1) == y).sum())
    assert all(each.grad is None for each in h)


def _unlabelled(monkeypatch, kept):
    """Digits of which only the rows `kept(y)` have a label."""
    real = load_images

    def load(*args):
        images = real(*args)
        return replace(images, y=torch.where(kept(images.y), images.y, -1))

    monkeypatch.setattr("wssl.training.evaluation.load_images", load)


def test_without_labels_nothing_is_classified(tmp_path, monkeypatch):
    _unlabelled(monkeypatch, lambda y: y < 0)
    plain = dict(per_class=None, test_per_class=None, epochs=1, batch=400)
    run = _train(SMALL, tmp_path, online_probe=True, probe="offline", **plain)
    assert not [name for name in run.final if "online" in name or "linear" in name or name == "knn"]
    assert run.final["w2"] > 0


def test_rows_without_a_label_are_left_out(tmp_path, monkeypatch):
    config = replace(SMALL, epochs=1, eval_every=0)
    method = build_method(config)
    train_images, test_images = load_data(config)
    few = (images.take(images.y < 5) for images in (train_images, test_images))
    expected = evaluate(method, *few, config)["knn"]
    some = (replace(i, y=torch.where(i.y < 5, i.y, -1)) for i in (train_images, test_images))
    assert evaluate(method, *some, config)["knn"] == expected
    _unlabelled(monkeypatch, lambda y: y < 5)
    run = _train(config, tmp_path, online_probe=True, per_class=None, test_per_class=None, batch=400)
    assert 0 < run.final["online_train"] < 1 and 0 < run.final["online_top1"] < 1


def test_the_offline_probe_shares_the_features_and_is_in_the_summary(tmp_path, monkeypatch):
    asked, extracted, real = [], [], extract_features

    def stub(train_h, train_y, test_h, test_y, epochs=100, seed=0):
        asked.append((train_h.shape, train_y.shape, test_h.shape, test_y.shape, seed))
        return SimpleNamespace(top1=0.5, top5=0.75)

    monkeypatch.setattr(wssl.evaluation, "linear_probe", stub, raising=False)
    monkeypatch.setattr(
        "wssl.training.evaluation.extract_features", lambda *args, **kw: extracted.append(1) or real(*args, **kw)
    )
    run = _train(SMALL, tmp_path, probe="offline", epochs=2, seed=3)
    assert asked == [((120, 128), (120,), (80, 128), (80,), 3)], "once, at the end"
    assert len(extracted) == 2 * 3, "training and test images once for each evaluation"
    assert run.summary["final"]["linear_top1"] == 0.5 and run.summary["final"]["linear_top5"] == 0.75


def test_an_encoder_and_its_stem_come_from_the_config():
    net = build_method(TrainConfig(encoder="resnet18", stem="34")).encoder
    assert net.conv1.padding == (2, 2) and net.out_dim == 512


def test_holdout_never_touches_the_test_set(monkeypatch):
    asked = []
    real = load_images
    monkeypatch.setattr(
        "wssl.training.evaluation.load_images",
        lambda source, split, *rest: asked.append(split) or real(source, split, *rest),
    )
    kept, held = load_data(replace(SMALL, holdout=0.25, per_class=None, test_per_class=None))
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
        (
            {"augmentation": "swav"},
            "a method that takes local crops (swav, dino, excb, resa, lejepa, visreg, simdino, deepcluster) for swav; received alignw2",
        ),
        ({"encoder": "vgg"}, "encoder small, small-narrow"),
        ({"stem": "34"}, "a stem for a ResNet only; received stem 34 for small"),
        ({"encoder": "resnet18", "stem": "7"}, "stem 32, 34, imagenet; received '7'"),
        ({"optimizer": "lion"}, "optimizer adam, adamw, sgd, lars; received 'lion'"),
        ({"lr_end": 2}, "lr_end as a number of at least 0 and at most 1; received 2"),
        ({"lr_bias": 0}, "lr_bias as a number above 0; received 0"),
        ({"precision": "float16"}, "precision float32, bfloat16; received 'float16'"),
        ({"compile": "yes"}, "compile as true or false; received 'yes'"),
        ({"probe": "linear"}, "probe none, offline, semi; received 'linear'"),
        ({"method": {"name": "byol", "momentun": 0.9}}, "received momentun"),
        ({"epoch": 3}, "received epoch"),
    ],
)
def test_bad_configs_are_one_sentence(values, message):
    with pytest.raises(ValueError, match=r"^expected .*; received ") as error:
        TrainConfig.from_dict(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_images_streamed_from_their_files_train_the_same_network(tmp_path):
    """`stream:` decodes in worker processes, `folder:` once into memory: the same pixels, so the same run."""
    from PIL import Image

    images, runs = load_images("synthetic", "train", 16).subset(6, seed=0), {}
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        place = tmp_path / "images" / ("test" if row % 3 == 0 else "train") / str(int(y))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(place / f"{row}.png")
    for kind in ("folder", "stream"):
        source = f"{kind}:{tmp_path / 'images'}"
        config = replace(SMALL, source=source, root=str(tmp_path / "cache"), per_class=None, test_per_class=None)
        runs[kind] = _train(config, tmp_path / kind, epochs=1, batch=20)
    assert _numbers(runs["stream"]) == _numbers(runs["folder"])


def test_impossible_options_of_a_method_leave_no_directory_behind(tmp_path):
    with pytest.raises(ValueError, match="a queue of at least 1 row"):
        _train(SMALL, tmp_path / "run", method=METHODS["mocov2"](queue=0))
    assert not (tmp_path / "run").exists()


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


def test_a_bound_stands_in_the_help_and_in_the_message_of_a_field():
    """Both are made of the field: a value beyond a bound is refused with the number or the name that help shows."""
    bounded = [item for item in fields(TrainConfig) if set(item.metadata) & {"least", "most", "above", "names"}]
    seen = 0
    for item in bounded:
        about, shown = item.metadata, item.metadata["help"].rpartition("[")[2]
        beyond = {"least": lambda bound: bound - 1, "most": lambda bound: bound + 1, "above": lambda bound: bound}
        for kind, wrong in beyond.items():
            if (bound := about.get(kind)) is not None:
                seen += 1
                with pytest.raises(InputError, match=rf"^expected {item.name} as a .*\b{bound}\b.*; received"):
                    TrainConfig(**{item.name: wrong(bound)})
                assert str(bound) in shown
        if names := about.get("names"):
            seen += 1
            with pytest.raises(InputError, match=rf"^expected {item.name} {names[0]}"):
                TrainConfig(**{item.name: "nothing"})
            assert all(name in shown for name in names)
    assert seen > 25


def test_the_measurements_of_a_run_come_back_from_its_lines(whole):
    """A key that no field knows would be in the lines and not in the summary."""
    method, data = whole.load(), load_data(whole.config)
    found = measure(method, *data, whole.config, spectrum=True)
    assert Measurements.from_dict(found.to_dict()).to_dict() == found.to_dict()
    line = whole.final | {"loss": 1.0, "measured_queue": 2.0, "cluster_empty": 0.5}
    kept = Measurements.from_dict(line).to_dict()
    others = {"epoch", "step", "loss", "regularizer", "seconds", "evaluation_seconds", "lr"}
    assert set(line) - set(kept) == others and kept["measured_queue"] == 2.0 and kept["cluster_empty"] == 0.5


def test_names_of_one_version_ago_warn():
    import wssl.training.evaluation as module

    with pytest.warns(DeprecationWarning, match="fields of Measurements"):
        assert set(module.MEASURED) > {"w2", "knn", "study", "student_knn"}
    with pytest.raises(AttributeError, match="no attribute 'measured'"):
        module.measured  # noqa: B018
