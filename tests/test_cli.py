"""The command line as a process sees it: exit codes, one sentence for bad input, and what it may import."""

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.checkout import ROOT
from wssl.companion.cli import main
from wssl.evaluation.sources import load_embeddings

TINY = ["--per-class", "8", "--test-per-class", "4", "--epochs", "1", "--batch", "40", "--knn-k", "5"]


def one_sentence(capsys, *words):
    "The sentence of a command that exits with 2 and says nothing else."
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err, (code, out, err)
    assert err.startswith("wssl: expected ") and "; received " in err
    return err


@pytest.fixture
def files(tmp_path):
    "Files that somebody might really pass."
    unit = torch.nn.functional.normalize(
        torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), dim=1
    ).numpy()
    np.save(tmp_path / "good.npy", unit)
    np.save(tmp_path / "one_row.npy", unit[:1])
    bad = unit.copy()
    bad[3] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "maps.npy", np.zeros((4, 8, 8), dtype=np.float32))
    np.save(tmp_path / "short.npy", unit[:150])
    np.save(tmp_path / "labels.npy", np.arange(200) % 10)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no array")
    (tmp_path / "broken.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:300])
    return tmp_path


@pytest.mark.parametrize(("name", "says"), [
    ("missing.npy", "does not exist"), ("empty", "a file of embeddings"), ("one_row.npy", "at least 2 rows"), ("nan.npy", "finite"),
    ("maps.npy", "shape (4, 8, 8)"), ("notes.txt", "notes.txt"), ("broken.npy", "broken.npy"), ("labels.npy", "shape (200,)"),
])  # fmt: skip
def test_diagnose_of_bad_files(files, capsys, name, says):
    assert says in one_sentence(capsys, "diagnose", files / name)


def test_diagnose_of_views_that_do_not_match(files, capsys):
    assert "(200, 16) and (150, 16)" in one_sentence(
        capsys, "diagnose", files / "good.npy", "--second", files / "short.npy"
    )
    assert "labels" in one_sentence(capsys, "diagnose", files / "short.npy", "--labels", files / "labels.npy")


def test_diagnose_of_good_files(files, capsys):
    command = [
        "diagnose",
        str(files / "good.npy"),
        "--labels",
        str(files / "labels.npy"),
        "--json",
        str(files / "out/found.json"),
        "--html",
        str(files / "out/found.html"),
    ]
    assert main(command) == 0
    assert "W2" in capsys.readouterr().out and (files / "out/found.json").exists()
    assert "data:image/png" in (files / "out/found.html").read_text()
    assert main([*command, "--min-live", "0.5"]) == 0
    dead = np.load(files / "good.npy") * (np.arange(16) < 4)
    np.save(files / "dead.npy", dead)
    assert main(["diagnose", str(files / "dead.npy"), "--min-live", "0.5"]) == 1
    assert "failed: live fraction" in capsys.readouterr().err


def test_train_of_bad_sources(files, capsys):
    broken = files / "images/cat"
    broken.mkdir(parents=True)
    for number in range(3):
        (broken / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for source, says in (
        ("moon", "moon"),
        (f"folder:{files / 'nowhere'}", "nowhere"),
        (f"folder:{files / 'empty'}", "empty"),
        (f"folder:{files / 'images'}", ".png"),
        (f"tar:{files / 'good.npy'}", "good.npy"),
    ):
        assert says in one_sentence(capsys, "train", "--source", source, "--out", files / "run", *TINY)


@pytest.mark.parametrize(("words", "says"), [
    (["--epochs", "0"], "epochs"), (["--epochs", "many"], "'many'"), (["--lr", "-1"], "lr"), (["--method", "mae"], "'mae'"), (["--speed", "3"], "--speed"),
    (["--w2", "0.2", "--lu", "0.2"], "one of --w2 and --lu"), (["--w2", "0.2", "--weight", "1"], "--weight"), (["--method", "simclr", "--method.momentum", "1"], "--method.momentum"),
    (["--method.temperature", "1", "--method", "byol"], "--method.temperature"), (["--w2", "nan"], "weight"),
])  # fmt: skip
def test_train_of_bad_options(capsys, tmp_path, words, says):
    assert says in one_sentence(capsys, "train", "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "nowhere"],
        ["evaluate", "."],
        ["companion", "--project", "nowhere"],
        ["table", "--project", "nowhere"],
        ["companion", "--only", "no_such_chapter"],
        ["companion", "--workers", "0"],
        ["companion", "--timeout", "0", "--project", str(ROOT)],
        ["companion", "--out", str(ROOT / "README.md"), "--project", str(ROOT), "--only", "core/paths"],
        ["evaluate"],
        ["table", "extra"],
        ["paint"],
        [],
    ],
)
def test_other_commands(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    one_sentence(capsys, *words)


def test_the_sentence_names_the_command_that_can_help(capsys):
    assert "`wssl train --help`" in one_sentence(capsys, "train", "--epoch", "3")
    assert "expected RUN_DIR (see `wssl evaluate --help`); received none" in one_sentence(capsys, "evaluate")


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    import wssl.companion.cli as cli

    def broken(options):
        raise KeyError("ours")

    monkeypatch.setitem(cli.COMMANDS, "table", (cli.add_table, broken, "broken"))
    with pytest.raises(KeyError):
        cli.main(["table"])


@pytest.mark.parametrize("command", ["companion", "train", "evaluate", "diagnose", "table"])
def test_help_explains_every_option(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    entries = [entry for entry in out.split("\n  -")[1:] if not entry.startswith("h, --help")]
    for entry in entries:
        assert len(entry.split()) > 3, f"no help for {entry}"
    if command == "train":
        assert "[epochs, at least 1]" in out and "(default: 20)" in out


@pytest.mark.parametrize(
    "words, code",
    [
        (["--help"], 0),
        (["--version"], 0),
        (["diagnose", "--help"], 0),
        (["table"], 0),
        (["tabel"], 2),
        (["diagnose"], 2),
    ],
)
def test_an_answer_without_tensors_does_not_wait_for_pytorch(words, code):
    "PyTorch takes more than a second to import; help, a misspelt command and a table need none of it."
    source = f"""
import sys
from wssl.__main__ import main
code = main()
assert code == {code}, code
assert not {{"torch", "torchvision", "sklearn", "matplotlib"}} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", source, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    if words == ["--help"]:
        assert ran.stdout.split("\n\n")[1].startswith("Measure and prevent representation collapse")


def test_train_table_and_evaluate_as_processes(tmp_path):
    def wssl(*words):
        return subprocess.run([sys.executable, "-m", "wssl", *words], cwd=ROOT, capture_output=True, text=True)

    run = wssl("train", "--method", "simclr", "--w2", "0.2", "--out", str(tmp_path / "run"), *TINY)
    assert run.returncode == 0 and "summary.json" in run.stdout and "\r" not in run.stdout + run.stderr, run.stderr
    found = wssl("evaluate", str(tmp_path / "run"))
    assert found.returncode == 0 and "knn" in found.stdout, found.stderr
    table = wssl("table")
    assert (
        table.returncode == 0 and "BYOL + W2" in table.stdout and "90.31" in table.stdout and "Cookbook" in table.stdout
    )
    missing = wssl("diagnose", "missing.npy")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


def test_accuracies_with_their_conditions(tmp_path, capsys):
    import json

    assert main(["train", "--out", str(tmp_path / "run"), "--seed", "3", *TINY]) == 0
    capsys.readouterr()
    command = ["evaluate", str(tmp_path / "run"), "--protocol", "knn,linear,views,semi", "--json", str(tmp_path / "o")]
    assert main(command) == 0
    out = capsys.readouterr().out
    for said in (
        "alignw2-none on digits, encoder small", "1 epochs, batch 40, one seed (3)", "evaluated on the test set (40 images)",
        "k = 5, cosine, tau = 0.1", "k = 5, Euclidean, majority", "500 epochs, last epoch", "chosen on the evaluated images",
        "10% of the labels (10 images)", "top-5",
    ):  # fmt: skip
        assert said in out, said
    found = json.loads((tmp_path / "o").read_text())
    assert [line["protocol"] for line in found["accuracies"]] == ["knn"] * 3 + ["linear"] + ["views"] * 2 + ["semi"] * 2
    assert found["accuracies"][0]["top1"] == found["knn"] and all(
        0 <= line["top1"] <= 1 for line in found["accuracies"]
    )
    assert "protocols among knn" in one_sentence(capsys, "evaluate", tmp_path / "run", "--protocol", "knn,best")


def test_without_labels_no_accuracy(tmp_path, capsys):
    from PIL import Image

    for number in range(12):
        for split in ("train", "test"):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number * 20, 9, 99)).save(tmp_path / "images" / split / f"{number}.png")
    words = ["--source", f"folder:{tmp_path / 'images'}", "--epochs", "1", "--batch", "6", "--size", "16"]
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--protocol", "linear,semi"]) == 0
    out = capsys.readouterr().out
    assert "nothing that needs labels ran" in out and "top-1" not in out and "w2" in out


def test_a_record_is_written_on_request(tmp_path, capsys):
    from tests.checkout import make_checkout
    from wssl.companion.records import read_runs

    root = make_checkout(tmp_path / "checkout")
    assert main(["train", "--out", str(tmp_path / "run"), "--record", "first", "--project", str(root), *TINY]) == 0
    (record,) = read_runs("first", root)
    assert (
        record["method"] == "alignw2"
        and record["source"] == "digits"
        and {"final", "config", "history", "environment"} <= set(record)
    )
    assert str(tmp_path) not in str(record)


def test_runs_of_two_experiments_have_directories_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    for experiment, lr in (("first", "1e-3"), ("second", "2e-3")):
        assert main(["train", "--record", experiment, "--lr", lr, *TINY]) == 0
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/*/summary.json"))
    assert found == ["runs/first/alignw2-none-digits-s0", "runs/second/alignw2-none-digits-s0"]


def closure(names):
    "Distributions that these need, themselves included."
    found, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(need.name) for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return found


def test_training_needs_only_what_a_gpu_machine_has(tmp_path):
    "`python -m wssl train` with every other installed package out of reach, and without metadata of wssl itself."
    allowed = closure(
        [
            "torch",
            "torchvision",
            "numpy",
            "scipy",
            "scikit-learn",
            "torchmetrics",
            "safetensors",
            "tensorboard",
            "seaborn",
        ]
    )
    owners = metadata.packages_distributions()
    blocked = sorted(
        top
        for top, names in owners.items()
        if top != "wssl" and not {canonicalize_name(name) for name in names} & allowed
    )
    assert {"papermill", "nbformat", "fastcore", "nbdev", "IPython"} <= set(blocked) and not {
        "torch",
        "pandas",
        "PIL",
        "matplotlib",
    } & set(blocked)
    code = f"""
import importlib.metadata, runpy, sys
blocked = set({blocked!r})
class Hide:
    "A finder that does not see what is out of reach (torch asks for some of it, and takes no for an answer)."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path = [Hide(finder) for finder in sys.meta_path]
real = importlib.metadata.distribution
def distribution(name):
    if name == "wssl": raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.distribution = distribution
sys.argv = ["wssl", "train", "--method", "byol", "--lu", "0.1", "--out", {str(tmp_path / "run")!r}, *{TINY!r}]
runpy.run_module("wssl", run_name="__main__", alter_sys=True)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and (tmp_path / "run/summary.json").exists(), run.stderr[-2000:]


def test_formats_agree(tmp_path):
    "The same matrix through each format."
    from safetensors.torch import save_file

    z = torch.randn(6, 3)
    (
        np.save(tmp_path / "z.npy", z.numpy()),
        np.savez(tmp_path / "z.npz", z.numpy()),
        torch.save(z, tmp_path / "z.pt"),
        save_file({"z": z}, tmp_path / "z.safetensors"),
    )
    for name in ("z.npy", "z.npz", "z.pt", "z.safetensors"):
        assert torch.equal(load_embeddings(tmp_path / name), z)
