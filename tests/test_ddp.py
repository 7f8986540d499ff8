"""Two processes against one on the whole batch: every method, every regularizer, and whole runs."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import wssl.training.loop as loop
from tests.distributed import run_ranks
from wssl.core.collectives import sync_batchnorm
from wssl.methods import BYOL, METHODS
from wssl.models import encoder, initialised_from
from wssl.training import Run, TrainConfig, train
from wssl.training.step import in_parallel, objective

ROOT = Path(__file__).parent.parent
SIZES = {"hidden": 24, "out": 12, "queue": 64}
CASES = [(name, "none") for name in METHODS]
CASES += [(name, regularizer) for name in ("byol", "mocov2", "barlow") for regularizer in ("lu", "w2")]
BATCH = 16
RUN = TrainConfig(
    method=BYOL(momentum=0.9, hidden=32, out=16),
    regularizer="w2",
    weight=0.5,
    per_class=12,
    test_per_class=8,
    size=16,
    epochs=2,
    batch=40,
    lr=0.1,
    lr_bias=0.01,
    optimizer="lars",
    eval_every=1,
    knn_k=10,
    threads=1,
    online_probe=True,
)
MOCO = replace(RUN, method=METHODS["mocov2"](queue=96, hidden=32, out=16), optimizer="sgd", regularizer="lu")


def _method(name):
    """A small one in float64, its last BatchNorms open so that every layer has a gradient."""
    options = METHODS[name]
    options = options(**{item.name: SIZES[item.name] for item in fields(options) if item.name in SIZES})
    with initialised_from(0, "test"):
        method = options.build(encoder("small", width=4)).double()
        for p in method.parameters():
            if p.ndim == 1:
                p.data.uniform_(0.2, 1.0)
    return method


def _views():
    return tuple(torch.randn(2, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def _gradients(net, method, views, regularizer):
    """Loss, terms and gradients of one step, and the state after it."""
    torch.manual_seed(0)  # as the loop does: slices and tasks are drawn alike everywhere
    loss, terms, _ = objective(net, views, regularizer, 0.7)
    loss.backward()
    method.after_step(0.5)
    gradients = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **terms}, gradients, dict(method.state_dict())


def _on_a_rank(folder, rank):
    """Everything that needs two processes: they are slow to start."""
    results = {}
    for name, regularizer in CASES:
        method = sync_batchnorm(_method(name))
        net = in_parallel(method)
        mine = tuple(x[rank * BATCH // 2 :][: BATCH // 2] for x in _views())
        results[name, regularizer] = _gradients(net, method, mine, regularizer)
    torch.manual_seed(0)
    runs = {}
    for name, config in {"byol": RUN, "moco": MOCO}.items():
        said = []
        run = train(replace(config, out=f"{folder}/{name}"), say=said.append, events=False)
        runs[name] = run.history, run.summary["final"], said
    stopped = replace(RUN, out=f"{folder}/stopped")
    real, calls = loop.train_epoch, []

    def stop_in_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    loop.train_epoch = stop_in_the_second
    try:
        train(stopped, say=None, events=False)
    except KeyboardInterrupt:
        loop.train_epoch = real
    runs["resumed"] = (run := train(stopped, say=None, events=False)).history, run.summary["final"], []
    try:
        train(replace(RUN, batch=41, out=f"{folder}/odd"), say=None)
    except ValueError as error:
        return results, runs, str(error)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(_on_a_rank, str(tmp_path_factory.mktemp("two")))


def _close(a, b, name):
    """Equal to 1e-5 of the largest entry."""
    scale = b.abs().max().item() if b.numel() else 0.0
    assert torch.allclose(a, b, rtol=0, atol=1e-5 * scale + 1e-12), f"{name}: {(a - b).abs().max()} of {scale}"


@pytest.mark.parametrize(("name", "regularizer"), CASES)
def test_loss_gradients_and_state_are_those_of_one_process(ranks, name, regularizer):
    method = _method(name)
    terms, gradients, state = _gradients(method, method, _views(), regularizer)
    assert ("regularizer" in terms) == (regularizer != "none")
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients.values())
    found = [results[name, regularizer] for results, *_ in ranks]
    for key, value in terms.items():
        _close(sum(each[0][key] for each in found) / 2, value, key)
    for each in found:
        for key, grad in gradients.items():
            _close(each[1][key], grad, key)
        for key, value in state.items():
            _close(each[2][key].double(), value.double(), key)


def _numbers(history):
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in history]


def final_images(run):
    """Images that the run was evaluated on."""
    return run.summary["images"]["evaluated"]


@pytest.mark.parametrize(("name", "config"), [("byol", RUN), ("moco", MOCO)])
def test_a_run_on_two_processes_is_the_run_on_one(ranks, tmp_path, name, config):
    one = train(replace(config, out=str(tmp_path)), say=None, events=False)
    (history, final, said), (history2, final2, said2) = (runs[name] for _, runs, _ in ranks)
    assert _numbers(history) == _numbers(history2) and final == final2
    assert len(said) == 3 and not said2, "rank 0 alone speaks"
    assert len(history) == len(one.history)
    image = 1.01 / final_images(one)  # float32 sums differ, and an image between two classes may change sides
    for line, expected in zip(_numbers(history), _numbers(one.history), strict=True):
        shares = [key for key in line if key == "knn" or key.startswith("online")]
        assert {key: line.pop(key) for key in shares} == pytest.approx(
            {key: expected.pop(key) for key in shares}, abs=2 * image
        )
        assert line == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert final["spectrum"] == pytest.approx(one.summary["final"]["spectrum"], rel=0.02, abs=1e-4)


def test_two_processes_continue_a_run_and_end_as_if_it_had_not_stopped(ranks):
    for _, runs, _ in ranks:
        assert _numbers(runs["resumed"][0]) == _numbers(runs["byol"][0]) and runs["resumed"][1] == runs["byol"][1]


def test_a_batch_that_cannot_be_shared_is_one_sentence(ranks):
    assert [said for *_, said in ranks] == ["expected a batch that 2 processes can share evenly; received 41"] * 2


def test_torchrun_from_the_command_line_and_on_with_one_process(tmp_path):
    words = ["-m", "wssl", "train", "--method", "byol", "--method.hidden", "32", "--method.out", "16", "--w2", "0.2"]
    words += ["--per-class", "12", "--test-per-class", "8", "--size", "16", "--epochs", "2", "--batch", "40"]
    words += ["--knn-k", "10", "--out", str(tmp_path / "run"), "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done. Results") == 1 and done.stdout.count("epoch 2/2") == 1
    summary = Run.read(tmp_path / "run").summary
    assert summary["processes"] == 2 and 0 <= summary["final"]["knn"] <= 1
    again = train(
        replace(TrainConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())), device="auto"),
        say=None,
    )
    assert again.summary == summary
