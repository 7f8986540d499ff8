"""Linear probes against scikit-learn, against Newton's method in float64, and against the published protocol typed with autograd."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score

from wssl.data import CROP_FLIP
from wssl.data.images import Images
from wssl.evaluation import (
    extract_features,
    known_labels,
    linear_probe,
    linear_probe_with_views,
    top_k_accuracy,
)
from wssl.evaluation.linear import fit_linear, softmax_step, view_features


def _data(n=1200, t=400, d=7, classes=4, seed=0, spread=0.8, dtype=torch.float64):
    "Classes that overlap, so that the optimum is finite without decay."
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(classes, d, generator=generator, dtype=dtype)
    y = torch.arange(n + t)[torch.randperm(n + t, generator=generator)] % classes
    h = centres[y] + torch.randn(n + t, d, generator=generator, dtype=dtype) + 0.5
    return h[:n], y[:n], h[n:], y[n:]


def _newton(h, y, classes, decay, steps=30):
    "Minimiser of mean cross-entropy + decay/2 (|W|^2 + |b|^2) by Newton's method on the full Hessian, in numpy."
    x = np.concatenate([h.double().numpy(), np.ones((len(h), 1))], 1)
    n, d = x.shape
    theta, target = np.zeros((d, classes)), np.eye(classes)[y.numpy()]
    for _ in range(steps):
        scores = x @ theta
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - target) / n + decay * theta
        hessian = np.zeros((d, classes, d, classes))
        for a in range(classes):
            for b in range(classes):
                weight = p[:, a] * ((a == b) - p[:, b]) / n
                hessian[:, a, :, b] = (x * weight[:, None]).T @ x
        hessian = hessian.reshape(d * classes, -1) + decay * np.eye(d * classes)
        theta = theta - np.linalg.solve(hessian, gradient.reshape(-1)).reshape(d, classes)
    return theta[:-1].T, theta[-1]


def _loss(weight, bias, h, y, decay):
    scores = h.double().numpy() @ np.asarray(weight).T + np.asarray(bias)
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    penalty = decay / 2 * ((np.asarray(weight) ** 2).sum() + (np.asarray(bias) ** 2).sum())
    return -log_p[np.arange(len(y)), y.numpy()].mean() + penalty


@pytest.mark.parametrize(("batch", "epochs"), [(250, 200), (10_000, 600)])
def test_ends_at_the_optimum(batch, epochs):
    "600 rows in 3 parts or 1; weights, biases and the loss of Newton's method."
    h, y, _, _ = _data(n=600)
    weight, bias, history = fit_linear(h, y, 4, lr=0.1, batch=batch, epochs=epochs, weight_decay=0.1)
    weight, bias = weight - weight.mean(0), bias - bias.mean()  # what all classes share changes no probability
    exact = _newton(h, y, 4, 0.1)
    assert _loss(weight, bias, h, y, 0.1) == pytest.approx(_loss(*exact, h, y, 0.1), rel=1e-5)
    torch.testing.assert_close(weight, torch.from_numpy(exact[0]), rtol=0, atol=3e-3)
    torch.testing.assert_close(bias, torch.from_numpy(exact[1]), rtol=0, atol=3e-3)
    assert history[-1] == pytest.approx(_loss(weight, bias, h, y, 0), rel=5e-4)
    assert _loss(0 * exact[0], 0 * exact[1], h, y, 0) == pytest.approx(math.log(4))  # the reference's own zero point


def test_accuracy_is_that_of_sklearn():
    h, y, test_h, test_y = _data(n=2000, t=1000, classes=8)
    decay = 1e-3
    ones = np.concatenate([h.numpy(), np.ones((len(h), 1))], 1)
    fitted = LogisticRegression(C=1 / (len(h) * decay), fit_intercept=False, tol=1e-9, max_iter=10_000).fit(ones, y)
    scores = np.concatenate([test_h.numpy(), np.ones((len(test_h), 1))], 1) @ fitted.coef_.T
    probe = linear_probe(h.float(), y, test_h.float(), test_y, lr=0.1, epochs=100, batch=100, weight_decay=decay)
    assert probe.top1 == pytest.approx((scores.argmax(1) == test_y.numpy()).mean(), abs=2.5e-3)
    assert probe.top5 == pytest.approx(top_k_accuracy_score(test_y, scores, k=5), abs=2.5e-3)
    found = _loss(probe.weight.double(), probe.bias.double(), h, y, 0)
    assert found == pytest.approx(_loss(fitted.coef_[:, :-1], fitted.coef_[:, -1], h, y, 0), rel=5e-4)


def test_every_step_is_that_of_the_published_protocol():
    "The same initial weights and order through nn.Linear, autograd, Adam and ExponentialLR."
    from wssl.core.seeds import generator

    h, y, _, _ = _data(n=300, d=5, classes=3)
    draw = generator(3, "linear probe")
    start = (2 * torch.rand(3, 6, generator=draw) - 1) / 5**0.5
    layer = torch.nn.Linear(5, 3, dtype=torch.float64)
    layer.weight.data, layer.bias.data = start[:, :5].double(), start[:, 5].double()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=(1e-6 / 1e-2) ** (1 / 20))
    for _ in range(20):
        for rows in torch.randperm(300, generator=draw).view(-1, 100):
            optimizer.zero_grad()
            F.cross_entropy(layer(h[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    weight, bias, _ = fit_linear(h, y, 3, epochs=20, batch=100, weight_decay=5e-3, seed=3)
    torch.testing.assert_close(weight, layer.weight.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bias, layer.bias.detach(), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 20), d=st.integers(1, 5), classes=st.integers(1, 6), seed=st.integers(0, 999))
def test_gradient_by_hand(n, d, classes, seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=draw, dtype=torch.float64), torch.randint(classes, (n,), generator=draw)
    weight = (5 * torch.randn(classes, d, generator=draw, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(classes, 1, generator=draw, dtype=torch.float64).requires_grad_()
    loss = F.cross_entropy(F.linear(x, weight, bias.squeeze(1)), y)
    expected = torch.autograd.grad(loss, (weight, bias))
    weight.grad, bias.grad = torch.full_like(weight, torch.nan), torch.full_like(bias, torch.nan)
    with torch.no_grad():
        total = softmax_step(x, y.unsqueeze(0), weight, bias)
    torch.testing.assert_close(total / n, loss.detach())
    torch.testing.assert_close((weight.grad, bias.grad), expected)


def test_what_the_result_depends_on():
    h, y, test_h, test_y = _data(n=200, t=100, dtype=torch.float32)
    first, again, other = (linear_probe(h, y, test_h, test_y, epochs=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert first.weight.shape == (4, 7) and first.bias.shape == (4,) and not first.weight.requires_grad
    assert first.weight.dtype == torch.float32 and first.top5 is None
    half = linear_probe(h.half(), y, test_h.half(), test_y, epochs=3)
    assert half.weight.dtype == torch.float32
    torch.manual_seed(0)
    state = torch.get_rng_state()
    linear_probe(h.requires_grad_(), y, test_h, test_y, epochs=1)
    assert torch.equal(state, torch.get_rng_state()) and h.grad is None


@pytest.mark.parametrize(("n", "batch"), [(30, 1), (400, 8), (50_000, 1000), (60_000, 1000)])
def test_fifty_steps_an_epoch_up_to_the_published_batch(n, batch):
    h, y = torch.arange(2.0 * n).view(n, 2) / n, torch.arange(n) % 2
    found, told = (linear_probe(h, y, h[:2], y[:2], epochs=1, batch=size) for size in (None, batch))
    assert torch.equal(found.weight, told.weight)
    assert not torch.equal(found.weight, linear_probe(h, y, h[:2], y[:2], epochs=1, batch=2 * batch).weight)


def test_a_test_class_that_was_never_trained():
    h, y, test_h, test_y = _data(n=200, t=100)
    probe = linear_probe(h, y, test_h, torch.full_like(test_y, 9), epochs=100, lr=0.1, batch=100)
    assert probe.weight.shape == (10, 7) and probe.top1 == 0


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 12), classes=st.integers(1, 7), seed=st.integers(0, 999), data=st.data())
def test_top_k_counts_what_sorting_counts(n, classes, seed, data):
    k = data.draw(st.integers(1, classes))
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randint(4, (n, classes), generator=draw).float()  # many ties
    y = torch.randint(classes, (n,), generator=draw)
    chance = 0.0  # the mean over all orders in which equal scores may be sorted
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        above = sum(score > row[label] for score in row)
        equal = sum(score == row[label] for score in row)
        chance += sum(above + place < k for place in range(equal)) / equal / n
    assert top_k_accuracy(logits, y, k) == pytest.approx(chance)
    names = torch.randperm(classes, generator=draw)
    renamed = torch.empty_like(logits).scatter_(1, names.expand(n, -1), logits)
    assert top_k_accuracy(renamed, names[y], k) == pytest.approx(chance)


def test_equal_scores_are_chance():
    y = torch.arange(60) % 6
    assert [top_k_accuracy(torch.zeros(60, 6), y, k) for k in (1, 3, 6)] == [1 / 6, 3 / 6, 1]


def test_bad_input_is_one_sentence():
    h, y, test_h, test_y = _data(n=40, t=20)
    bad = h.clone()
    bad[3, 2] = torch.nan
    for call in (
        lambda: linear_probe(h, y[:3], test_h, test_y),
        lambda: linear_probe(h, y, test_h[:, :2], test_y),
        lambda: linear_probe(bad, y, test_h, test_y),
        lambda: linear_probe(h, y, test_h, test_y, epochs=0),
        lambda: linear_probe(h, y, test_h, test_y, batch=0),
        lambda: linear_probe(h, y, test_h, test_y, lr=0),
        lambda: linear_probe(h, y, test_h, test_y, lr_end=1),
        lambda: linear_probe(h, y, test_h, test_y, weight_decay=-1),
        lambda: top_k_accuracy(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), 5),
        lambda: top_k_accuracy(torch.full((3, 4), torch.nan), torch.zeros(3, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match=r"^expected .*; received "):
            call()


@pytest.mark.parametrize("which", ["train", "test"])
def test_unlabelled_rows(which):
    h, y, test_h, test_y = _data(n=40, t=20)
    (y if which == "train" else test_y)[5] = -1
    with pytest.raises(ValueError, match=f"{which}.*nothing that needs labels runs.*label -1 in 1 of"):
        linear_probe(h, y, test_h, test_y, epochs=1)
    with pytest.raises(ValueError, match="nothing that needs labels runs"):
        known_labels(torch.tensor([-1]), 1)


def _images(n, seed=0, size=16):
    "Two classes that the mean colour tells apart, in random order."
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=draw)
    x = torch.randint(156, (n, 3, size, size), generator=draw) + 100 * y.view(-1, 1, 1, 1)
    return Images(x.to(torch.uint8), y, ("dark", "bright"))


def _net():
    "Small, with running statistics that a careless evaluation would move and dropout that it would draw from."
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = torch.nn.Sequential(conv, norm, torch.nn.Dropout(0.5), torch.nn.ReLU(), pool)
    norm.eval()
    return net


VIEW = replace(CROP_FLIP, size=16)


def test_views_leave_the_network_as_it_was():
    net = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    probe = linear_probe_with_views(net, _images(90), _images(40, 1), epochs=3, batch=32, augmentation=VIEW)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()] and modes[0] and not modes[2]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    again = linear_probe_with_views(net, _images(90), _images(40, 1), epochs=3, batch=32, augmentation=VIEW)
    assert torch.equal(probe.weight, again.weight) and probe.test_history == again.test_history
    other = linear_probe_with_views(net, _images(90), _images(40, 1), epochs=3, batch=32, augmentation=VIEW, seed=1)
    assert not torch.equal(probe.weight, other.weight)


def test_views_learn_and_name_the_best_epoch():
    test = _images(60, 1)
    probe = linear_probe_with_views(_net(), _images(200), test, epochs=15, batch=50, augmentation=VIEW)
    assert probe.top1 > 0.9 and probe.top5 is None and probe.weight.shape == (2, 4)
    assert probe.top1 == probe.test_history[-1] and probe.best_top1 == max(probe.test_history)
    assert probe.test_history[probe.best_epoch - 1] == probe.best_top1 and len(probe.history) == 15
    h = extract_features(_net(), test, augmentation=VIEW)
    assert probe.top1 == top_k_accuracy(F.linear(h, probe.weight, probe.bias), test.y)


def test_views_step_by_step_where_the_views_are_plain():
    "With the whole image as its only crop the protocol is SGD on fixed features: retyped here with CosineAnnealingLR."
    from wssl.core.seeds import generator

    view = replace(VIEW, scale=(1.0, 1.0), ratio=(1.0, 1.0), p_flip=0.0)
    net, train, test = _net(), _images(70), _images(30, 1)
    probe = linear_probe_with_views(net, train, test, epochs=4, batch=20, augmentation=view, weight_decay=0.01)
    h = extract_features(net, train, augmentation=view).double()
    draw = generator(0, "views probe")
    layer = torch.nn.Linear(4, 2, dtype=torch.float64)
    layer.weight.data, layer.bias.data = 0.01 * torch.randn(2, 4, generator=draw).double(), torch.zeros(2).double()
    optimizer = torch.optim.SGD(layer.parameters(), 0.3, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        order = torch.randperm(70, generator=draw)
        for step in range(3):  # the last 10 of 70 are left out
            rows = order[20 * step : 20 * step + 20]
            optimizer.zero_grad()
            F.cross_entropy(layer(h[rows]), train.y[rows]).backward()
            optimizer.step()
        schedule.step()
    torch.testing.assert_close(probe.weight.double(), layer.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.bias.double(), layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_view_is_a_crop_and_a_flip_alone():
    chances = [CROP_FLIP.p_jitter, CROP_FLIP.p_gray, CROP_FLIP.p_blur, CROP_FLIP.p_solarize]
    assert chances == [0] * 4 and CROP_FLIP.p_flip == 0.5
    assert CROP_FLIP.scale == (0.08, 1.0) and CROP_FLIP.interpolation == "bilinear"
    white = torch.full((20, 3, 8, 8), 255, dtype=torch.uint8)
    (value,) = view_features(
        torch.nn.Flatten(), white, replace(VIEW, mean=(0.0,) * 3, std=(1.0,) * 3), torch.Generator().manual_seed(0)
    ).unique()
    assert value == 1


def test_bad_images_are_one_sentence():
    train, test, net = _images(40), _images(20, 1), _net()
    without = replace(train, y=torch.full_like(train.y, -1))
    with pytest.raises(ValueError, match="nothing that needs labels runs"):
        linear_probe_with_views(net, without, test, epochs=1, batch=10)
    with pytest.raises(ValueError, match="nothing that needs labels runs"):
        linear_probe_with_views(net, train, without, epochs=1, batch=10)
    for bad in ({"epochs": 0}, {"batch": 41}, {"batch": 0}, {"lr": 0}):
        with pytest.raises(ValueError, match=r"^expected .*; received "):
            linear_probe_with_views(net, train, test, **{"batch": 10, **bad})
