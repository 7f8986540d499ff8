"""A sample of `python -m tests.torture faults`: a few instants and bytes of each kind; and that the harness notices where a protection is taken away."""

import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from tests.torture import faults_companion, faults_files, faults_images, faults_training
from tests.torture.faults import FAILURES
from tests.torture.faults_inject import Died, Failed, Instants, Row, at_instant, damaged, in_child, is_sentence
from wssl.core.checks import InputError
from wssl.core.paths import locked, sealed, unsealed, write_atomically
from wssl.data.files import LARGEST, folder_files, tar_members
from wssl.evaluation import sources
from wssl.training.checkpoints import checkpoints
from wssl.training.runs import Run, read_metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder, what an undisturbed run comes to, and a run that was killed in its last epoch."""
    at = tmp_path_factory.mktemp("faults")
    with faults_training.small_runs():
        truth, _ = faults_training.run_in(at / "whole")
        yield at, truth, faults_training.stopped(at, truth)


def damage(runs, name, k):
    """The row of one flipped bit in a file of the newest checkpoint, and the run continued."""
    at, truth, kept = runs
    row, path = Row("damaged", name), f"{checkpoints(kept)[0].name}/{name}"
    out = at / "work"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(kept, out)
    (out / path).write_bytes(damaged((out / path).read_bytes(), "flip", k))
    faults_training.judge(row, out, truth, name)
    return row.done()


@pytest.mark.parametrize(("name", "k"), [("model.safetensors", -1), ("state.pt", 9000), ("manifest.json", 700)])
def test_a_bit_of_a_checkpoint_changes_no_result(runs, name, k):
    row = damage(runs, name, k)
    assert row["went on"] == 1 and not any(row[name] for name in FAILURES)


def test_the_harness_notices_that_no_checksum_is_compared(runs, monkeypatch):
    monkeypatch.setattr("wssl.training.checkpoints._check_files", lambda folder: None)
    assert damage(runs, "model.safetensors", -1)["wrong results"] == 1


def test_killed_and_without_room_at_drawn_instants(runs):
    at, truth, _ = runs
    for how, k in (("kill", 22), ("kill", 60), ("full", 5), ("full", 33)):
        out, row = at / f"{how}{k}", Row(how, "")
        with pytest.raises((Died, Failed)) as error:
            at_instant(faults_training.run_in, out, at=k, how=how)
        assert how == "kill" or is_sentence(error.value.text)
        faults_training.judge(row, out, truth, "")
        assert row.done()["went on"] == 1


def test_a_damaged_history_is_the_checkpoints(runs):
    at, truth, kept = runs
    out = at / "history"
    shutil.copytree(kept, out)
    text = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(text.replace('"step": 1', '"step": 0').replace("0.", "1."))
    assert Run.read(out).history == Run.read(kept).history
    found, _ = faults_training.run_in(out)
    assert found == truth and found["copy"] == found["lines"]
    (out / "metrics.jsonl").write_text('{"epoch": 0, "stdp": 0}\n' + text)
    assert read_metrics(out) == []


def test_a_config_that_its_checkpoints_do_not_know_is_refused(runs):
    at, truth, kept = runs
    out = at / "config"
    shutil.copytree(kept, out)
    (out / "config.json").write_text((kept / "config.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="newest checkpoint; received seed 0 there, 1 here"):
        Run.read(out)
    (out / "config.json").unlink()
    with pytest.raises(InputError, match="to hold the same config; received seed 0 there, 1 here"):
        faults_training.run_in(out, seed=1)
    assert faults_training.run_in(out)[0] == truth


def test_a_checkpoint_without_a_manifest_is_one_of_an_older_version(runs):
    at, truth, kept = runs
    out = at / "older"
    shutil.copytree(kept, out)
    for folder in checkpoints(out):
        (folder / "manifest.json").unlink()
    assert faults_training.run_in(out)[0] == truth


def test_a_sealed_file_is_as_it_was_written_or_refused(tmp_path):
    path = write_atomically(tmp_path / "a.json", sealed({"a": 1.5, "b": [1, float("inf")]}))
    content = path.read_bytes()
    for k in range(len(content)):
        path.write_bytes(damaged(content, "flip", k))
        try:
            assert unsealed(path) == {"a": 1.5, "b": [1, float("inf")]}
        except InputError as error:
            assert is_sentence(str(error))
    for text in ("[" * 10_000, "3", "[]", "", '{"a": 1, "checksun": "00000000"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="a.json as it was written; received"):
            unsealed(path)


def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path):
    def work():
        with locked(tmp_path / "run", "a run directory", "trains"):
            pass

    with pytest.raises(Failed) as error:
        faults_training.limited(work, 0)
    assert is_sentence(error.value.text) and "File too large" in error.value.text


@pytest.mark.parametrize("number", [0, 3])
def test_bombs_are_refused_before_they_burst(tmp_path, number):
    (tmp_path / "bomb.tar").write_bytes(next(islice(faults_images.bombs(), number, None))[1])
    with pytest.raises(Failed) as error:
        in_child(faults_images.taken, f"tar:{tmp_path / 'bomb.tar'}", tmp_path)
    assert is_sentence(error.value.text) and LARGEST == 1 << 30


def test_a_name_twice_and_a_torn_header_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(faults_images.good([faults_images.member("./cat/0.png", b"newer")]))
    with pytest.raises(InputError, match="names an image once .*; received cat/0.png twice"):
        list(tar_members(path))
    content = faults_images.good()
    second = content.index(b"ustar", 600) - 257
    path.write_bytes(damaged(content, "flip", second + 3))
    with pytest.raises(InputError, match="expected a whole tar archive; received"):
        list(tar_members(path))


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="as plain files; received a.png, which is none"):
        folder_files(tmp_path)


def test_pickles_run_nothing_and_the_canary_sings(tmp_path):
    for gadget, value in list(faults_files.gadgets(tmp_path / "canary"))[:4]:
        torch.save(value, tmp_path / "z.pt")
        with pytest.raises(InputError, match="objects that may run code"):
            sources.load_embeddings(tmp_path / "z.pt")
        assert not (tmp_path / "canary").exists(), gadget
    torch.load(tmp_path / "z.pt", weights_only=False)
    assert (tmp_path / "canary").exists(), "the payload is harmless: the harness would notice nothing"


def test_arrays_behind_the_first_are_not_passed_over(tmp_path):
    with open(tmp_path / "z.npy", "wb") as file:
        np.save(file, np.ones((3, 2))), np.save(file, np.ones((5, 2)))
    with pytest.raises(InputError, match="one array in z.npy; received 208 bytes behind it"):
        sources.load_embeddings(tmp_path / "z.npy")


def test_an_array_larger_than_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "z.npz", z=np.zeros((1000, 100)))
    monkeypatch.setattr(sources, "memory", lambda: 1000)
    with pytest.raises(InputError, match=r"arrays that fit into memory \(0 GiB\) in z.npz; received"):
        sources.load_embeddings(tmp_path / "z.npz")


def test_instants_are_every_change_of_a_file(tmp_path):
    def work():
        write_atomically(tmp_path / "a", "text")
        with open(tmp_path / "b", "w") as file:
            file.write("x")
        open(tmp_path / "b").read()
        return True

    def counted():
        with Instants() as instants:
            work()
        return [name for name, _ in instants.seen]

    assert in_child(counted) == ["mkdir", "create", "write", "fsync", "chmod", "replace", "create", "write"]
    assert faults_companion.alive("nobody has this mark") == []
