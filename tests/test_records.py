"""Records: what is refused, what is written, and that the published tables are the published numbers."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkout import ROOT, make_checkout
from wssl.companion import records
from wssl.companion.ledger import beside_published, ledger_counts, spread_text
from wssl.core.checks import InputError


def test_a_claim_record_holds_what_a_reader_needs(tmp_path):
    root = make_checkout(tmp_path)
    path = records.write_claim(
        "W2-06",
        "reproduced",
        {"error": 1e-9, "curve": np.arange(3.0)},
        "exact",
        "1_theory/gaussians.ipynb",
        seeds=(0, 1),
        root=root,
    )
    record = json.loads(path.read_text())
    assert path == root / "data/measured/claims/W2-06.json"
    assert {"claim", "verdict", "figures", "scale", "seeds", "notebook", "environment", "date"} <= set(record)
    assert record["figures"] == {"error": 1e-9, "curve": [0.0, 1.0, 2.0]}
    assert list(record) == sorted(record)
    assert [item.name for item in path.parent.iterdir()] == ["W2-06.json"], "a temporary file was left"
    ledger = records.read_claims(root).set_index("id")
    assert dict(ledger["verdict"]) == {"W2-06": "reproduced", "W2-20": "not tried"}


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ("W2-6", "reproduced"),
        ("w2-06", "reproduced"),
        ("", "reproduced"),
        ("W2-06", "Reproduced"),
        ("W2-06", "yes"),
        ("../W2-06", "reproduced"),
    ],
)
def test_unknown_claims_and_verdicts_are_refused(tmp_path, claim, verdict):
    root = make_checkout(tmp_path)
    with pytest.raises(InputError, match="^expected a (claim id|verdict).*; received "):
        records.write_claim(claim, verdict, {}, "exact", "x.ipynb", root=root)
    assert not (root / "data/measured/claims").exists()


def test_nothing_is_written_outside_a_checkout(tmp_path):
    "The package is found, a checkout is not: a sentence, no file. (A copy of the package without its notebooks, as a wheel installs it.)"
    shutil.copytree(ROOT / "wssl", tmp_path / "site/wssl", ignore=shutil.ignore_patterns("__pycache__"))
    code = "\n".join(
        [
            "import wssl.core.paths as paths",
            "from wssl.companion import write_claim, write_run, read_claims",
            "for call in (lambda: write_claim('W2-06', 'reproduced', {}, 'exact', 'x'), lambda: write_run('e', 'byol', 'w2', 'digits', 0, {}), read_claims):",
            "    try: call()",
            "    except paths.InputError as error: print(error)",
        ]
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3 and all(
        "expected a checkout of wssl" in line and "--project PATH" in line for line in lines
    ), run.stdout


def test_run_records_carry_no_machine(tmp_path):
    root = make_checkout(tmp_path)
    path = records.write_run(
        "first",
        "byol",
        "w2",
        "tar:/data/set/cifar10-jpeg.tar.xz",
        3,
        {"config": {"source": "tar:/data/set/cifar10-jpeg.tar.xz", "out": "/runs/a"}},
        root=root,
    )
    assert path.relative_to(root).as_posix() == "data/measured/runs/first/byol-w2-cifar10-jpeg-s3.json"
    assert "/data/set" not in path.read_text() and "/runs" not in path.read_text()
    with pytest.raises(InputError, match="a plain variant name"):
        records.write_run("first", "byol", "w2/none", "digits", 0, {}, root=root)


numbers = (
    st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
)


@given(
    st.recursive(
        numbers,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_whatever_is_measured_becomes_json_and_stays(value):
    once = records.plain(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert records.plain(once) == once


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_seven_digits_keep_a_float32_to_a_part_in_a_million(x):
    assert math.isclose(records.plain(x), x, rel_tol=1e-6)


def test_tensors_arrays_and_scalars():
    assert records.plain(
        {"a": torch.ones(2, dtype=torch.float64), "b": np.float32(0.5), "c": (1, {2}), "d": torch.tensor(3)}
    ) == {"a": [1.0, 1.0], "b": 0.5, "c": [1, [2]], "d": 3}


def test_show_table_is_read_back(capsys, monkeypatch):
    "What a program finds behind a table equals the frame."
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    frame = pd.DataFrame({"method": ["a", "b"], "w2": [0.5, float("nan")], "n": [1, 2]})
    records.show_table(frame, "toy", "A <caption>")
    values = shown[0][records.RESULT]
    assert values["columns"] == ["method", "w2", "n"] and values["rows"] == [["a", 0.5, 1], ["b", "", 2]]
    assert "A &lt;caption&gt;" in shown[0]["text/html"] and "A <caption>" in shown[0]["text/plain"]
    json.dumps(values, allow_nan=False)


def test_row_numbers_are_no_column():
    "What a filter leaves of them says nothing; an index with a name, or of words, does."
    frame = pd.DataFrame({"method": ["a", "b", "c"], "n": [1, 2, 3]})
    assert list(records._framed(frame.query("n > 1")).columns) == ["method", "n"]
    assert list(records._framed(frame.sort_values("n", ascending=False)).columns) == ["method", "n"]
    assert list(records._framed(frame.rename_axis("row")).columns) == ["row", "method", "n"]
    assert list(records._framed(frame.set_index("method")).columns) == ["method", "n"]
    assert "index" not in records.table_html(frame.query("n > 1"))


def test_no_stored_table_has_a_column_of_row_numbers():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts and path.name != "atlas.ipynb":  # to be executed again
            assert "<th>index</th>" not in path.read_text(), path.name


# ---------------------------------------------------------------------------------------------------------------- published


def test_every_published_row_has_a_source():
    for path in (ROOT / "data/published").glob("*.csv"):
        if path.stem != "claims":
            frame = records.published(path.stem)
            assert frame["source"].notna().all() and (frame["source"].str.len() > 10).all(), path.name


def test_claims_are_unique():
    claims = records.published("claims")
    assert claims["id"].is_unique and claims.notna().all().all()
    assert set(claims[claims["unseen"] == "yes"]["id"]) == {"W2-24", "W2-25", "W2-26", "W2-27", "EX-04", "EX-05"}


def test_table_2_by_hand():
    "Rows typed from the paper's table, independently of the file."
    table = records.published("w2_table2").set_index(["method", "variant", "dataset"])
    columns = ["acc1", "acc5", "w2", "lu", "alignment"]
    for key, expected in {
        ("byol", "w2", "cifar10"): [90.31, 99.77, 0.38, -3.90, 0.65],
        ("mocov2", "none", "cifar100"): [60.27, 86.29, 1.07, -3.60, 0.46],
        ("zerocl", "lu", "cifar100"): [68.44, 90.91, 0.15, -3.93, 0.74],
        ("alignuniform", "none", "cifar10"): [90.37, 99.76, 0.94, -3.82, 0.51],
        ("barlow", "w2", "cifar10"): [91.43, 99.78, 0.19, -3.92, 0.76],
    }.items():
        assert table.loc[key, columns].tolist() == expected
    assert len(table) == 32 and table.index.is_unique


def test_the_cloning_formula_gives_every_digit_of_figure_11():
    "c copies of n rows: L_U = log[(2 c^2 G + n c (c - 1)) / (c n (c n - 1))], G from the first value alone (Fang et al. 2024, Theorem 1)."
    curve = (
        records.published("w2_figures").query("figure == 11 and metric == 'lu'").sort_values("x")["value"].to_numpy()
    )
    n = 1000
    g = math.exp(-3.51303649) * n * (n - 1) / 2
    for copies, value in enumerate(curve, 1):
        closed = math.log((2 * copies**2 * g + n * copies * (copies - 1)) / (copies * n * (copies * n - 1)))
        assert abs(closed - value) < 6e-6, copies


@pytest.mark.parametrize(("figure", "closed", "within"), [
    (4, lambda eta, x: math.sqrt(2 - 2 * math.sqrt(1 - eta)), 0.013),
    (5, lambda eta, x: math.sqrt(x + 2 - 2 * math.sqrt(1 - eta)), 0.008),
    (6, lambda eta, x: math.sqrt(2 - 2 * math.sqrt((1 - eta) / (1 + x))), 0.007),
])  # fmt: skip
def test_published_w2_curves_lie_just_above_their_closed_forms(figure, closed, within):
    "The finite sample raises W2 a little, so a digit typed wrongly would stand out on either side."
    rows = records.published("w2_figures").query("figure == @figure and metric == 'w2' and curve != 'eta=0'")
    for row in rows.itertuples():
        excess = row.value - closed(float(row.curve.removeprefix("eta=")), row.x)
        assert -6e-5 < excess < within, row


def test_published_collapse_curve():
    "Fig. 3: W2 = sqrt(2 - 2 sqrt(live/total)) plus a floor below .0710, falling to nothing; the paper's code loses a dimension at .55, .80, .90."
    rows = records.published("w2_figures").query("figure == 3 and metric == 'w2'")
    for row in rows.itertuples():
        m = int(row.curve.removeprefix("m="))
        live = int(round(m * (1 - row.x), 9))
        candidates = [math.sqrt(2 - 2 * math.sqrt(k / (m - loss))) for k, loss in ((live, 0), (live - 1, 1))]
        assert any(-1e-4 < row.value - value < 0.0710 / (1 + 20 * row.x) + 1e-4 for value in candidates), row


def test_other_libraries_by_hand():
    solo = records.published("solo_learn").set_index(["method", "dataset"])["acc1"]
    assert (solo["byol", "cifar10"], solo["simclr", "cifar100"], solo["vicreg", "cifar10"]) == (92.58, 65.78, 92.07)
    lightly = records.published("lightly").set_index(["method", "batch", "epochs"])
    assert lightly.loc[("byol", 512, 800), ["acc1", "minutes", "memory_gb"]].tolist() == [91.0, 400.9, 5.4]
    assert records.published("eb_jepa").set_index(["method", "setting"])["acc1"]["sigreg", "lambda=10"] == 91.02


# ------------------------------------------------------------------------------------------------------------------- ledger


def test_the_ledger_counts_every_claim_once():
    ledger = records.read_claims()
    assert ledger_counts(ledger)["claims"].sum() == len(records.published("claims"))
    assert set(ledger["verdict"]) <= set(records.VERDICTS)
    for row in ledger[ledger["notebook"].ne("")].itertuples():
        assert (ROOT / "nbs" / row.notebook).with_suffix(".ipynb").exists(), f"{row.id} names {row.notebook}"


def test_means_and_spread_over_seeds(tmp_path):
    root, values = make_checkout(tmp_path), (0.41, 0.44, 0.47)
    for seed, knn in enumerate(values):
        records.write_run(
            "first",
            "simclr",
            "none",
            "digits",
            seed,
            {"config": {"epochs": 8}, "final": {"knn": knn, "w2": 1.0 + knn}},
            root=root,
        )
    row = beside_published(root).query("method == 'SimCLR'").iloc[0]
    mean, spread = 100 * np.mean(values), 100 * np.std(values, ddof=1)
    assert row["kNN %"] == f"{mean:.1f} ± {spread:.1f}" and row["seeds"] == 3 and row["paper: acc@1 %"] == 89.85
    assert spread_text([]) == "–"
