"""The sphere experiment: its headline numbers with a seed of their own, and what the committed record must hold."""

import json
import math

import pandas as pd
import pytest
import torch

from tests.checkout import ROOT
from wssl.balance import Centering, ClusterBalancer, sinkhorn_knopp
from wssl.core.seeds import generator
from wssl.data.synthetic import sphere_mixture

K, BATCH = 256, 4
EXPECTED = {"none": 0.43, "sinkhorn": 0.23, "excb": 0.02}  # facts of the issue; DINO centring has no published value


@pytest.fixture(scope="module")
def z():
    x, _, centroids = sphere_mixture(20_000, K, generator=generator(11, "test"))
    return x @ centroids.T


def batches(z, steps):
    return z[torch.randint(len(z), (steps, BATCH), generator=generator(12, "test"))]


def tv(labels):
    "Total variation to uniform, from sorted labels and Python numbers."
    counts = [0] * K
    for label in labels.flatten().tolist():
        counts[label] += 1
    return math.fsum(abs(n / labels.numel() - 1 / K) for n in counts) / 2


def test_without_balancing_the_clusters_are_as_uneven_as_the_mixture(z):
    assert tv(z.argmax(1)) == pytest.approx(EXPECTED["none"], abs=0.03)


def test_sinkhorn_in_a_batch_of_four_balances_half_of_it(z):
    labels = torch.stack([sinkhorn_knopp(scores).argmax(1) for scores in batches(z, 5_000)])
    assert tv(labels) == pytest.approx(EXPECTED["sinkhorn"], abs=0.03)


def test_excb_balances_at_batch_four(z):
    """Over the last 5,000 of 11,000 steps, since the average remembers 1,000."""
    balancer, labels = ClusterBalancer(K), []
    for scores in batches(z, 11_000):
        labels.append(balancer(scores).argmax(1))
        balancer.update(labels[-1])
    assert tv(torch.stack(labels[-5_000:])) == pytest.approx(EXPECTED["excb"], abs=0.015)


def test_centring_hardly_balances(z):
    centering, labels = Centering(K), []
    for scores in batches(z, 5_000):
        labels.append(centering(scores).argmax(1))
        centering.update(scores)
    assert 0.33 < tv(torch.stack(labels)) < EXPECTED["none"]


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "data/measured/balance_sphere.json").read_text())


@pytest.fixture(scope="module")
def rows(record):
    return pd.DataFrame(record["rows"])


METHODS = ["none", "dino", "sinkhorn", "excb", "excb-gamma2", "excb-gamma4"]


def test_the_record_holds_every_arm_batch_and_seed(record, rows):
    for k in (64, 256):
        for batch in (4, 8, 64, 1024):
            part = rows[(rows.K == k) & (rows.batch == batch)]
            own = ["excb-m99"] + ["sinkhorn-queue"] * (batch < 1024) if k == K else []  # arms of the main setting alone
            arms = METHODS + own
            assert sorted(zip(part.method, part.seed, strict=True)) == sorted((m, s) for m in arms for s in range(3))
    assert (rows.steps * rows.batch <= 100_000).all() and (rows.steps * rows.batch > 99_000).all()
    assert {"method", "seed", "step", "tv", "entropy", "empty", "largest", "churn", "sizes"} <= set(record["curves"][0])
    assert {r["momentum"] for r in record["recovery"]} == {0.9, 0.99, 0.999}


def test_the_rows_of_the_record_agree_with_themselves(rows):
    numbers = rows[["tv", "empty", "entropy", "largest", "smallest", "churn", "nmi", "ari"]]
    assert numbers.notna().all(axis=None)
    assert rows[["tv", "empty", "entropy", "churn", "nmi"]].stack().between(0, 1).all()
    assert (rows.smallest <= 1).all() and (rows.largest >= 1).all()
    assert (rows.tv >= (rows.largest - 1) / rows.K - 1e-6).all()  # one cluster's excess is part of the whole
    assert ((rows["empty"] > 0) == (rows.smallest == 0)).all()
    assert rows.instant.isna().equals(rows.method.str.startswith("sinkhorn"))


def test_the_headline_of_the_record(rows):
    tv = rows[rows.K == K].groupby(["method", "batch"]).tv.mean().unstack()
    for name, value in EXPECTED.items():
        assert tv[BATCH][name] == pytest.approx(value, abs=0.03)
    assert EXPECTED["none"] > tv[BATCH]["dino"] > 0.33
    assert tv.loc["sinkhorn"].is_monotonic_decreasing and tv[1024]["sinkhorn"] < 0.1  # the gap closes with the batch
    assert tv.loc["excb-m99"].max() < 0.035 and tv.loc["excb", [4, 8, 64]].max() < 0.035  # and is never there


def test_the_offset_falls_as_one_over_gamma(rows):
    tv = rows[rows.batch == 8].groupby(["K", "method"]).tv.mean().unstack()
    for gamma in (2, 4):
        assert (tv["excb"] / tv[f"excb-gamma{gamma}"] / gamma - 1).abs().max() < 0.2


def test_balance_and_agreement_disagree_only_on_imbalanced_components(record, rows):
    zipf = rows[(rows.K == K) & (rows.batch == 64)].groupby("method")[["tv", "ari", "nmi"]].mean()
    even = pd.DataFrame(record["even components"]).groupby("method")[["tv", "ari", "nmi"]].mean()
    assert zipf.tv["excb"] < zipf.tv["none"] and zipf.ari["excb"] < 0.5 * zipf.ari["none"]
    assert zipf.nmi["excb"] < zipf.nmi["none"] and abs(even.ari["excb"] - even.ari["none"]) < 0.1


def test_curves_and_rows_come_from_the_same_runs(record, rows):
    main = rows[(rows.K == K) & (rows.batch == BATCH)].set_index(["method", "seed"])
    for curve in record["curves"]:
        sizes, row = torch.tensor(curve["sizes"]), main.loc[(curve["method"], curve["seed"])]
        assert len(sizes) == K and sizes.mean().item() == pytest.approx(1, abs=1e-4)
        assert (sizes - 1).abs().sum().item() / 2 / K == pytest.approx(row.tv, abs=1e-4)
        assert sizes.max().item() == pytest.approx(row.largest, rel=1e-4)
