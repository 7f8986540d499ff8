"""Weighted nearest neighbours against scikit-learn, and against the rule typed with its loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from wssl.data import Augmentation, Images
from wssl.evaluation import (
    cluster_study,
    evaluating,
    extract_features,
    knn_accuracy,
    knn_predict,
    knn_votes,
    linear_probe,
    linear_probe_with_views,
    mlp_probe,
    projector_layers,
    protocols,
    semi_supervised,
    top_k_accuracy,
)
from wssl.evaluation.collapse_study import collapse_study
from wssl.evaluation.knn import nearest
from wssl.evaluation.layers import standardized


def _data(n=120, t=50, d=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (n + t,), generator=generator)
    h = centres[y] + torch.randn(n + t, d, generator=generator, dtype=torch.float64)
    return h[:n], y[:n], h[n:], y[n:]


@pytest.mark.parametrize("k", [1, 7, 50, 120])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_same_votes_as_sklearn(k, temperature):
    train_h, train_y, test_h, _ = _data()
    known, unknown = ((h / h.norm(dim=1, keepdim=True)).numpy() for h in (train_h, test_h))
    reference = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature), algorithm="brute")
    expected = reference.fit(known, train_y.numpy()).predict(unknown)
    assert knn_predict(train_h, train_y, test_h, k, temperature).tolist() == expected.tolist()


@pytest.mark.parametrize("k", [1, 2, 5, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_majority_is_that_of_sklearn(k, dtype):
    "Features far from the origin, of different scales, un-normalised; scikit-learn gives ties to the class that comes first."
    train_h, train_y, test_h, test_y = _data(d=4)
    scale = torch.tensor([5.0, 1.0, 0.3, 2.0], dtype=torch.float64)
    train_h, test_h = ((30 + h * scale).to(dtype) for h in (train_h, test_h))
    reference = KNeighborsClassifier(k, algorithm="brute").fit(train_h.numpy(), train_y.numpy())
    predicted = knn_predict(train_h, train_y, test_h, k, vote="majority", chunk=7)
    shares = np.sort(reference.predict_proba(test_h.numpy()), 1)
    decided = shares[:, -1] > shares[:, -2]
    assert (predicted.numpy() == reference.predict(test_h.numpy()))[decided].all() and decided.mean() > 0.4
    assert knn_accuracy(train_h, train_y, test_h, test_y, k, vote="majority") == (predicted == test_y).double().mean()


def _by_loops(train_h, train_y, row, k, vote, temperature=0.1):
    """Classes that got a vote, most votes first; ties: the nearest row's class, then that of the earlier row."""
    if vote == "cosine":
        near = [float(row @ h / row.norm() / h.norm()) for h in train_h]
    else:
        near = [-float((row - h).square().sum()) for h in train_h]
    voters = sorted(range(len(train_h)), key=lambda i: -near[i])[:k]
    votes, first = {}, {}
    for i in voters:
        label = int(train_y[i])
        votes[label] = votes.get(label, 0) + (math.exp(near[i] / temperature) if vote == "cosine" else 1)
        first.setdefault(label, (-near[i], i))
    return sorted(votes, key=lambda label: (-votes[label], first[label]))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999), k=st.integers(1, 12), top=st.integers(1, 4), vote=st.sampled_from(["cosine", "majority"])
)
def test_ties_and_guesses_by_loops_whatever_the_classes_are_called(seed, k, top, vote):
    draw = torch.Generator().manual_seed(seed)
    train_h, test_h = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (25, 20))
    train_y, test_y = (torch.randint(4, (n,), generator=draw) for n in (25, 20))
    train_y[0] = 3
    orders = [_by_loops(train_h, train_y, row, k, vote) for row in test_h]
    predicted = knn_predict(train_h, train_y, test_h, k, vote=vote, chunk=7)
    assert predicted.tolist() == [order[0] for order in orders]
    right = [int(label) in order[:top] for order, label in zip(orders, test_y, strict=True)]
    assert knn_accuracy(train_h, train_y, test_h, test_y, k, vote=vote, top=top) == pytest.approx(np.mean(right))
    names = torch.randperm(4, generator=draw)
    renamed = knn_predict(train_h, names[train_y], test_h, k, vote=vote)
    assert renamed.tolist() == names[predicted].tolist()
    assert knn_accuracy(train_h, names[train_y], test_h, names[test_y], k, vote=vote, top=top) == pytest.approx(
        np.mean(right)
    )


