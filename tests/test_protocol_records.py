"""What the committed rows of the guillotine and of the protocols must hold, and the verdicts that follow from them."""

import json
from itertools import combinations

import pytest

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


def is_verdict(name, holds):
    return claim(name)["verdict"] == ("reproduced at this scale" if holds else "not reproduced at this scale")


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


def test_verdicts_of_the_guillotine(cuts):
    def gap(arm):
        return mean(cuts, arm, "classes", "h", "linear") - mean(cuts, arm, "classes", "z", "linear")

    gaps = [gap(arm) for arm in ("simclr", "alignw2", "barlow")]
    assert is_verdict("CB-12", min(gaps) > 0 and sum(gaps) / 3 > 0.05)
    top = max(mean(cuts, "classes", "classes", cut, "linear") for cut in (*CUTS, "p0", "p1"))
    aligned = top - mean(cuts, "classes", "classes", "z", "linear") <= 0.01 + 1e-9
    assert is_verdict("CB-13", aligned and min(gap("coarse"), gap("rotation")) > 0.02)


def test_verdicts_of_the_protocols(rows):
    methods = ("simclr", "alignw2", "barlow", "byol")

    def swapped(a, b):
        for one, two in combinations(methods, 2):
            first, second = (mean(rows, one, "protocols", k) - mean(rows, two, "protocols", k) for k in (a, b))
            if first * second < 0 and abs(first) > 0.01 and abs(second) > 0.01:
                return True
        return False

    assert is_verdict("CB-16", swapped("online", "linear"))
    assert is_verdict("CB-17", any(swapped(a, b) for a, b in combinations(("knn", "linear", "finetune"), 2)))
    earlier = ("stem", "stage1", "stage2", "stage3")
    worse = [
        mean(rows, arm, "place", "h")
        < min(mean(rows, "untrained", "place", "h"), max(mean(rows, arm, "place", cut) for cut in earlier))
        for arm in methods
    ]
    assert is_verdict("CB-29", all(worse))
    lost = {
        name: mean(rows, f"{name}-even", "linear") - mean(rows, f"{name}-tail", "linear")
        for name in ("simclr", "alignw2", "swav", "byol")
    }
    assert is_verdict("CB-21", all(lost[name] > lost["byol"] for name in ("simclr", "alignw2", "swav")))
