"""Few labels: which ones, a linear classifier on them, and fine-tuning that leaves the encoder alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wssl.core.seeds import generator
from wssl.data import CROP_FLIP
from wssl.data.images import Images
from wssl.evaluation import extract_features, fine_tune, linear_probe, semi_supervised
from wssl.evaluation.semi import labelled_rows

VIEW = replace(CROP_FLIP, size=16)
PLAIN = replace(VIEW, scale=(1.0, 1.0), ratio=(1.0, 1.0), p_flip=0.0)


def _images(n, seed=0):
    "Two classes that the mean colour tells apart."
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=draw)
    x = torch.randint(156, (n, 3, 16, 16), generator=draw) + 100 * y.view(-1, 1, 1, 1)
    return Images(x.to(torch.uint8), y, ("dark", "bright"))


def _net(norm=True):
    torch.manual_seed(0)
    middle = torch.nn.BatchNorm2d(4) if norm else torch.nn.Identity()
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), middle, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    share=st.floats(0.005, 1),
    without=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_the_share_of_every_class(sizes, share, without, seed):
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)] + [torch.full((without,), -1)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    rows = labelled_rows(y, share, seed)
    assert y[rows].bincount().tolist() == [max(1, round(share * n)) for n in sizes]
    assert rows.tolist() == sorted(set(rows.tolist())) and rows.tolist() == labelled_rows(y, share, seed).tolist()
    assert set(labelled_rows(y, share / 3, seed).tolist()) <= set(rows.tolist())


def test_frozen_is_a_linear_probe_of_these_rows():
    net, train, test = _net(), _images(60), _images(30, 1)
    few = semi_supervised(net, train, test, 0.2, augmentation=VIEW, seed=3, epochs=5)
    rows = labelled_rows(train.y, 0.2, 3)
    h, test_h = (extract_features(net, part, augmentation=VIEW) for part in (train, test))
    probe = linear_probe(h[rows], train.y[rows], test_h, test.y, epochs=5, seed=3)
    assert few.images == len(rows) and not few.finetune
    assert few.top1 == probe.top1 and few.history == pytest.approx(probe.history, rel=1e-4)


@pytest.mark.parametrize("finetune", [False, True])
def test_the_encoder_stays_as_it_was(finetune):
    net = _net()
    net[1].eval()
    for p in net[0].parameters():
        p.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    few = semi_supervised(net, _images(60), _images(30, 1), 0.5, finetune, VIEW, epochs=2)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert not any(p.requires_grad for p in net[0].parameters()) and all(p.grad is None for p in net.parameters())
    assert few.finetune == finetune and len(few.history) == 2 and few.top5 is None


def test_fine_tuning_learns_and_repeats():
    train, test = _images(80), _images(60, 1)
    first, again, other = (
        semi_supervised(_net(), train, test, 0.5, True, VIEW, seed=seed, epochs=20, batch=20, lr=0.05)
        for seed in (0, 0, 1)
    )
    assert first.top1 > 0.9 and first.history[-1] < first.history[0]
    assert first == again and first.history != other.history


def test_fine_tuning_step_by_step_where_the_views_are_plain():
    "Two rates, one cosine over all steps, momentum 0.9 and no decay, retyped with plain autograd in float64."
    net, train, test = _net(norm=False), _images(30), _images(12, 1)
    options = {"epochs": 2, "batch": 10, "lr": 0.05, "lr_head": 0.4}
    logits, history = fine_tune(net, train, test, augmentation=PLAIN, **options)
    draw = generator(0, "fine-tune")
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (PLAIN.mean, PLAIN.std))
    x, test_x = ((part.x.double() / 255 - mean) / std for part in (train, test))
    body = [p.detach().double().requires_grad_() for p in net.parameters()]
    head = [(0.01 * torch.randn(2, 4, generator=draw)).double(), torch.zeros(2, dtype=torch.float64)]
    weights = body + [p.requires_grad_() for p in head]
    speed = [torch.zeros_like(p) for p in weights]

    def scores(x):
        h = F.conv2d(x, weights[0], weights[1]).relu().mean((2, 3))
        return h @ weights[2].T + weights[3]

    losses = []
    for epoch in range(2):
        for step, rows in enumerate(torch.randperm(30, generator=draw).split(10)):
            loss = F.cross_entropy(scores(x[rows]), train.y[rows])
            gradients = torch.autograd.grad(loss, weights)
            factor = (1 + torch.cos(torch.tensor(torch.pi * (3 * epoch + step) / 6)).item()) / 2
            with torch.no_grad():
                for i, (p, g) in enumerate(zip(weights, gradients, strict=True)):
                    speed[i] = 0.9 * speed[i] + g
                    p -= factor * (0.05 if i < 2 else 0.4) * speed[i]
            losses.append(loss.item())
    torch.testing.assert_close(logits.double(), scores(test_x).detach(), rtol=1e-4, atol=1e-5)
    assert history == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-5)


def test_bad_input_is_one_sentence():
    net, train, test = _net(), _images(30), _images(12, 1)
    without = replace(train, y=torch.full_like(train.y, -1))
    for call in (
        lambda: semi_supervised(net, without, test),
        lambda: semi_supervised(net, train, without, augmentation=VIEW),
        lambda: semi_supervised(net, train, without, finetune=True, augmentation=VIEW),
        lambda: fine_tune(net, without, test, augmentation=VIEW),
    ):
        with pytest.raises(ValueError, match="nothing that needs labels runs"):
            call()
    for call in (
        lambda: semi_supervised(net, train, test, 0),
        lambda: semi_supervised(net, train, test, 1.5),
        lambda: fine_tune(net, train, test, epochs=0),
        lambda: fine_tune(net, train, test, batch=1),
        lambda: fine_tune(net, train, test, lr_head=0),
        lambda: fine_tune(net, train.take([0]), test),
    ):
        with pytest.raises(ValueError, match=r"^expected .*; received "):
            call()