def test_rows_that_are_the_same_and_called_differently():
    """Equal votes, equally near: the earlier row decides, not the name."""
    h, test_h = torch.ones(2, 3), torch.ones(4, 3)
    for labels in ([0, 1], [1, 0], [5, 2], [2, 5]):
        for vote in ("cosine", "majority"):
            y = torch.tensor(labels)
            assert knn_predict(h, y, test_h, 2, vote=vote).tolist() == [labels[0]] * 4
            assert knn_accuracy(h, y, test_h, torch.full((4,), labels[0]), 2, vote=vote) == 1


def test_a_class_without_a_vote_is_no_guess():
    """The three nearest rows are of class 5; class 0 has none of them and is no second guess."""
    h, y = torch.eye(6).repeat(3, 1), torch.arange(6).repeat(3)
    test_h = torch.eye(6)[5:].expand(6, -1)
    for vote in ("cosine", "majority"):
        for top in (1, 2, 5):
            found = [knn_accuracy(h, y, test_h[:1], torch.tensor([c]), 3, vote=vote, top=top) for c in range(6)]
            assert found == [0, 0, 0, 0, 0, 1]
        assert knn_votes(h, y, test_h[:1], 3, vote=vote)[0, :5].tolist() == [0] * 5
    far = torch.tensor([[1.0, 0.0], [-1.0, 1e-3]])  # a weight of exp(-2 / 0.001) is 0 in float32, and still a vote
    assert knn_accuracy(far, torch.tensor([0, 3]), far[:1], torch.tensor([3]), 2, 1e-3, top=2) == 1
    assert knn_accuracy(far, torch.tensor([0, 3]), far[:1], torch.tensor([1]), 2, 1e-3, top=3) == 0


BROKEN = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


@pytest.mark.parametrize("value", BROKEN)
def test_features_that_are_not_finite_are_refused_by_name(value):
    train_h, train_y, test_h, test_y = (x[:40] for x in _data(d=4))
    bad = {"training": train_h.clone(), "test": test_h.clone()}
    for h in bad.values():
        h[3, 1] = BROKEN[value]
    calls = [linear_probe, mlp_probe, knn_accuracy]
    calls += [lambda a, y, b, _, vote=vote: knn_votes(a, y, b, 3, vote=vote) for vote in ("cosine", "majority")]
    calls += [lambda a, y, b, _: knn_predict(a, y, b), lambda a, y, b, _: standardized(a, b)]
    calls += [lambda a, y, b, z: knn_accuracy(a.float(), y, b.float(), z, vote="majority")]
    for name, h in bad.items():
        rows = (h, train_y, test_h, test_y) if name == "training" else (train_h, train_y, h, test_y)
        for call in calls:
            with pytest.raises(
                ValueError, match=rf"^expected finite {name} features; received 1 NaN or infinite value of "
            ):
                call(*rows)
    h = bad["training"]
    for call, what in [
        (lambda: cluster_study({"h": train_h, "z": h}, train_y), "activations in layer z"),
        (lambda: projector_layers(torch.nn.Linear(4, 2).double(), h), "representations"),
        (lambda: top_k_accuracy(h, train_y), "logits"),
        (lambda: collapse_study({"h": h}, {"h": torch.randn(4, 2, 4)}), "activations in layer h"),
        (lambda: collapse_study({"h": train_h}, {"h": torch.full((4, 2, 4), BROKEN[value])}), "views in layer h"),
    ]:
        with pytest.raises(ValueError, match=rf"^expected finite {what}; received \d+ NaN or infinite"):
            call()


