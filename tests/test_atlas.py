"""The atlas's committed table and example, and the numbers that it is made of; the models themselves run outside CI (`python -m tests.atlas`)."""

import json

import numpy as np
import pytest
import torch

from tests.atlas.measure import numbers
from tests.checkout import ROOT

ROWS = json.loads((ROOT / "data/measured/atlas.json").read_text())["rows"]


def test_numbers_of_rows_whose_spectrum_is_known():
    """Three even directions of five, no mean, one feature that never varies."""
    basis = torch.eye(5)[:3]
    found = numbers(torch.cat([basis, -basis]).numpy())
    assert found["effective rank"] == pytest.approx(3) and found["participation"] == pytest.approx(3)
    assert found["directions below 1e-6"] == found["features that never vary"] == 2
    assert found["mean length"] == pytest.approx(0, abs=1e-12)
    assert found["ranks"] == [1, 2, 3, 4, 5] and found["spectrum"] == pytest.approx([5 / 3] * 3 + [0, 0], abs=1e-3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_row_names_its_pinned_package_and_agrees_with_its_spectrum(row):
    assert "==" in row["package"] and row["input"] and row["last layer"] and 2 <= row["n"]
    assert row["spectrum"] == sorted(row["spectrum"], reverse=True) and len(row["spectrum"]) <= 128
    assert row["spectrum"][0] == pytest.approx(row["first"], rel=1e-3)
    assert 1 <= row["participation"] <= row["effective rank"] * 1.0001 <= row["m"] * 1.001


def test_fifteen_trained_representations_and_untrained_twins():
    assert sum(row["trained"] for row in ROWS) >= 15 and not all(row["trained"] for row in ROWS)
    assert len({row["name"] for row in ROWS}) == len(ROWS)


def test_the_example_is_part_of_its_row():
    z = np.load(ROOT / "data/measured/minilm_sentences.npz")["embeddings"]
    row = next(row for row in ROWS if row["name"] == "MiniLM-L6, sentences")
    assert z.dtype == np.float16 and z.shape == (1200, row["m"])
    assert numbers(z)["mean length"] == pytest.approx(row["mean length"], abs=0.02)
