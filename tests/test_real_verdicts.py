"""A decaying spectrum is not a dead one: what trained models look like is never called collapsed, what has collapsed always is."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wssl.companion.records import data_dir
from wssl.core.checks import InputError
from wssl.metrics.dead_directions import dead_directions
from wssl.metrics.diagnosis import diagnose
from wssl.metrics.pairs import tight_groups
from wssl.metrics.resampling import leave_one_out, read_rows
from wssl.metrics.spectrum import singular_spectrum


def rows(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def dead(z):
    return dead_directions(singular_spectrum(z), len(z))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([16, 64, 200]), st.floats(0, 1.5), st.floats(2, 8), st.integers(0, 2**16))
def test_a_natural_spectrum_has_no_dead_directions(m, exponent, ratio, seed):
    z = rows(int(ratio * m), m, seed) * torch.arange(1, m + 1) ** (-exponent / 2)
    assert dead(z).count == 0
    assert diagnose(z).status in ("healthy", "anisotropic")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([16, 64, 200]), st.floats(0.05, 0.9), st.floats(1.2, 8), st.floats(0, 0.03), st.integers(0, 2**16)
)
def test_a_cliff_is_counted_through_any_rotation(m, share, ratio, noise, seed):
    alive = max(8, round(share * m))  # in a plane, rows near its origin turn noise into outliers
    z = rows(int(ratio * m), m, seed) * torch.where(torch.arange(m) < alive, 1.0, noise)
    z = z @ torch.linalg.qr(rows(m, m, seed + 1))[0]
    assert dead(z).count == m - alive


def test_one_outlying_direction_kills_nobody():
    "As in language models: one direction with nearly all of the variance, and a tail that decays."
    for share in (10, 1e3):  # of the latter 99.5 %
        scale = torch.arange(1.0, 129) ** -1
        scale[0] = share
        assert dead(rows(2000, 128) * scale.sqrt()).count == 0


def test_steeper_than_any_uniformity_is_dead():
    steep = dead(rows(2000, 128) * torch.exp(-torch.arange(128) / 10))
    assert steep.count > 70 and steep.low <= steep.count <= steep.high


def test_too_few_rows_say_nothing_and_rank_says_all():
    assert dead(rows(100, 128)) is None and dead(rows(135, 128)) is None
    subspace = rows(100, 20) @ rows(20, 128, 1)
    assert dead(subspace).count == 108
    for wrong in (torch.zeros(3), torch.empty(0)):
        with pytest.raises(InputError, match="eigenvalues in descending order"):
            dead_directions(wrong, 10)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_rounding_revives_nobody(precision):
    z = (rows(2000, 64) * (torch.arange(64) < 40)) @ torch.linalg.qr(rows(64, 64, 1))[0]
    assert diagnose(z.to(precision)).values["dead directions"].value == 24


def test_what_the_architecture_forbids_is_no_collapse():
    small = F.layer_norm(rows(600, 12), (12,))  # one direction of twelve is more than a twentieth
    found = diagnose(small)
    assert found.status == "healthy" and found.values["dead directions"].value == 1 and "forbidden" in found.sentence
    assert diagnose(rows(600, 12).softmax(1)).values["dead directions"].value <= 1
    assert diagnose(rows(600, 12) @ rows(12, 11, 1) @ rows(11, 12, 2)).status == "dimensional collapse"


def test_groups_are_about_the_mean():
    assert tight_groups(rows(5000, 512).relu()).number > 5000
    assert tight_groups(rows(5000, 64).sigmoid()).number > 2000
    centres = F.normalize(rows(21, 128, 3), dim=1)
    tight = tight_groups(centres[torch.arange(4000) % 21] + 0.1 * F.normalize(rows(4000, 128, 4), dim=1))
    assert 20 <= tight.number <= 45 and tight.tightness > 0.7
    assert tight_groups(torch.ones(50, 8)).tightness == 0


def test_a_space_where_uniformity_was_asked_for():
    z = rows(2000, 64) * 0.25 + F.normalize(torch.ones(64), dim=0) * 8 * 0.9
    assert diagnose(z).status == "anisotropic"
    assert diagnose(z, space="embedding").status == "constant collapse"
    decaying = rows(2000, 64) * torch.arange(1, 65) ** -0.5
    assert "the loss asked for 64" in diagnose(decaying, space="embedding").sentence
    assert any("of m, as in" in note for note in diagnose(decaying).notes)
    with pytest.raises(InputError, match="space representation or embedding"):
        diagnose(z, space="latent")


def test_a_real_sentence_model_is_not_collapsed():
    z = np.load(data_dir() / "measured" / "minilm_sentences.npz")["embeddings"]
    found = diagnose(z)
    assert found.status == "anisotropic" and found.values["dead directions"].value == 3
    assert found.values["effective dimensions"].value / 384 == pytest.approx(0.6, abs=0.03)


def test_every_trained_model_of_the_atlas_that_has_no_null_space_is_anisotropic_or_healthy():
    "By the spectra of the table, thinned as they are: those with eigenvalues of exactly 0 are named, and no other is."
    table = json.loads((data_dir() / "measured" / "atlas.json").read_text())["rows"]
    empty = {row["name"] for row in table if row["trained"] and row["directions below 1e-6"] >= 0.05 * row["m"]}
    assert empty == {"dlib ResNet, faces", "Resemblyzer, voices"}
    for row in table:
        if row["trained"] and not row["directions below 1e-6"] >= 0.05 * row["m"]:
            ranks, values = np.array(row["ranks"]), np.array(row["spectrum"])
            reached = values[ranks <= 0.95 * row["m"]]  # a few forbidden or dead ones may come behind
            assert reached[-1] > 0.06 * row["m"] / ranks[len(reached) - 1] ** 2, row["name"]


def test_first_order_jackknife_is_the_exact_one_where_rows_are_many():
    z = rows(1500, 48) * torch.arange(1, 49) ** -0.5
    reading = read_rows(z)
    spread = {"first order": [], "exact": []}
    for number, (values, _, _) in enumerate(leave_one_out(reading)):
        spread["first order"].append(values.sqrt().sum().item())
        spread["exact"].append(reading.without(number).whole()[0].sqrt().sum().item())
    first, exact = (np.std(each) for each in spread.values())
    assert first == pytest.approx(exact, rel=0.1)
