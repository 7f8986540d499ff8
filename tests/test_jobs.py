"""A file of jobs: what it trains, what it leaves alone, and what happens when a run fails or the command is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from wssl.companion import jobs
from wssl.companion.cli import main
from wssl.companion.records import read_runs
from wssl.core.checks import InputError

TINY = {
    "common": {
        "method": {"name": "simclr", "hidden": 16, "out": 8},
        **dict(size=16, per_class=8, test_per_class=8, batch=40, epochs=2, knn_k=5, eval_every=0),
    },
    "arms": {"simclr-cold": {"method": {"temperature": 0.1}}, "simclr-warm": {"method": {"temperature": 1.0}}},
    "seeds": [0],
}


def make(root):
    (root / "nbs").mkdir()
    (root / "settings.ini").write_text("[DEFAULT]\n")
    (root / "tiny.json").write_text(json.dumps(TINY))
    return root


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkout whose tiny study was trained and recorded, and what failed of it."""
    root = make(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        study = jobs.read_study("tiny.json")
        return root, jobs.run_jobs(study, root / "runs", "tiny", root, workers=1, say=lambda line: None)


def test_what_is_recorded_is_not_trained_again(trained, monkeypatch):
    (checkout, failed), said = trained, []
    monkeypatch.chdir(checkout)
    study, first = jobs.read_study("tiny.json"), read_runs("tiny", checkout)
    assert failed == []
    assert sorted(run["variant"] for run in first) == ["cold", "warm"]
    assert [run["environment"]["threads"] for run in first] == [1, 1]
    assert jobs.run_jobs(study, checkout / "runs", "tiny", checkout, workers=1, say=said.append) == []
    assert said[-1] == "2 runs, 2 recorded before, 0 to train"
    assert read_runs("tiny", checkout) == first


def test_a_record_of_another_configuration_is_not_taken_for_it(trained, monkeypatch):
    checkout = trained[0]
    monkeypatch.chdir(checkout)
    assert not jobs.unrecorded(jobs.read_study("tiny.json"), "tiny", checkout)
    (checkout / "other.json").write_text(json.dumps(TINY | {"common": TINY["common"] | {"lr": 0.5}}))
    assert len(jobs.unrecorded(jobs.read_study("other.json"), "tiny", checkout)) == 2


def test_one_run_that_fails_does_not_stop_the_rest(checkout):
    broken = TINY | {"arms": TINY["arms"] | {"simclr-broken": {"source": "folder:nowhere"}}}
    (checkout / "broken.json").write_text(json.dumps(broken))
    said = []
    failed = jobs.run_jobs(jobs.read_study("broken.json"), checkout / "runs", workers=1, say=said.append)
    assert failed == ["simclr-broken-s0"]
    assert sum("kNN" in line for line in said) == 2 and sum("failed: expected" in line for line in said) == 1


@pytest.mark.parametrize(
    "told, sentence",
    [
        ("[1]", 'expected "arms" and "seeds" in odd.json'),
        ("{", "expected odd.json as JSON"),
        (json.dumps(TINY | {"arms": {"simclr": {}}}), "expected arms named method-variant; received 'simclr'"),
        (json.dumps(TINY | {"arms": {"simclr-a": {"epoch": 1}}}), "epoch"),
        (json.dumps(TINY | {"seeds": []}), 'expected "arms" and "seeds" in odd.json'),
        (json.dumps(TINY | {"arms": {"simclr-a": 3}}), "expected a JSON object for each arm"),
        (json.dumps(TINY | {"seeds": ["one"]}), "expected seeds as whole numbers"),
    ],
)
def test_another_file_is_refused_in_one_sentence(checkout, told, sentence):
    (checkout / "odd.json").write_text(told)
    with pytest.raises(InputError) as error:
        jobs.read_study("odd.json")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_options_of_a_single_run_do_not_go_with_a_file(checkout, capsys):
    for words in (["--epochs", "3"], ["--method.temperature", "1"], ["--w2", "0.1"]):
        method = ["--method", "simclr"] if "--method.temperature" in words else []
        assert main(["train", "--jobs", "tiny.json", *method, *words]) == 2
        assert "--jobs beside --record, --workers and --project only" in capsys.readouterr().err
    assert not (checkout / "runs").exists()


def test_killed_it_leaves_no_worker_and_goes_on(checkout):
    (checkout / "long.json").write_text(json.dumps(TINY | {"common": TINY["common"] | {"epochs": 400}}))
    words = [sys.executable, "-m", "wssl", "train", "--jobs", "long.json"]
    process = subprocess.Popen(words, cwd=checkout, stdout=subprocess.PIPE, text=True, start_new_session=True)
    runs = checkout / "runs" / "long"
    until(lambda: len(list(runs.glob("*/checkpoint-*"))) >= 2)
    process.kill()
    process.wait()
    until(lambda: not alive_in(process.pid))
    epochs = len((runs / "simclr-cold-s0" / "metrics.jsonl").read_text().splitlines())
    assert epochs > 1  # begun, and there to be continued


def alive_in(session):
    """Processes of a session that are no zombies."""
    listed = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True).stdout.split()
    return [state for state in listed if not state.startswith("Z")]


def until(reached, seconds=90):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ctrl_c_ends_it_in_one_sentence(checkout):
    (checkout / "long.json").write_text(json.dumps(TINY | {"common": TINY["common"] | {"epochs": 400}}))
    words = [sys.executable, "-m", "wssl", "train", "--jobs", "long.json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=checkout, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    until(lambda: list((checkout / "runs" / "long").glob("*/checkpoint-*")))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().splitlines()[-1] == "wssl: stopped; the same command continues"
    until(lambda: not alive_in(process.pid))
