"""Every notebook, twice: in a kernel of its own through papermill, and its check cells against the exported library."""

import re
from importlib import import_module

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

from tests.checkout import ROOT
from wssl.companion.runner import declared, execute, find_notebooks

NAMES = find_notebooks(ROOT)


def read(name):
    return nbformat.read(ROOT / "nbs" / name, 4)


def module_of(nb):
    "The module that a notebook is exported to, or None."
    first = next((cell.source for cell in nb.cells if cell.cell_type == "code"), "")
    found = re.match(r"#\s*\|\s*default_exp\s+(\S+)", first)
    return f"wssl.{found[1]}" if found else None


EXPORTING = [name for name in NAMES if module_of(read(name))]


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_a_fresh_kernel(name, tmp_path):
    parameters = {"quick": True} if "quick" in declared(read(name)) else {}
    outcome = execute(ROOT / "nbs" / name, tmp_path / "executed.ipynb", parameters, root=ROOT, workers=2, timeout=280)
    assert outcome["status"] == "ok", f"cell {outcome.get('cell')} ({outcome.get('line')}): {outcome['message']}"
    assert not outcome["warnings"]


@pytest.mark.parametrize("name", EXPORTING)
def test_checks_hold_for_the_exported_library(name, monkeypatch):
    """Cells that are exported are left out, the rest runs inside the module.

    A notebook's own functions are a second copy of the library; only this shows that what users import passes the same checks. The
    cells run in the module's namespace, as they do in the notebook's, so that a check may replace a function.
    """
    matplotlib.use("Agg")
    nb = read(name)
    module = import_module(module_of(nb))
    monkeypatch.chdir((ROOT / "nbs" / name).parent)
    before = dict(vars(module))
    ran = 0
    try:
        for number, cell in enumerate(nb.cells, 1):
            directives = (
                re.findall(r"^#\s*\|\s*(\S+)", cell.source, flags=re.M) if cell.cell_type == "code" else ["text"]
            )
            if {"text", "export", "exporti", "default_exp"} & set(directives) or re.search(
                r"^#\s*\|\s*eval:\s*false", cell.source, flags=re.M
            ):
                continue
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), vars(module))
            ran += 1
    finally:
        vars(module).clear()
        vars(module).update(before)
        plt.close("all")
    assert ran, "a notebook that exports without a single check"


def test_parameters_cells():
    "A tag that was lost would let a notebook's defaults win without a word; a declared name that nothing reads is a promise not kept."
    for name in NAMES:
        nb = read(name)
        names = declared(nb)
        code = [
            cell.source
            for cell in nb.cells
            if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
        ]
        if any(re.search(r"\bif (not )?quick\b|\bquick else\b", source) for source in code):
            assert "quick" in names, f"{name} reads quick and has no parameters cell that declares it"
        for parameter in names:
            assert any(re.search(rf"\b{parameter}\b", source) for source in code), (
                f"{name} declares {parameter} and never reads it"
            )
