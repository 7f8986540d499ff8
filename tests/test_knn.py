"""Weighted nearest neighbours against scikit-learn, and against the rule typed with its loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from wssl.evaluation import evaluating, extract_features, knn_accuracy, knn_predict
from wssl.evaluation.knn import nearest


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
    "Features far from the origin, of different scales, un-normalised; ties to the smaller class."
    train_h, train_y, test_h, test_y = _data(d=4)
    scale = torch.tensor([5.0, 1.0, 0.3, 2.0], dtype=torch.float64)
    train_h, test_h = ((30 + h * scale).to(dtype) for h in (train_h, test_h))
    reference = KNeighborsClassifier(k, algorithm="brute").fit(train_h.numpy(), train_y.numpy())
    predicted = knn_predict(train_h, train_y, test_h, k, vote="majority", chunk=7)
    assert predicted.tolist() == reference.predict(test_h.numpy()).tolist()
    assert knn_accuracy(train_h, train_y, test_h, test_y, k, vote="majority") == pytest.approx(
        reference.score(test_h.numpy(), test_y.numpy())
    )


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
