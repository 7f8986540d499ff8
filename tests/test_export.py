"""The modules are what the notebooks say, and the notebooks are clean."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.checkout import ROOT
from wssl.companion.readme import readme_text
from wssl.companion.runner import find_notebooks
from wssl.companion.stored import LIMIT, stale_outputs

CHAPTERS = (
    "core",
    "theory",
    "metrics",
    "balance",
    "losses",
    "data",
    "models",
    "methods",
    "evaluation",
    "training",
    "companion",
)
BY_HAND = ("__init__.py", "__main__.py", "py.typed")


def modules(root):
    return {str(path.relative_to(root)): path.read_text() for path in sorted(Path(root).rglob("*.py"))}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks and what is written by hand, without the generated modules."
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    for path in (ROOT / "wssl").rglob("*"):
        if path.name in BY_HAND:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return folder


def nbdev(command, folder):
    run = subprocess.run(
        [sys.executable, "-c", f"from nbdev import {command.split('.')[0]} as m; m.{command.split('.')[1]}()"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_a_fresh_export_is_what_is_committed(copy):
    "Export into an empty folder: a module without its notebook, or edited by hand, shows here."
    nbdev("doclinks.nbdev_export", copy)
    fresh, committed = modules(copy / "wssl"), modules(ROOT / "wssl")
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == []


def test_cleaning_changes_nothing(copy):
    before = {path: path.read_bytes() for path in (copy / "nbs").rglob("*.ipynb")}
    nbdev("clean.nbdev_clean", copy)
    assert [path.name for path, data in before.items() if path.read_bytes() != data] == []


def exports():
    found = {}
    for name in find_notebooks(ROOT):
        nb = nbformat.read(ROOT / "nbs" / name, 4)
        text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
        found[name] = re.findall(r"^#\s*\|\s*default_exp\s+(\S+)", text, flags=re.M)
    return found


def test_one_notebook_is_one_module():
    "Two notebooks with one `default_exp` overwrite each other without a word."
    targets = [target for found in exports().values() for target in found]
    assert len(targets) == len(set(targets))
    for name, found in exports().items():
        if name.startswith(("experiments/", "guides/")) or name == "index.ipynb":
            assert found == [], f"{name} exports"
        else:
            chapter, _, stem = name.removesuffix(".ipynb").rpartition("/")
            assert found == [re.sub(r"^\d_", "", chapter) + "." + stem], name


def test_a_chapter_imports_only_from_chapters_before_it():
    for path in (ROOT / "wssl").glob("*/*.py"):
        here = path.parent.name
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            target = (
                module.split(".")[1]
                if module.startswith("wssl.")
                else module.split(".")[0]
                if node.level == 2
                else here
            )
            if target in CHAPTERS:
                assert CHAPTERS.index(target) <= CHAPTERS.index(here), f"{path.relative_to(ROOT)} imports from {target}"


def test_stored_outputs_belong_to_their_cells():
    assert stale_outputs(ROOT) == {}


def test_notebooks_are_small_and_name_no_machine():
    for name in find_notebooks(ROOT):
        path = ROOT / "nbs" / name
        assert path.stat().st_size <= LIMIT, name
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                text = " ".join(
                    str(value)
                    for kind, value in output.get("data", {"text": output.get("text", "")}).items()
                    if not kind.startswith("image")
                )
                assert not re.search(r"/(home|root|Users|tmp)/\w", text), f"{name}: {text[:200]}"


def test_readme_is_the_tour():
    "README.md is made from the stored outputs of nbs/index.ipynb (`make readme`)."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", 4)
    text, figures = readme_text(nb)
    assert (ROOT / "README.md").read_text().endswith(text)
    assert len(figures) == len(list((ROOT / "nbs/_site").glob("readme-*.png")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link and not link.startswith("#"):
            assert (ROOT / link).exists(), link
