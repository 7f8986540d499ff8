"""Every snippet of README.md: Python is run, and shows what stands below it; commands are run, or at least read by the parser that they are for."""

import json
import re
import shlex
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.checkout import ROOT
from tests.test_environment import settings
from wssl.companion.cli import build_parser, main, train_config

TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\s*(?:```\n(.*?)```)?", TEXT, flags=re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for line in TEXT.splitlines()
    if re.match(r" {4}(wssl|make|pip|torchrun|python) ", line)
]


def test_every_python_snippet_runs_and_shows_what_the_readme_says(monkeypatch):
    "In order and in one namespace, as a reader would paste them."
    monkeypatch.chdir(ROOT)
    matplotlib.use("Agg")
    space = {}
    assert len(SNIPPETS) >= 3
    for source, shown in SNIPPETS:
        *before, last = source.rstrip().split("\n\n")[-1].splitlines()
        body = source.rstrip().removesuffix(last)
        exec(compile(body, "README.md", "exec"), space)
        if shown:
            assert repr(eval(last, space)) == shown.strip(), source
        else:
            exec(last, space)
    plt.close("all")


def test_snippets_are_five_lines_or_little_more():
    for source, _ in SNIPPETS:
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith(("import", "from"))]
        assert len(lines) <= 5, source


def test_the_commands_are_those_that_the_readme_promises():
    kinds = {command.split()[0] for command in COMMANDS}
    assert kinds == {"wssl", "make", "pip", "torchrun"} and len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if "wssl " in command and "pip" not in command])
def test_options_of_commands_exist(command):
    "What the parsers say to each command; a training's options also have to make a configuration."
    words = shlex.split(command)
    words = words[words.index("wssl") + 1 :]
    options = build_parser(words).parse_args(words)
    if words[0] == "train":
        if str(getattr(options, "source", "")).startswith("folder:"):
            options.source = "digits"  # the path is the reader's
        train_config(options)


def test_the_quick_commands_run(tmp_path, monkeypatch, capsys):
    "`diagnose` on a file, and the first training on fewer images for one epoch."
    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    (diagnose,) = [command for command in COMMANDS if command.startswith("wssl diagnose")]
    assert main(shlex.split(diagnose)[1:]) == 0
    assert Path("report.html").read_text().lstrip().startswith("<!doctype html>")
    first = next(command for command in COMMANDS if command.startswith("wssl train"))
    tiny = "--epochs 1 --per-class 8 --test-per-class 4 --batch 40 --knn-k 5".split()
    assert main([*shlex.split(first)[1:], *tiny]) == 0
    assert "Results: " in capsys.readouterr().out


def test_targets_and_extras_exist():
    "`make NAME` is in the Makefile, `pip install .[NAME]` in settings.ini."
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for command in COMMANDS:
        if command.startswith("make "):
            assert command.split()[1] in targets, command
    extras = re.findall(r"'\.\[([a-z]+)\]'", TEXT)
    assert len(extras) >= 4 and all(f"{extra}_requirements" in settings() for extra in extras)


def test_it_stays_short_and_says_what_it_has_to():
    assert len(TEXT.splitlines()) < 160
    headings = re.findall(r"^## (.+)$", TEXT, flags=re.M)
    wanted = "Install, Quick start, What you get, Claims, Guides, Limits, Robustness and speed, Development, Citation and licence"
    assert [heading for heading in headings if heading in wanted.split(", ")] == wanted.split(", ")
    claim = TEXT.split("> ")[1].split("\n")[0]
    assert len(claim) < 160 and claim.endswith(".")
    assert TEXT.index("readme-1.png") < TEXT.index("## Install"), "the picture comes before the work"
    assert "(nbs/experiments/published.ipynb)" in TEXT
    assert TEXT.split("## What you get")[1].split("##")[0].count("\n- ") == 6


def test_the_sentences_about_faults_say_what_the_record_says():
    "All four columns of failure count, and a failure is said."
    record = json.loads((ROOT / "data/measured/torture.json").read_text())
    count = {
        name: sum(row[name] for row in record["faults"]["rows"])
        for name in ("injected", "went on", "refused", "runs lost", "wrong results", "code executed", "no sentence")
    }
    failed = count["runs lost"] + count["wrong results"] + count["code executed"] + count["no sentence"]
    assert count["injected"] == count["went on"] + count["refused"] + failed
    line = next(line for line in TEXT.splitlines() if " faults**" in line)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d|\d", line)]
    assert numbers[:4] == [count["injected"], count["went on"], count["refused"], failed], line
    assert ("(" in line.split("failed")[1]) == bool(failed), "a failure is said with its kind"
    line = next(line for line in TEXT.splitlines() if " extreme inputs**" in line)
    assert f"{sum(row['failed'] for row in record['numerics']['rows'])} failures" in line
