"""Cluster scores against scikit-learn, counting by hand and every matching; the layers of a projector; degenerate input."""

import math
import subprocess
import sys
import warnings
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from torch import nn

from wssl.evaluation import cluster_study, coarse_labels, projector_layers
from wssl.evaluation.cluster_study import CIFAR100_SUPERCLASSES
from wssl.metrics import (
    ClusterScores,
    cluster_scores,
    partition_scores,
    relative_cluster_sizes,
    silhouettes,
    size_summary,
)
from wssl.metrics.clustering import kmeans_labels
from wssl.models import projector


def _data(n=120, m=6, classes=4, seed=0, apart=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(classes, m, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % classes
    return (centres[y] + torch.randn(n, m, generator=generator, dtype=torch.float64)).to(dtype), y


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), n=st.integers(2, 40), k=st.integers(1, 9))
def test_sizes_by_counting(seed, n, k):
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    counts = [labels.count(j) for j in range(k)]
    assert relative_cluster_sizes(labels, k).tolist() == pytest.approx([k * count / n for count in counts])
    found = size_summary(labels, k)
    share = [count / n for count in counts]
    entropy = -sum(p * math.log(p) for p in share if p) / math.log(k) if k > 1 else 1.0
    assert found == pytest.approx(
        {
            "empty": counts.count(0) / k,
            "entropy": entropy,
            "tv": sum(max(p - 1 / k, 0) for p in share),  # what lies above the uniform law
            "largest": k * max(counts) / n,
            "smallest": k * min(counts) / n,
        },
        abs=1e-12,
    )


def _pairs(clusters, labels):
    "ARI of Hubert and Arabie by the four kinds of pairs."
    n = len(labels)
    same = [(clusters[i] == clusters[j], labels[i] == labels[j]) for i in range(n) for j in range(i)]
    a = sum(u and v for u, v in same)
    ours, true, total = sum(u for u, _ in same), sum(v for _, v in same), len(same)
    expected = ours * true / total
    return (a - expected) / ((ours + true) / 2 - expected)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), n=st.integers(4, 30), k=st.integers(2, 5), classes=st.integers(2, 5))
