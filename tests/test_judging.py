"""Verdicts by intervals: every statistic against another implementation, and what the committed records must hold."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.checkout import ROOT
from wssl.companion import judging, records
from wssl.companion.judging import Question, above, below, holm, judged, mean_estimate, not_worse, paired
from wssl.core.checks import InputError
from wssl.models.momentum import recent_weight

NUMBERS = st.lists(st.floats(-50, 50), min_size=2, max_size=9).filter(lambda x: np.std(x) > 1e-3)
T_975 = {
    2: 12.706204736,
    3: 4.302652730,
    4: 3.182446305,
    9: 2.306004135,
}  # n -> two-sided 5 % point, from a printed table


def estimate(values, unit="points"):
    return mean_estimate(values, unit, range(len(values)))


# ------------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", T_975)
def test_the_interval_by_hand(n):
    x = np.random.default_rng(n).normal(3, 2, n)
    half = T_975[n] * math.sqrt(sum((x - x.mean()) ** 2) / (n - 1) / n)
    found = estimate(x)
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), rel=1e-7)


@given(NUMBERS, st.floats(-5, 5))
def test_parts_agree_with_scipy_and_with_their_intervals(values, bound):
    x, figure = np.array(values), estimate(values)
    assert above(figure, bound).p == pytest.approx(stats.ttest_1samp(x, bound).pvalue, abs=1e-9)
    assert not_worse(figure, 1.0).p == pytest.approx(
        stats.ttest_1samp(x, -1.0, alternative="greater" if x.mean() > -1 else "less").pvalue, abs=1e-9
    )
    if min(abs(figure.low - bound), abs(figure.high - bound)) > 1e-6:
        told = {"shown": figure.low > bound, "contradicted": figure.high < bound}
        assert above(figure, bound).outcome == next((key for key, is_so in told.items() if is_so), "inconclusive")
    assert below(figure, bound).p == pytest.approx(above(figure, bound).p) and below(figure, 1e9).holds


def test_pairs_are_made_by_seed_and_not_by_place():
    a, b = {0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}, {2: 8.0, 1: 4.5, 0: 0.0, 5: -100.0}
    found = paired(a, b, "points")
    assert found.seeds == (0, 1, 2) and found.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert np.std([1, 0.5, 1], ddof=1) == pytest.approx(found.sd)


def test_unpaired_is_welchs():
    a, b = {0: 1.0, 1: 2.5, 2: 2.0}, {3: 4.0, 4: 9.0, 5: 7.5, 6: 5.0}
    found, x, y = judging.unpaired(a, b, "points"), np.array([1, 2.5, 2]), np.array([4, 9, 7.5, 5])
    interval = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert above(found, -1.0).p == pytest.approx(stats.ttest_ind(x + 1, y, equal_var=False).pvalue)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0]])
def test_one_number_or_equal_ones_decide_nothing(values):
    figure = estimate(values)
    assert (figure.low, figure.high, figure.detectable) == (-math.inf, math.inf, None)
    assert above(figure).outcome == below(figure).outcome == not_worse(figure).outcome == "inconclusive"
    assert judged({"a": Question({"x": above(figure)})})["a"] == ("inconclusive", 1.0)


def test_one_seed_decides_nothing_whatever_else_is_drawn():
    cells = np.arange(40.0)[:, None]
    figure = judging.rank_estimate(cells, cells, "rho", [0], "spearman", over="arms")
    assert figure.low > 0.99 and above(figure).outcome == "inconclusive"
    assert (
        above(judging.rank_estimate(cells + [[0, 0]], cells + [[0, 0]], "rho", [0, 1], over="arms")).outcome == "shown"
    )


@pytest.mark.parametrize("n, sd", [(2, 1.0), (3, 0.5), (9, 2.0)])
def test_power_by_simulation(n, sd):
    effect = judging.smallest_effect(sd, n)
    x = np.random.default_rng(0).normal(effect, sd, (40_000, n))
    seen = (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05) & (x.mean(1) > 0)
    assert seen.mean() == pytest.approx(0.8, abs=0.01)


def test_a_wide_interval_is_not_a_proof_of_no_loss():
    """The rule that it replaces, mean >= -sd, calls a loss of a point harmless the more often the noisier it is."""
    x = np.random.default_rng(0).normal(-1.0, 2.0, (4000, 3))
    old = (x.mean(1) >= -x.std(1, ddof=1)).mean()
    new = np.mean([not_worse(estimate(row)).outcome == "shown" for row in x[:2000]])
    assert old > 0.6 and new < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_lies_between_nothing_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all() and (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert adjusted.min() == pytest.approx(min(1, len(p) * min(p)))
    assert (np.diff(adjusted[np.argsort(p)]) >= -1e-12).all()


def test_looks_keep_the_level():
    assert judging.look_level(3) == judging.look_level(9) == pytest.approx(1 - 0.05 / 3)
    for wrong in (0, 4, 12):
        with pytest.raises(InputError, match="expected 3 to 9 seeds"):
            judging.look_level(wrong)


def test_a_claim_needs_every_part_and_falls_with_one():
    good, bad, unclear = estimate([4.7, 4.5, 5.0]), estimate([-4.7, -4.5, -5.0]), estimate([4.0, -5.0, 6.0])
    told = judged(
        {
            "all": Question({"a": above(good), "b": above(good)}),
            "one against": Question({"a": above(good), "b": above(bad), "c": above(unclear)}),
            "one unclear": Question({"a": above(good), "b": above(unclear)}),
            "cannot": Question({"a": above(good)}, open="a reason"),
            "left": Question({}, tried=False),
        }
    )
    verdicts = [verdict for verdict, _ in told.values()]
    assert verdicts == [records.VERDICTS[1], records.VERDICTS[3], "inconclusive", "inconclusive", "not tried"]


def test_best_of_many_counts_as_many():
    figure = estimate([4.7, 4.0, 6.0])
    assert above(figure, searched=7).p == pytest.approx(min(1, 7 * above(figure).p))


# ----------------------------------------------------------------------------------------------------------------- records


CLAIMS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "data/measured/claims").glob("*.json"))}
TIMED = {"W2-28", "EX-06", "EX-07", "RE-09"}  # times of steps, not trainings
TRAINED = [name for name, record in CLAIMS.items() if record["scale"].startswith(("cpu", "gpu")) and name not in TIMED]
DECIDED = ("reproduced", "reproduced at this scale", "not reproduced at this scale", "not reproduced")


def deciding(record):
    return {name: f for name, f in record["figures"].items() if isinstance(f, dict) and "asked" in f}


def test_there_are_as_many_training_claims_as_ever():
    assert len(TRAINED) >= 54


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_verdict_has_an_interval_its_seeds_and_its_rule(name):
    record = CLAIMS[name]
    parts = deciding(record)
    assert record["judged"]["rule"] and record["judged"]["date"] and record["judged"]["commit"]
    if record["verdict"] == "not tried":
        return
    assert parts and all({"value", "low", "high", "n", "unit", "seeds", "level", "p"} <= set(f) for f in parts.values())
    if record["verdict"] == "inconclusive":
        for figure in parts.values():  # its power stands beside it, where there is a spread to tell it from
            assert "detectable" in figure or "sd" not in figure
    else:
        assert record["verdict"] in DECIDED and len(record["seeds"]) > 1
        assert record["judged"]["p"] <= 0.05 or record["verdict"] == "inconclusive"


@pytest.mark.parametrize("name", [name for name in TRAINED if CLAIMS[name]["verdict"] in DECIDED])
def test_a_decided_claim_follows_from_its_own_intervals(name):
    """Shown: every interval beyond its bound; contradicted: one of them beyond it on the other side."""
    beyond = []
    for figure in deciding(CLAIMS[name]).values():
        words, bound = figure["asked"].rsplit(" ", 1)
        side = -1 if words == "below" else 1
        edges = [side * (float(figure[key]) - float(bound)) for key in ("low", "high")]
        beyond.append("shown" if min(edges) > 0 else "contradicted" if max(edges) < 0 else "open")
        assert len(figure["seeds"]) > 1 and isinstance(figure["low"], float | int)
        if words == "not below":  # one-sided: the interval of 90 %
            beyond[-1] = "shown" if figure["p"] <= 0.05 and figure["value"] > float(bound) else beyond[-1]
    if CLAIMS[name]["verdict"].startswith("reproduced"):
        assert set(beyond) == {"shown"}
    else:
        assert "contradicted" in beyond


def test_every_changed_verdict_says_why_and_every_old_one_is_kept():
    before = pd.read_csv(ROOT / "data/measured/verdicts_before.csv")
    assert len(before) == 87 and set(before["verdict"]) <= set(records.VERDICTS)
    changes = judging.verdict_changes()
    assert (changes["reason"].str.len() > 10).all(), changes[changes["reason"].str.len() <= 10]
    assert set(changes["id"]) >= {"CB-21", "CB-24", "W2-22", "EX-11", "CB-29", "RE-04", "OU-05"}
    now = records.read_claims().set_index("id").verdict
    assert (now[["EX-11", "CB-29"]] == "not tried").all() and now["W2-04"] == "reproduced"


def test_figures_that_nobody_has_seen_say_so():
    from wssl.companion.ledger import ledger_table

    table = ledger_table(records.read_claims()).set_index("id")["where"]
    assert table["W2-24"] == "Fig 7 (figure not seen here)" and "not seen" not in table["W2-19"]
    assert all("not seen" in CLAIMS[name]["note"] for name in ("W2-24", "W2-25", "W2-26", "W2-27", "EX-04", "EX-05"))


def test_judging_leaves_the_runs_provenance(tmp_path):
    root = tmp_path / "checkout"
    (root / "nbs").mkdir(parents=True)
    (root / "settings.ini").write_text("[DEFAULT]\n")
    (root / "data/published").mkdir(parents=True)
    (root / "data/published/claims.csv").write_text("id,work,claim,where,test,scale\nW2-20,W2,gain,Table 2,seeds,cpu\n")
    path = records.write_claim("W2-20", "reproduced at this scale", {}, "cpu: x", "n.ipynb", root=root)
    old = json.loads(path.read_text()) | {"date": "2026-01-02", "environment": {"commit": "abc"}}
    path.write_text(json.dumps(old))
    question = Question({"gain": above(estimate([2.0, 1.3, 3.2]))}, rule="above 0", earlier="held", reason="holds 0")
    judging.write_judged({"W2-20": question}, "cpu: x", "n.ipynb", root)
    new = json.loads(path.read_text())
    assert (new["date"], new["environment"]) == ("2026-01-02", {"commit": "abc"})
    assert new["verdict"] == "inconclusive" and new["judged"]["earlier rule"] == "held" and new["seeds"] == [0, 1, 2]
    figure = new["figures"]["gain"]
    assert figure["low"] < 0 < figure["high"] and figure["detectable"] > 1 and figure["unit"] == "points"
    assert "80 % power from" in records.figures_text(records.read_claims(root).figures[0])


# ---------------------------------------------------------------------------------------------------------------- teachers


@given(st.floats(0.5, 0.999), st.integers(5, 400))
def test_weight_of_the_recent_steps_by_a_running_average(momentum, steps):
    average = 0.0
    for step in range(steps):
        average = momentum * average + (1 - momentum) * (step >= steps - round(0.2 * steps))
    assert recent_weight(lambda progress: momentum, steps) == pytest.approx(average, abs=1e-9)
