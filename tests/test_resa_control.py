"""ReSA's negative control: its rule against an independent inversion of the t test, its gap in closed form, and what the record must hold."""

import json
import math

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.checkout import ROOT

SETS = {"circle": 6, "noise": 5, "six angles": 5, "photographs": 5}
SCORE = {"circle": "log gap", "noise": "excess silhouette", "photographs": "excess silhouette"}


@pytest.fixture(scope="module")
def notebook():
    "The functions of the notebook's import, rule and score cells."
    cells = nbformat.read(ROOT / "nbs/experiments/resa_control.ipynb", 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    space = {}
    for mark in ("import json", "def t_interval", "def gap"):
        exec(next(source for source in code if source.startswith(mark)), space)
    return space


@pytest.fixture(scope="module")
def rows():
    return json.loads((ROOT / "data/measured/resa_control.json").read_text())["rows"]


@pytest.mark.parametrize("share", [-0.3, 0.1, 0.6, 1.2])
def test_the_interval_holds_the_shares_that_a_paired_t_test_does_not_reject(notebook, share):
    draw = np.random.default_rng(3)
    y = 1 + 0.2 * draw.normal(size=6)
    x = share * y + 0.1 * draw.normal(size=6)
    value, low, high = notebook["share_interval"](x, y)
    grid = np.linspace(low - 0.5, high + 0.5, 401)
    kept = np.array([stats.ttest_1samp(x - s * y, 0).pvalue >= 0.05 for s in grid])
    assert (kept == ((grid >= low) & (grid <= high))).all() and low < value < high


def test_the_rule_errs_as_often_as_it_says(notebook):
    """At a true share of exactly a quarter each wrong verdict has 2.5 %."""
    draw, words = np.random.default_rng(4), []
    for _ in range(2000):
        y = 1 + 0.2 * draw.normal(size=6)
        words.append(notebook["verdict"](0.25 * y + 0.2 * draw.normal(size=6), y))
    for word in ("invents clusters", "invents none"):
        assert words.count(word) / 2000 == pytest.approx(0.025, abs=0.012)


def test_without_a_control_that_fires_nothing_is_told(notebook):
    x = np.array([0.1, 0.2, 0.15, 0.12, 0.18])
    for y in (-x - 1, np.array([1.0, -1, 1, -1, 0.1])):
        assert notebook["verdict"](x, y) == "cannot be told"
        assert notebook["share_interval"](x, y)[1:] == (-math.inf, math.inf)


@pytest.mark.parametrize("distance", [3.0, 5.0])
def test_gap_of_two_combs_is_their_distance(notebook, distance):
    """Teeth at distance 1: a row's second neighbour lies at 1, and the combs touch at `distance`."""
    place = torch.cat([torch.arange(30.0), torch.arange(30.0) + 29 + distance])
    line = torch.stack([place, 0 * place], 1)
    assert notebook["gap"](line, neighbours=2) == pytest.approx(distance)
    assert notebook["gap"](line, neighbours=2, share=0.6) == 1.0  # neither comb is that large
    assert notebook["gap"](line[:30], neighbours=2) <= 2.0  # the last tooth has its second neighbour at 2


def test_the_record_holds_every_set_and_seed(rows):
    assert sorted((row["set"], row["seed"]) for row in rows) == sorted((s, k) for s in SETS for k in range(SETS[s]))
    for row in rows:
        arms = {"identity", "resa"} | ({"planted"} if row["set"] in SCORE else set())
        assert set(row["arms"]) == arms and row["arms"]["identity"]["self at last"] == 1
        numbers = pd.DataFrame({(arm, layer): row["arms"][arm][layer] for arm in arms for layer in "hz"})
        assert np.isfinite(numbers.loc[["log gap", "excess silhouette"]].to_numpy(float)).all()


def test_the_claim_is_what_the_rule_makes_of_the_record(notebook, rows):
    """Recomputed from the rows, with the t test in place of the interval."""
    claim = json.loads((ROOT / "data/measured/claims/OU-07.json").read_text())
    sides, found = [], []
    for name, key in SCORE.items():
        of = sorted((row for row in rows if row["set"] == name), key=lambda row: row["seed"])
        for layer in "hz":
            base, own, planted = (
                np.array([r["arms"][arm][layer][key] for r in of]) for arm in ("identity", "resa", "planted")
            )
            fires = stats.ttest_1samp(planted - base, 0).pvalue < 0.05 and (planted - base).mean() > 0
            test = stats.ttest_1samp((own - base) - 0.25 * (planted - base), 0)
            sides.append((fires, test.pvalue, test.statistic > 0))
            found.append(claim["figures"][next(k for k in claim["figures"] if k.endswith(f", {layer}") and name in k)])
            if fires:
                assert found[-1]["value"] == pytest.approx((own - base).mean() / (planted - base).mean(), rel=1e-4)
    none = all(fires and p < 0.05 and not above for fires, p, above in sides)
    some = any(fires and p < 0.05 / 6 and above for fires, p, above in sides)
    expected = "not reproduced at this scale" if some else "reproduced at this scale" if none else "inconclusive"
    assert claim["verdict"] == expected and claim["seeds"] == list(range(6))
