"""What is installed elsewhere: a wheel made from the sdist, its content, its metadata, and a life without the extras."""

import ast
import importlib
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.checkout import ROOT
from tests.test_environment import settings


def run(*words, cwd, **env):
    "Standard output of a process that succeeds."
    words = [str(word) for word in words]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist, and the wheel made from it as `python -m build` does; nothing is fetched, the checkout stays as it is."
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    tracked = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in tracked:
        if name and (ROOT / name).is_file() and not name.startswith(("nbs/", "data/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ".", cwd=source, PIP_NO_INDEX="1")
    (sdist,), (wheel,) = folder.glob("dist/*.tar.gz"), folder.glob("dist/*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    "The wheel unpacked where no checkout is around it: what an install puts beside other packages."
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(built[1]).extractall(folder)
    return folder


def test_the_wheel_holds_every_module_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "wssl").rglob("*.py")} | {"wssl/py.typed"}
    assert names == ours


def test_the_sdist_builds_by_itself_and_leaves_the_notebooks_to_the_repository(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[0]).getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "nbs", "data"))]


def test_metadata_is_what_settings_say(unpacked):
    (folder,) = unpacked.glob("*.dist-info")
    data, values = Parser().parsestr((folder / "METADATA").read_text()), settings()
    assert (data["Name"], data["Version"]) == ("wssl", values["version"])
    assert data["Requires-Python"] == f">={values['min_python']}"
    asked = [Requirement(text) for text in data.get_all("Requires-Dist")]

    def said(key):
        return {str(Requirement(text)) for text in values[key].split()}

    def wants(extra):
        found = [item for item in asked if item.marker and item.marker.evaluate({"extra": extra})]
        return {str(Requirement(str(item).partition(";")[0])) for item in found}

    assert {str(item) for item in asked if not item.marker} == said("requirements")
    extras = [key for key in values if key.endswith("_requirements")]
    assert set(data.get_all("Provides-Extra")) == {key.removesuffix("_requirements") for key in extras}
    for key in set(extras) - {"dev_requirements"}:
        assert wants(key.removesuffix("_requirements")) == said(key)
    assert wants("dev") == set().union(*map(said, extras))
    assert "wssl = wssl.__main__:main" in (folder / "entry_points.txt").read_text()


BARE = """
import importlib.metadata, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
waiting, allowed = sys.argv[1].split(","), set()
while waiting:
    name = canonicalize_name(waiting.pop())
    if name not in allowed:
        allowed.add(name)
        needs = map(Requirement, importlib.metadata.requires(name) or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
owners = importlib.metadata.packages_distributions()
blocked = {top for top, names in owners.items() if top != "wssl" and not {canonicalize_name(name) for name in names} & allowed}
assert {"papermill", "nbformat", "fastcore", "IPython", "pytest", "lightning", "pyarrow", "timm"} <= blocked, blocked
class Hide:
    "A finder that does not see what an install without extras lacks."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path = [Hide(finder) for finder in sys.meta_path]
"""


def bare(folder, code, cwd):
    "Run `code` from an unpacked wheel in a process that sees the hard dependencies and no extra."
    hard = ",".join(Requirement(text).name for text in settings()["requirements"].split())
    return run(sys.executable, "-c", BARE + code, hard, cwd=cwd, PYTHONPATH=str(folder))


def test_every_module_but_the_notebook_tools_imports_without_extras(unpacked):
    modules = sorted(
        str(path.relative_to(unpacked).with_suffix("")).replace("/", ".") for path in unpacked.rglob("wssl/**/*.py")
    )
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = f"""
import importlib
from wssl.core.checks import InputError
lacking = []
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except (InputError, ModuleNotFoundError) as error:
        assert "wssl[notebook]" in str(error) or error.name in blocked, error
        lacking.append(name)
assert importlib.import_module("wssl").__file__.startswith({str(unpacked)!r})
print(*lacking)
"""
    lacking = bare(unpacked, code, unpacked).split()
    assert all(name.startswith("wssl.companion.") for name in lacking), lacking
    assert "wssl.companion.runner" in lacking
    assert not {
        "wssl.companion.cli",
        "wssl.companion.options",
        "wssl.companion.records",
        "wssl.companion.ledger",
    } & set(lacking)


def test_the_command_line_without_extras(unpacked, tmp_path):
    "What the README promises an engineer: a version, embeddings in and words out, a training on the digits; one sentence for the rest."
    z = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    code = f"""
import contextlib, io
from wssl.companion.cli import main
tiny = "--epochs 1 --per-class 8 --test-per-class 4 --batch 40 --knn-k 5 --out run".split()
for words in (["--version"], ["diagnose", "z.npy", "--html", "z.html"], ["train", *tiny]):
    assert main(words) == 0, words
for words in ([], ["--readme"]):
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert main(["companion", "--project", {str(ROOT)!r}, *words]) == 2
    assert "wssl[notebook]" in told.getvalue() and told.getvalue().count("\\n") == 1, told.getvalue()
"""
    said = bare(unpacked, code, cwd=tmp_path)
    assert said.startswith(f"wssl {settings()['version']}\n") and "W2" in said and "Done." in said
    assert "data:image/png" in (tmp_path / "z.html").read_text() and (tmp_path / "run/summary.json").exists()


def test_a_type_checker_accepts_what_callers_write():
    "`tests/typed_use.py` under every rule of pyright's basic mode, against the package as it is installed beside it."
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "tests/typed_use.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert done.returncode == 0 and "0 errors" in done.stdout, done.stdout + done.stderr


def test_a_type_checker_finds_what_is_wrong(tmp_path):
    "The test above can fail: a wrong type in one call is an error."
    (tmp_path / "wrong.py").write_text(
        "# pyright: basic\nfrom wssl.metrics import uniformity_floor\nx: str = uniformity_floor('many', 128)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert done.returncode == 1 and "2 errors" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "wssl").glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_chapter_exports_what_it_imports(path):
    "A type checker takes a name of a typed package for private unless `__all__` has it."
    imported = {
        name.asname or name.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("wssl.") and node.module != "wssl.metrics"
        for name in node.names
    }
    module = importlib.import_module(f"wssl.{path.parent.name}")
    assert set(module.__all__) >= imported and all(hasattr(module, name) for name in module.__all__)
