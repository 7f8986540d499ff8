"""The MLP probe step by step, and one encoder under every protocol."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wssl.core.seeds import generator
from wssl.data import CROP_FLIP
from wssl.data.images import Images
from wssl.evaluation import extract_features, knn_accuracy, linear_probe, mlp_probe, protocols, semi_supervised
from wssl.evaluation.semi import labelled_rows
from wssl.models.encoders import initialised_from

VIEW = replace(CROP_FLIP, size=16)


def images(n, seed=0):
    "Two classes that the mean colour tells apart."
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=draw)
    x = torch.randint(156, (n, 3, 16, 16), generator=draw) + 100 * y.view(-1, 1, 1, 1)
    return Images(x.to(torch.uint8), y, ("dark", "bright"))


def rows(n, d=6, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw, dtype=torch.float64), torch.randint(classes, (n,), generator=draw)


def test_mlp_step_by_step():
    "Adam written out, a cosine over all steps, features standardised by the training rows."
    (h, y), (test_h, test_y) = rows(50), rows(20, seed=1)
    h[:, 2] = 4.0  # a dead feature
    probe = mlp_probe(h, y, test_h, test_y, hidden=7, epochs=3, lr=0.05, batch=25, seed=2)
    with initialised_from(2, "mlp probe"):
        net = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    first, second = [torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    std = h.std(0, correction=0)
    std[2] = 1
    x, test_x = (h - h.mean(0)) / std, (test_h - h.mean(0)) / std

    def scores(x):
        return (x @ weights[0].T + weights[1]).relu() @ weights[2].T + weights[3]

    draw, losses, right = generator(2, "mlp probe", "order"), [], []
    for step in range(6):
        if step % 2 == 0:
            order = torch.randperm(50, generator=draw)
        chosen = order[25 * (step % 2) :][:25]
        loss = F.cross_entropy(scores(x[chosen]), y[chosen])
        rate = 0.05 * (1 + math.cos(math.pi * step / 6)) / 2
        for i, g in enumerate(torch.autograd.grad(loss, weights)):
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g
            with torch.no_grad():
                m, v = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
                weights[i] -= rate * m / (v.sqrt() + 1e-8)
        losses.append(loss.item())
        if step % 2:
            right.append((scores(test_x).argmax(1) == test_y).double().mean().item())
    assert probe.history == pytest.approx(
        [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)], rel=1e-6
    )
    assert probe.test_history == pytest.approx(right)
    assert (probe.top1, probe.best_top1) == (right[-1], max(right)) and right[probe.best_epoch - 1] == max(right)
    assert probe.top5 is None


def test_mlp_finds_what_a_hyperplane_does_not():
    h, _ = rows(900, seed=4)
    y = (h[:, 0] * h[:, 1] > 0).long()
    a, b = (h[:600].float(), y[:600]), (h[600:].float(), y[600:])
    assert linear_probe(*a, *b, epochs=50).top1 < 0.65
    probe = mlp_probe(*a, *b, hidden=64, epochs=80, lr=1e-2)
    assert probe.top1 > 0.88
    assert mlp_probe(*a, *b, hidden=64, epochs=3, seed=1) == mlp_probe(*a, *b, hidden=64, epochs=3, seed=1)
    assert mlp_probe(*a, *b, hidden=64, epochs=3, seed=1).history != mlp_probe(*a, *b, hidden=64, epochs=3).history


def test_every_protocol_of_one_encoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train, test = images(80), images(40, 1)
    found = protocols(net, train, test, 3, knn_k=5, epochs=6, finetune_epochs=2, augmentation=VIEW)
    assert list(found) == ["knn", "linear", "semi_1", "semi_10", "mlp", "mlp_best", "finetune"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    h, test_h = (extract_features(net, part, augmentation=VIEW) for part in (train, test))
    assert found["knn"] == knn_accuracy(h, train.y, test_h, test.y, 5)
    std = h.double().std(0, correction=0)
    assert std.min() > 0
    x, test_x = (((part.double() - h.double().mean(0)) / std).float() for part in (h, test_h))
    assert found["linear"] == linear_probe(x, train.y, test_x, test.y, 6, seed=3).top1
    assert found["mlp"] == mlp_probe(h, train.y, test_h, test.y, epochs=6, seed=3).top1 <= found["mlp_best"]
    options = {"augmentation": VIEW, "seed": 3}
    for name, share in {"semi_1": 0.01, "semi_10": 0.1}.items():
        rows = labelled_rows(train.y, share, 3)
        assert found[name] == linear_probe(x[rows], train.y[rows], test_x, test.y, 6, seed=3).top1
    assert found["finetune"] == semi_supervised(net, train, test, 1.0, True, epochs=2, **options).top1
    assert "finetune" not in protocols(net, train, test, epochs=1, finetune_epochs=0, augmentation=VIEW)
    slow = protocols(net, train, test, 3, epochs=1, finetune_epochs=2, augmentation=VIEW, lr=0.0, lr_head=1e-9)
    assert (
        slow["finetune"] == semi_supervised(net, train, test, 1.0, True, epochs=2, lr=0.0, lr_head=1e-9, **options).top1
    )


def test_bad_input_is_one_sentence():
    h, y = rows(10)
    train = images(10)
    for call in (
        lambda: mlp_probe(h, y, h, y, hidden=0),
        lambda: mlp_probe(h, y, h, y, lr=0),
        lambda: mlp_probe(h, y, h[:, :3], y),
        lambda: mlp_probe(h, y - 1, h, y),
        lambda: mlp_probe(h * math.nan, y, h, y),
        lambda: protocols(nn.Flatten(), Images(train.x, train.y - 1), train),
    ):
        with pytest.raises(ValueError, match="^expected .*; received "):
            call()
