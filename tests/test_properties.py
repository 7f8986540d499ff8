"""The axioms as checks: metrics whose answers are known, in value, sign and size."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from wssl.metrics.alignment_uniformity import uniformity
from wssl.theory.properties import check_properties, property_batches

FLAGS = ("ipc", "icc", "fcc", "fcc_renormalised", "fbc")


def flags(result):
    return tuple(getattr(result, name) for name in FLAGS)


def w2_from_moments(z):
    """Equation 8 of Fang et al. 2024 in numpy, 1/n covariance, rows as they come."""
    z = z.numpy()
    mean, m = z.mean(0), z.shape[1]
    roots = np.sqrt(np.clip(np.linalg.eigvalsh((z - mean).T @ (z - mean) / len(z)), 0, None))
    return math.sqrt(max(0.0, mean @ mean + 1 + (roots**2).sum() - 2 / math.sqrt(m) * roots.sum()))


def test_table_1_of_the_paper():
    """L_U has IPC alone, W2 has all four (Theorems 1 and 3)."""
    assert flags(check_properties(partial(uniformity, normalize=False))) == (True, False, False, False, False)
    assert flags(check_properties(w2_from_moments)) == (True,) * 5
    assert flags(check_properties(lambda z: -w2_from_moments(z), higher_is_better=True)) == (True,) * 5
    assert flags(check_properties(lambda z: -w2_from_moments(z)))[2:] == (False, False, False)


def test_covariance_by_n_minus_1_loses_cloning():
    def unbiased(z):
        return torch.linalg.eigvalsh(torch.cov(z.T)).clamp_min(0).sqrt().sum()

    result = check_properties(unbiased, tolerance=1e-9)
    assert result.ipc and not result.icc
    n = 256
    line = result.table.query("property == 'ICC' and batch == 'isotropic'").iloc[0]
    shrink = math.sqrt((2 * n / (2 * n - 1)) / (n / (n - 1)))
    assert line.violation == pytest.approx(line.before * (1 - shrink), rel=1e-6)


def test_sizes_of_violations_are_the_closed_forms():
    result = check_properties(partial(uniformity, normalize=False)).table
    n = 256
    for batch, z in property_batches().items():
        weight = torch.pdist(z).square().mul(-2).exp().sum().item()
        line = result[(result.batch == batch) & (result.property == "ICC")].iloc[0]
        assert line.violation == pytest.approx(
            math.log((4 * n * weight - 4 * weight + n * n - n) / (4 * n * weight - 2 * weight)), rel=1e-6
        )
        # feature cloning as printed: the same batch at t = 4, which looks more uniform
        line = result[(result.batch == batch) & (result.property == "FCC")].iloc[0]
        assert line.after == pytest.approx(uniformity(z, t=4.0, normalize=False).item(), rel=1e-9)
        assert line.worse < 0 and line.violation == -line.worse
        # zero features and re-normalised clones: nothing moves at all
        blind = result[(result.batch == batch) & result.property.isin(["FBC", "FCC re-normalised"])]
        assert (blind.worse.abs() < 1e-9).all() and not blind.holds.any()


def test_w2_moves_by_the_closed_form():
    """Unit rows, k = m zeros: W2^2 = 2 - (2 / sqrt(m + k)) tr S^(1/2), as for re-normalised clones."""
    table = check_properties(w2_from_moments).table
    for batch in property_batches():
        before = table[table.batch == batch].before.iloc[0]
        after = math.sqrt(2 - (2 - before**2) / math.sqrt(2))
        lines = table[
            (table.batch == batch)
            & (table.property.isin(["FCC re-normalised", "FBC"]))
            & (table.change != "1 zero feature more")
        ]
        assert len(lines) == 2
        np.testing.assert_allclose(lines.after, after, rtol=1e-7)  # roots of rounded zeros


def test_one_bad_batch_is_enough_to_fail():
    batches = property_batches(n=64, m=4)
    seen = batches["clustered"].clone()

    def order_matters_there(z):
        return float(
            z.shape[1]
            + (z[0, 0] if len(z) == 64 and torch.equal(z.sort(0).values[:, 0], seen.sort(0).values[:, 0]) else 0)
        )

    result = check_properties(order_matters_there, batches=batches)
    assert not result.ipc
    assert result.table.query("property == 'IPC'").holds.sum() == 2


def test_infinite_and_nan_values():
    assert flags(check_properties(lambda z: math.inf)) == (True, True, False, False, False)
    assert flags(check_properties(lambda z: math.inf if z.shape[1] > 16 else 1.0)) == (True,) * 5
    assert flags(check_properties(lambda z: math.nan)) == (False,) * 5


def test_deterministic_and_shown():
    a, b = check_properties(w2_from_moments), check_properties(w2_from_moments)
    assert a.table.equals(b.table)
    assert not a.table.equals(check_properties(w2_from_moments, seed=1).table)
    html = check_properties(partial(uniformity, normalize=False))._repr_html_()
    assert "<table" in html and "<b>no</b>" in html
    assert "w2_from_moments" in str(a)
    assert list(a.summary.index) == ["IPC", "ICC", "FCC", "FCC re-normalised", "FBC"]


@pytest.mark.parametrize("metric", [lambda z: z.mean(0), lambda z: None, lambda z: z.numpy()[:2], lambda z: "0"])
def test_a_metric_that_is_no_number(metric):
    with pytest.raises(ValueError, match="^expected a metric that returns one number; received"):
        check_properties(metric)
