"""What the committed rows of the guillotine and of the protocols must hold, and the verdicts that follow from them."""

import json

import numpy as np
import pytest
from scipy import stats

from tests.checkout import ROOT
from wssl.training import TrainConfig

CUTS = {"stem", "stage1", "stage2", "stage3", "h", "z"}


def read(name):
    return json.loads((ROOT / f"data/measured/{name}.json").read_text())["rows"]


def claim(name):
    return json.loads((ROOT / f"data/measured/claims/{name}.json").read_text())


def mean(rows, arm, *keys):
    "Mean over the seeds of one number of an arm."
    values = []
    for row in rows:
        if row["arm"] == arm:
            for key in keys:
                row = row[key]
            values.append(row)
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def cuts():
    return read("guillotine")


@pytest.fixture(scope="module")
def rows():
    return read("protocols")


@pytest.mark.parametrize("name, arms", [("guillotine", 7), ("protocols", 13)])
def test_every_arm_has_every_seed_and_a_config_that_is_still_one(name, arms):
    found = read(name)
    pairs = sorted({(row["arm"], row["seed"]) for row in found})
    assert len(pairs) == len(found) == arms * len({seed for _, seed in pairs})
    for row in found:
        config = TrainConfig.from_dict(row["config"])
        assert config.seed == row["seed"] and config.source == "tar:cifar10-jpeg.tar.xz"


def test_accuracies_are_shares_and_the_untrained_network_knows_least(cuts, rows):
    for row in cuts:
        for study in (row["classes"], row.get("coarse", {})):
            assert not study or set(study) == CUTS | {"p0", "p1"}
            assert all(0 <= value <= 1 for values in study.values() for value in values.values())
    for arm in ("simclr", "alignw2", "barlow", "classes"):
        assert mean(cuts, arm, "classes", "h", "knn") > mean(cuts, "untrained", "classes", "h", "knn")
    for row in rows:
        found = row.get("protocols", {})
        assert all(
            0 <= value <= 1 for value in [*found.values(), *row.get("place", {}).values(), *row.get("by_class", [])]
        )
        assert not found or (found["mlp_best"] >= found["mlp"] and ("online" in found) == (row["arm"] != "untrained"))
        if "by_class" in row:
            assert sum(row["by_class"]) / len(row["by_class"]) == pytest.approx(row["linear"], abs=1e-5)


def test_long_tail_and_even_set_are_of_one_size(rows):
    images = {row["images"][0] for row in rows if "by_class" in row}
    assert max(images) - min(images) < 0.02 * max(images)


def by_seed(rows, arm, *keys):
    "One number of an arm, one a seed."
    found = {}
    for row in rows:
        if row["arm"] == arm:
            value = row
            for key in keys:
                value = value[key]
            found[row["seed"]] = 100 * value
    return np.array([found[seed] for seed in sorted(found)])


def outcome(parts):
    "A claim by SciPy's t test: parts are (numbers by seed, bound, side, candidates); Holm is the caller's."
    tests = [
        (side * (x.mean() - bound) > 0, min(1, k * stats.ttest_1samp(x, bound).pvalue)) for x, bound, side, k in parts
    ]
    if all(holds for holds, _ in tests):
        return True, max(p for _, p in tests)
    return False, min(1, len(tests) * min(p for holds, p in tests if not holds))


def is_judged(name, holds, p, claims_of_the_experiment):
    "The verdict follows from the p value where even the largest or the smallest of Holm's factors says the same."
    verdict = claim(name)["verdict"]
    if p * claims_of_the_experiment <= 0.05:
        return verdict == ("reproduced at this scale" if holds else "not reproduced at this scale")
    return p <= 0.05 or verdict == "inconclusive"


def test_verdicts_of_the_guillotine(cuts):
    def gap(arm, one="h", two="z"):
        return by_seed(cuts, arm, "classes", one, "linear") - by_seed(cuts, arm, "classes", two, "linear")

    mean_gap = np.mean([gap(arm) for arm in ("simclr", "alignw2", "barlow")], axis=0)
    assert is_judged("CB-12", *outcome([(mean_gap, 5, 1, 1)]), 2)
    assert claim("CB-12")["figures"]["h less z, mean over the arms"]["value"] == pytest.approx(
        mean_gap.mean(), abs=1e-4
    )
    others = [(gap(arm), 2, 1, 1) for arm in ("coarse", "rotation")]
    assert is_judged("CB-13", *outcome(others), 2)


def test_verdicts_of_the_protocols(rows):
    def lost(name):
        return by_seed(rows, f"{name}-even", "linear") - by_seed(rows, f"{name}-tail", "linear")

    less = {name: lost(name) - lost("byol") for name in ("simclr", "alignw2", "swav")}
    assert is_judged("CB-21", *outcome([(x, 0, 1, 1) for x in less.values()]), 3)
    figures = claim("CB-21")["figures"]
    for name, label in {"simclr": "SimCLR", "alignw2": "alignment + W2", "swav": "SwAV"}.items():
        assert figures[f"{label} less BYOL"]["value"] == pytest.approx(less[name].mean(), abs=1e-4)
    for name in ("CB-16", "CB-17"):  # four arms, two seeds: open by its rule, whatever tau is
        assert claim(name)["verdict"] == "inconclusive"
    assert claim("CB-29")["verdict"] == "not tried"