def test_partition_by_every_matching_and_every_pair(seed, n, k, classes):
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(k, (n,), generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    found = partition_scores(clusters, labels)
    width = max(k, classes)  # a cluster beyond the classes is matched to nothing
    best = max(
        sum(order[c] == y for c, y in zip(clusters.tolist(), labels.tolist(), strict=True))
        for order in permutations(range(width), k)
    )
    assert found["acc"] == pytest.approx(best / n)
    commonest = [max(labels[clusters == j].bincount().tolist()) for j in clusters.unique().tolist()]
    assert found["purity"] == pytest.approx(sum(commonest) / n)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    if 1 < len(clusters.unique()) < n and 1 < len(labels.unique()) < n:  # else there are no pairs to speak of
        assert found["ari"] == pytest.approx(_pairs(clusters.tolist(), labels.tolist()), abs=1e-9)
    assert found["acc"] <= found["purity"] + 1e-12
    relabelled = torch.randperm(50, generator=generator)
    assert partition_scores(relabelled[clusters], relabelled[labels]) == pytest.approx(found)


@pytest.mark.parametrize("n,m,classes", [(60, 3, 2), (200, 16, 7), (90, 300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silhouettes_are_those_of_sklearn(n, m, classes, dtype):
    z, y = _data(n, m, classes, dtype=dtype)
    expected = silhouette_samples(z.double().numpy(), y.numpy(), metric="cosine")
    for chunk in (7, 512):
        np.testing.assert_allclose(
            silhouettes(3 * z, y, chunk).numpy(), expected, atol=1e-6 if dtype is torch.float32 else 1e-12
        )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 9999),
    n=st.integers(3, 24),
    m=st.integers(1, 5),
    classes=st.integers(2, 6),
    zeros=st.integers(0, 2),
)
def test_silhouettes_by_loops(seed, n, m, classes, zeros):
    "Unequal classes, some of a single row, rows of zeros: at distance 1 from all others and 0 from themselves."
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, m, generator=generator, dtype=torch.float64)
    z[:zeros] = 0
    y = torch.randint(classes, (n,), generator=generator)
    y[0], y[1] = 0, 1
    rows = [row / row.norm() if row.norm() > 0 else row for row in z]
    distance = [[0.0 if i == j else float(1 - rows[i] @ rows[j]) for j in range(n)] for i in range(n)]
    distance = [[d if d > 1e-12 else 0.0 for d in row] for row in distance]
    for i, found in enumerate(silhouettes(z, y, chunk=5).tolist()):
        groups = {c: [distance[i][j] for j in range(n) if j != i and y[j] == c] for c in y.unique().tolist()}
        own = groups.pop(int(y[i]))
        a = sum(own) / len(own) if own else 0.0
        b = min(sum(group) / len(group) for group in groups.values())
        expected = (b - a) / max(a, b) if own and max(a, b) > 0 else 0.0
        assert found == pytest.approx(expected, abs=1e-9)


def test_same_rows_have_no_sign():
    "All distances are rounding: 0, not the sign of the rounding."
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        z = torch.full((200, 33), 0.1, dtype=dtype) * torch.linspace(1, 9, 200, dtype=dtype).unsqueeze(1)
        assert silhouettes(z, torch.arange(200) % 3).abs().max() == 0
        assert silhouettes(torch.zeros(6, 3, dtype=dtype), [0, 0, 0, 1, 1, 1]).abs().max() == 0


def test_scores_are_kmeans_on_unit_rows_and_the_true_classes():
    z, y = _data(n=300, apart=0.7)
    found = cluster_scores(z, y, n_init=4, seed=7)
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    clusters = KMeans(4, n_init=4, random_state=7).fit_predict(unit)
    s = silhouette_samples(unit, y.numpy(), metric="cosine")
    assert found.ari == pytest.approx(adjusted_rand_score(y, clusters))
    assert found.nmi == pytest.approx(normalized_mutual_info_score(y, clusters))
    assert (found.silhouette, found.silhouette_std) == pytest.approx((s.mean(), s.std()))
    assert found == cluster_scores(z, y, n_init=4, seed=7)
    scaled = z * torch.linspace(0.01, 100, 300).unsqueeze(1)
    assert list(asdict(cluster_scores(scaled, y, n_init=4, seed=7)).values()) == pytest.approx(
        list(asdict(found).values()), abs=1e-9
    )
    assert isinstance(found, ClusterScores) and all(type(value) is float for value in asdict(found).values())


def test_number_of_clusters():
    "As many as classes occur, whatever they are called; or as many as asked for."
    z, y = _data(n=200, apart=6.0)
    assert cluster_scores(z, 10 * y + 3).acc == cluster_scores(z, y, k=4).acc == 1
    assert cluster_scores(z, y, k=2).acc == 0.5
    assert len(kmeans_labels(z, 9).unique()) == 9


@pytest.mark.parametrize("rows", [torch.ones(12, 3), torch.zeros(12, 3)])
def test_constant_rows_score_as_chance_without_a_warning(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster_scores(rows, torch.arange(12) % 3)
    assert asdict(found) == {"ari": 0, "nmi": 0, "acc": pytest.approx(1 / 3), "silhouette": 0, "silhouette_std": 0}


def test_as_many_classes_as_rows():
    found = cluster_scores(torch.eye(5), torch.arange(5))
    assert (found.acc, found.ari, found.silhouette) == (1, 1, 0)


def test_balance_bounds_the_mutual_information():
    "A pure partition into equal clusters reaches 2 H / (H + ln K), and no balanced one passes it."
    y = torch.arange(4).repeat_interleave(torch.tensor([40, 24, 8, 8]))
    share = [40 / 80, 24 / 80, 8 / 80, 8 / 80]
    h = -sum(p * math.log(p) for p in share)
    pure = torch.arange(10).repeat_interleave(8)
    assert partition_scores(pure, y)["nmi"] == pytest.approx(2 * h / (h + math.log(10)))
    for seed in range(20):
        other = pure[torch.randperm(80, generator=torch.Generator().manual_seed(seed))]
        assert partition_scores(other, y)["nmi"] < 2 * h / (h + math.log(10))


def test_bad_input_is_one_sentence():
    z, y = _data()
    unlabelled = torch.where(y == 2, -1, y)
    nan = z.clone()
    nan[3, 1] = torch.nan
    for call in (
        lambda: cluster_scores(z, y[:3]),
        lambda: cluster_scores(z, unlabelled),
        lambda: cluster_scores(z, torch.zeros_like(y)),
        lambda: cluster_scores(z, y, k=121),
        lambda: cluster_scores(z, y, k=0),
        lambda: cluster_scores(z, y, n_init=0),
        lambda: cluster_scores(nan, y),
        lambda: cluster_scores(z[0], y),
        lambda: cluster_scores(z, y.double()),
        lambda: silhouettes(z[:0], y[:0]),
        lambda: partition_scores(y, unlabelled),
        lambda: partition_scores(y, y[:5]),
        lambda: partition_scores([], []),
        lambda: relative_cluster_sizes([0, 1, 4], 4),
        lambda: relative_cluster_sizes([0, -1], 4),
        lambda: relative_cluster_sizes(torch.zeros(0, dtype=torch.long), 4),
        lambda: size_summary([0, 1], 0),
        lambda: cluster_study({}, y),
        lambda: cluster_study({"h": z}, unlabelled),
        lambda: cluster_study({"h": z}, y, coarse=torch.zeros_like(y)),
        lambda: projector_layers(nn.Identity(), z[0]),
        lambda: coarse_labels(torch.tensor([0, 2]), ("cat", "truck")),
    ):
        with pytest.raises(ValueError, match=r"^expected .*; received "):
            call()


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("bn,last_bn", [(True, False), (False, False), (True, True)])
def test_layers_of_a_projector(layers, bn, last_bn):
    "Against the same network with ReLUs that are not in place, stopped after each of them."
    torch.manual_seed(0)
    head = projector(5, 16, 3, layers=layers, bn=bn, last_bn=last_bn)
    for part in head.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    h = torch.randn(40, 5, requires_grad=True)
    state, before = {name: value.clone() for name, value in head.state_dict().items()}, h.detach().clone()
    found = projector_layers(head, h)
    assert list(found) == ["h", *[f"p{i}" for i in range(layers - 1)], "z"]
    x, expected = before, [before]
    for step in head.eval():
        x = x.clamp(min=0) if isinstance(step, nn.ReLU) else step(x.clone())
        if isinstance(step, nn.ReLU):
            expected.append(x)
    for layer, value in zip(found.values(), [*expected, x], strict=True):
        torch.testing.assert_close(layer, value.detach())
        assert not layer.requires_grad
    assert all(torch.equal(state[name], value) for name, value in head.state_dict().items())
    assert h.requires_grad and torch.equal(h.detach(), before)


def test_a_relu_after_what_is_kept_changes_nothing():
    h = torch.randn(9, 4)
    before = h.clone()
    found = projector_layers(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU(inplace=True), nn.Linear(4, 2)), h)
    assert list(found) == ["h", "p0", "p1", "z"] and torch.equal(found["h"], before) and torch.equal(h, before)


def test_other_projectors_and_their_modes():
    h = torch.randn(9, 4)
    assert list(projector_layers(nn.Identity(), h)) == ["h", "z"]
    head = projector(4, 8, 2).train()
    head[1].eval()
    projector_layers(head, h)
    assert head.training and not head[1].training


def test_study_of_layers():
    z, y = _data(n=200, apart=2.0)
    study = cluster_study({"h": z, "z": torch.ones_like(z)}, y, coarse=y % 2, seed=3)
    assert {name: list(scores)[:5] for name, scores in study.items()}["h"] == list(asdict(cluster_scores(z, y)))
    assert study["h"] == pytest.approx(
        asdict(cluster_scores(z, y, seed=3))
        | {f"coarse_{key}": value for key, value in asdict(cluster_scores(z, y % 2, seed=3)).items()}
    )
    assert study["z"]["ari"] == study["z"]["silhouette"] == 0 and study["z"]["coarse_acc"] == 0.5
    assert set(cluster_study({"h": z}, y)["h"]) == set(asdict(cluster_scores(z, y)))
    assert all(type(value) is float for scores in study.values() for value in scores.values())


def test_superclasses():
    names = [name for group in CIFAR100_SUPERCLASSES.values() for name in group.split()]
    assert len(set(names)) == 100 and len(CIFAR100_SUPERCLASSES) == 20
    shuffled = tuple(names[i] for i in torch.randperm(100, generator=torch.Generator().manual_seed(0)))
    table = dict(zip(shuffled, coarse_labels(torch.arange(100), shuffled).tolist(), strict=True))
    assert (
        table["rose"] == table["tulip"] != table["maple_tree"] == table["willow_tree"]
        and table["bus"] == table["train"]
    )
    stl10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    assert coarse_labels(torch.tensor([0, 1, -1, 2, 9, 7]), stl10).tolist() == [1, 0, -1, 1, 1, 0]
    assert coarse_labels(torch.tensor([0, 1]), ("cat", "dog")) is None  # one superclass is no coarser level
    assert coarse_labels(torch.tensor([0, 1]), ()) is None


def test_metrics_are_imported_without_scikit_learn():
    code = "import sys, wssl.metrics, wssl.evaluation.cluster_study; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