class _Broken(torch.nn.Module):
    """An encoder that has diverged."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), torch.nan))

    def forward(self, x):
        return x.flatten(1)[:, :5] * self.weight


def test_an_encoder_that_has_diverged_has_no_accuracy():
    images = Images(torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8), torch.arange(24) % 3)
    look = Augmentation(size=8)
    for call in (
        lambda: linear_probe_with_views(_Broken(), images, images, 1, batch=8, augmentation=look),
        lambda: semi_supervised(_Broken(), images, images, 0.5, augmentation=look),
        lambda: semi_supervised(_Broken(), images, images, 0.5, finetune=True, augmentation=look),
        lambda: protocols(_Broken(), images, images, augmentation=look),
    ):
        with pytest.raises(ValueError, match=r"^expected finite (training features|test features|features); received"):
            call()


@pytest.mark.parametrize("top", [1, 2, 3])
def test_top_guesses_of_the_votes_of_the_w2_code(top):
    "exp(cos) without a temperature, by sums over all classes."
    train_h, train_y, test_h, test_y = _data()
    cosine = torch.nn.functional.cosine_similarity(test_h.unsqueeze(1), train_h.unsqueeze(0), dim=2)
    right = 0
    for row, label in zip(cosine, test_y, strict=True):
        nearest = row.argsort(descending=True)[:20]
        votes = [float(row[nearest][train_y[nearest] == c].exp().sum()) for c in range(4)]
        right += int(label) in sorted(range(4), key=lambda c, votes=votes: -votes[c])[:top]
    assert knn_accuracy(train_h, train_y, test_h, test_y, 20, 1.0, top=top) == pytest.approx(right / len(test_y))


def test_unlabelled_rows():
    train_h, train_y, test_h, test_y = _data()
    for labels in ((train_y.clone().fill_(-1), test_y), (train_y, torch.where(test_y == 0, -1, test_y))):
        with pytest.raises(ValueError, match="nothing that needs labels runs"):
            knn_accuracy(train_h, labels[0], test_h, labels[1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), k=st.integers(1, 30), chunk=st.integers(1, 60))
def test_the_rule_with_its_loops(seed, k, chunk):
    train_h, train_y, test_h, _ = _data(n=25, t=6, d=3, seed=seed)
    predicted = knn_predict(train_h, train_y, test_h, k, 0.1, chunk=chunk)
    for row, answer in zip(test_h, predicted, strict=True):
        cosine = [float(row @ h / row.norm() / h.norm()) for h in train_h]
        votes = [0.0] * 4
        for i in sorted(range(25), key=lambda i: -cosine[i])[:k]:
            votes[train_y[i]] += math.exp(cosine[i] / 0.1)
        assert votes[answer] == pytest.approx(max(votes), rel=1e-9)


def test_small_temperature_and_scale_do_not_matter():
    train_h, train_y, test_h, test_y = _data()
    nearest = knn_accuracy(train_h, train_y, test_h, test_y, k=1)
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=120, temperature=1e-4) == nearest
    assert knn_accuracy(5 * train_h, train_y, 1e-3 * test_h, test_y, k=9) == knn_accuracy(
        train_h, train_y, test_h, test_y, k=9
    )
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=10**6) == knn_accuracy(
        train_h, train_y, test_h, test_y, k=120
    )


def test_bad_input_is_one_sentence():
    train_h, train_y, test_h, test_y = _data()
    for call in (
        lambda: knn_accuracy(train_h, train_y[:3], test_h, test_y),
        lambda: knn_accuracy(train_h, train_y, test_h[:, :2], test_y),
        lambda: knn_accuracy(train_h, train_y, test_h, test_y, k=0),
        lambda: knn_accuracy(train_h, train_y, test_h, test_y, temperature=0),
        lambda: knn_accuracy(train_h, train_y, test_h, test_y, vote="mean"),
        lambda: knn_accuracy(train_h, train_y, test_h, test_y, top=5),
        lambda: extract_features(torch.nn.Identity(), torch.zeros(2, 3, 8, 8)),
    ):
        with pytest.raises(ValueError, match=r"^expected .*; received "):
            call()


def test_features_leave_the_network_as_it_was():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten()
    )
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
    whole, parts = extract_features(net, images), extract_features(net, images, batch=2)
    torch.testing.assert_close(whole, parts)
    assert not whole.requires_grad and torch.is_grad_enabled()
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_modes_come_back_after_an_error():
    net = torch.nn.Sequential(torch.nn.Dropout())
    with pytest.raises(RuntimeError), evaluating(net):
        raise RuntimeError
    assert net.training and net[0].training


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 400), share=st.floats(0.001, 1), levels=st.sampled_from([2, 10, 10**6]), seed=st.integers(0, 99)
)
def test_nearest_is_topk(n, share, levels, seed):
    """Also with many equal similarities: the same values, each in its own column."""
    k = max(1, int(share * n))
    draw = torch.Generator().manual_seed(seed)
    similarity = torch.randint(levels, (7, n), generator=draw) / levels
    near, which = nearest(similarity, k)
    assert torch.equal(near, similarity.gather(1, which))
    assert all(len(set(row)) == k for row in which.tolist())
    assert torch.equal(near.sort(1, descending=True).values, similarity.topk(k, dim=1).values)


def test_a_switch_of_the_trainer_changes_no_probe():
    """`set_float32_matmul_precision("medium")` rounds factors to bfloat16 where the processor can."""
    train_h, train_y, test_h, test_y = (x.float() if x.is_floating_point() else x for x in _data(n=200, t=100))
    found = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            linear = linear_probe(train_h, train_y, test_h, test_y, epochs=20, batch=64)
            mlp = mlp_probe(train_h, train_y, test_h, test_y, 64, epochs=3)
        finally:
            torch.set_float32_matmul_precision("highest")
        found.append(torch.tensor([linear.top1, mlp.top1, *linear.history, *mlp.history], dtype=torch.float64))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
