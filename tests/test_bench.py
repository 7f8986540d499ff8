"""The bench's plumbing at sizes of no interest, and what its committed record must say."""

import json
from dataclasses import replace

import pytest
import torch

from tests.bench import compare, evaluation, losses, metrics
from wssl.core.paths import project_root
from wssl.losses import nt_xent

CEILING = {"flop/s": 1e11, "bytes/s": 1e10}
AGAINST = ("losses", "metrics", "evaluation", "views", "training")


def rows_of(*cases):
    return list(compare.table(cases, CEILING, repeats=1, budget=0.0))


def simclr(peer_temperature):
    "NT-Xent against a retyped formula, in which the temperature may be another."
    views = losses.two_views(12, 6)

    def formula(z1, z2):
        z = torch.nn.functional.normalize(torch.cat([z1, z2]))
        logits = (z @ z.T / peer_temperature).fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(logits, (torch.arange(24) + 12) % 24)

    peer = compare.Peer("retyped", "torch", lambda: compare.with_gradient(formula, *views))
    ours = compare.with_gradient(lambda a, b: nt_xent(a, b, 0.2), *views)
    return compare.Case("NT-Xent", "2 x 12 x 6", ours, [peer], 1e5, 1e4)


def test_a_row_tells_ratio_floor_and_that_the_answers_agree():
    (row,) = rows_of(simclr(0.2))
    assert row["equal"] and row["value differs by"] < 1e-5 and row["gradient differs by"] < 1e-4
    assert row["ratio"] == pytest.approx(row["peer ms"] / row["ours ms"], abs=0.02)
    assert row["floor ms"] == pytest.approx(1e-3, abs=1e-3) and row["ours / floor"] > 1


def test_another_definition_is_noticed():
    (row,) = rows_of(simclr(0.25))
    assert not row["equal"]
    assert "another answer" in next(compare.complaints([row | {"ratio": 1.0}]))
    assert not list(compare.complaints([row | {"ratio": 1.0, "definition": "its temperature is 0.25"}]))


def test_slower_wants_a_reason():
    (row,) = rows_of(simclr(0.2))
    assert "no reason is given" in next(compare.complaints([row | {"ratio": 0.5}]))
    assert not list(compare.complaints([row | {"ratio": 0.5, "reason": "it does more"}]))
    assert not list(compare.complaints([row | {"ratio": 0.9}]))


def test_a_missing_or_broken_peer_is_a_row_with_its_reason():
    case = simclr(0.2)
    broken = compare.Peer("broken", "torch", lambda: 1 / 0)
    absent = compare.Peer("absent", "no_such_package", lambda: 1 / 0)
    stopped = compare.Peer("stopped", "torch", lambda: lambda: 1 / 0)
    first, second, *others = rows_of(replace(case, peers=[*case.peers, absent, broken, stopped]))
    assert first["ratio"] is not None
    assert second["ratio"] is None and "no_such_package is not installed" in second["reason"]
    assert len(others) == 2 and all(row["ratio"] is None and "division by zero" in row["reason"] for row in others)
    assert not list(compare.complaints([second, *others]))


@pytest.mark.parametrize(
    "family, size",
    [
        (losses.pairs, (12, 5)),
        (losses.swav, (12, 7)),
        (losses.dino, (12, 7)),
        (metrics.spectra, (12, 20)),
        (evaluation.neighbours, (60, 20, 8, 5)),
        (evaluation.clusters, (60, 8, 4)),
    ],
)
def test_cases_run_with_the_peers_that_are_here(family, size):
    "And where a peer of the locked environment is at hand its answer is ours."
    for row in rows_of(*family(*size)):
        assert row["equal"] in (True, None) or row["definition"], row
        assert row["ratio"] is not None or row["reason"], row


def test_the_record_explains_what_is_slower_or_differs():
    record = json.loads((project_root() / "data" / "measured" / "bench.json").read_text())
    assert set(AGAINST) <= set(record)
    for topic in AGAINST:
        assert record[topic]["rows"] and record[topic]["peers"] and record[topic]["threads"]
        assert not list(compare.complaints(record[topic]["rows"])), topic
