"""SwAV, DINO and ExCB: their losses are their formulas, gradients go where the papers send them, and a run with them survives what any run survives."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import wssl.training.loop as loop
from tests.distributed import run_ranks
from wssl.methods import DINO, ExCB, SimCLR, SwAV
from wssl.models import Prototypes, encoder, initialised_from
from wssl.training import TrainConfig, train
from wssl.training.step import build_method, make_optimizer, set_learning_rate

SMALL = dict(hidden=32, out=16, prototypes=12)
N, K = 8, 12
KINDS = {"swav": SwAV, "dino": DINO, "excb": ExCB}


def _build(options):
    with initialised_from(0, "test"):
        return options.build(encoder("small", width=4)).double()


@pytest.fixture
def views():
    """Two global views and two local crops."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(N, 3, side, side, generator=generator, dtype=torch.float64) for side in (16, 16, 8, 8))


def _unit(x):
    return x / x.norm(dim=1, keepdim=True)


def _cross_entropy(p, scores, tau):
    return -(p * torch.log(torch.exp(scores / tau) / torch.exp(scores / tau).sum(1, keepdim=True))).sum(1).mean()


def _student(method, views):
    """Embeddings of the crops, as the public codes pass them: crops of one size together, one head for all."""
    parts = [torch.cat(views[:2])] + ([torch.cat(views[2:])] if len(views) > 2 else [])
    return method.projector(torch.cat([method.encoder(part) for part in parts]))


def _cosines(z, prototypes):
    return _unit(z) @ _unit(prototypes.weight).T


def _operator(z, r):
    """Section 3 of the paper, a case at a time."""
    out = torch.empty_like(z)
    for k in range(z.shape[1]):
        out[:, k] = 1 - (1 - z[:, k]) * r[k] if r[k] < 1 else (1 + z[:, k]) / r[k] - 1
    return out


@pytest.mark.parametrize("crops", [2, 4])
def test_excb_is_the_mean_of_its_cross_entropies(views, crops):
    views, method = views[:crops], _build(ExCB(**SMALL))
    sizes = torch.arange(1.0, K + 1) / torch.arange(1.0, K + 1).sum()
    method.balancer.sizes.copy_(sizes)
    output = method(views)
    teacher = method.target.net
    with torch.no_grad():
        z = _cosines(teacher[1](teacher[0](torch.cat(views[:2]))), teacher[2])
        p = torch.softmax(_operator(z, K * sizes) / 0.04, 1).split(N)
    z = _student(method, views)
    projected = _cosines(z[: 2 * N], method.prototypes).split(N)
    predicted = _cosines(method.predictor(z), method.prototypes).split(N)
    terms = []
    for t in range(2):
        terms.append(_cross_entropy(p[t], projected[1 - t], 0.1))
        terms += [_cross_entropy(p[t], predicted[v], 0.1) for v in range(crops)]
    assert len(terms) == 2 * (3 + crops - 2)
    torch.testing.assert_close(output.loss, torch.stack(terms).mean(), rtol=1e-6, atol=1e-8)  # sizes are float32
    wanted = torch.autograd.grad((terms[0] + terms[1 + crops]) / len(terms), method.prototypes.weight)[0]
    output.loss.backward()
    torch.testing.assert_close(method.prototypes.weight.grad, wanted, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in method.target.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.predictor.parameters() if p.ndim > 1)


@pytest.mark.parametrize("crops", [2, 4])
def test_dino_predicts_the_centred_teacher_of_the_other_views(views, crops):
    views, method = views[:crops], _build(DINO(**SMALL))
    method.centering.center.copy_(torch.linspace(-0.1, 0.1, K))
    output = method(views)
    teacher = method.target.net
    with torch.no_grad():
        z = _cosines(teacher[1](teacher[0](torch.cat(views[:2]))), teacher[2])
        p = torch.softmax((z - method.centering.center) / 0.04, 1).split(N)
    scores = _cosines(_student(method, views), method.prototypes).split(N)
    terms = [_cross_entropy(p[t], scores[v], 0.1) for t in range(2) for v in range(crops) if v != t]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean(), rtol=1e-6, atol=1e-8)
    method.after_step(1.0)
    expected = 0.9 * torch.linspace(-0.1, 0.1, K) + 0.1 * z.mean(0).float()
    torch.testing.assert_close(method.centering.center.float(), expected)


def _codes(scores, epsilon=0.05):
    """Caron et al. 2020, Listing 1, on a batch alone."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("crops", [2, 4])
@pytest.mark.parametrize("queued", [False, True])
def test_swav_swaps_balanced_codes(views, crops, queued):
    views, method = views[:crops], _build(SwAV(queue=24, queue_start=0.5, **SMALL))
    method.before_step(0.6 if queued else 0.4)
    output = method(views)
    scores = _cosines(_student(method, views), method.prototypes).split(N)
    codes = []
    for t in range(2):
        older = [_cosines(method.queues[t].rows, method.prototypes)] if queued else []
        codes.append(_codes(torch.cat([scores[t], *older]).detach())[:N])
    terms = [_cross_entropy(codes[t], scores[v], 0.1) for t in range(2) for v in range(crops) if v != t]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())
    method.after_step(0.7)
    torch.testing.assert_close(method.queues[1].rows[:N], _unit(output.z[1].detach()))


def test_equal_sizes_change_nothing_and_unequal_ones_do(views):
    losses = {}
    for balance in ("excb", "none"):
        method = _build(ExCB(balance=balance, **SMALL))
        equal = method(views).loss
        method.balancer.sizes.copy_(torch.linspace(0.5, 1.5, K) / K)
        losses[balance] = equal.item(), method(views).loss.item()
    assert losses["excb"][0] == pytest.approx(losses["none"][0], rel=1e-6)
    assert losses["none"][0] == losses["none"][1] != pytest.approx(losses["excb"][1], rel=1e-4)


@pytest.mark.parametrize("balance", ["excb", "sinkhorn", "centering", "none"])
def test_only_the_statistics_that_a_balance_needs_take_part(views, balance):
    method = _build(ExCB(balance=balance, size_momentum=0.5, **SMALL))
    method(views)
    labels = method.fresh[1]
    method.after_step(0.5)
    expected = 0.5 / K + 0.5 * torch.bincount(labels, minlength=K) / len(labels)
    torch.testing.assert_close(method.balancer.sizes.double(), expected.double())
    assert (method.centering is None) == (balance != "centering")
    if method.centering:
        assert method.centering.center.abs().sum() > 0


@pytest.mark.parametrize("kind", [SwAV, DINO])
def test_frozen_prototypes_get_a_zero_gradient_and_the_rest_the_same(views, kind):
    gradients = []
    for progress in (0.1, 0.9):
        method = _build(kind(freeze=0.5, **SMALL))
        method.before_step(progress)
        method(views).loss.backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.requires_grad})
    still, moving = gradients
    assert still["prototypes.weight"].abs().max() == 0 < moving["prototypes.weight"].abs().max()
    for name in still.keys() - {"prototypes.weight"}:
        torch.testing.assert_close(still[name], moving[name])


def test_prototypes_turn_and_do_not_stretch():
    prototypes = Prototypes(6, 9).double()
    z = torch.randn(5, 6, dtype=torch.float64)
    expected = nn.functional.cosine_similarity(z[:, None], prototypes.weight[None], dim=2)
    torch.testing.assert_close(prototypes(z), expected)
    prototypes(z).square().sum().backward()
    torch.testing.assert_close((prototypes.weight.grad * prototypes.weight).sum(1), torch.zeros(9).double())
    with pytest.raises(ValueError, match="at least one dimension and one prototype, received|; received"):
        Prototypes(6, 0)


def test_the_teacher_is_evaluated_and_follows(views):
    method = _build(DINO(momentum=0.5, momentum_end=0.5, **SMALL))
    assert method.evaluated[0] is method.target.net[0] is not method.encoder
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.target.net[0].parameters()]
    method(views)
    method.after_step(0.5)
    for old, new in zip(before, method.target.net[0].parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


@pytest.mark.parametrize(
    "options",
    [
        ExCB(balance="all"),
        ExCB(size_momentum=1.5),
        ExCB(gamma=0),
        ExCB(temperature=0),
        ExCB(momentum=-1),
        ExCB(prototypes=0),
        DINO(teacher_temperature=0),
        DINO(center_momentum=2),
        SwAV(epsilon=0),
        SwAV(prototypes=0),
    ],
)
def test_impossible_options_are_one_sentence(options):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        _build(options)


RUN = TrainConfig(
    method=ExCB(momentum=0.9, size_momentum=0.9, **SMALL),
    per_class=12,
    test_per_class=8,
    size=16,
    epochs=2,
    batch=40,
    eval_every=1,
    knn_k=10,
    threads=1,
    cluster_study=True,
)


@pytest.mark.parametrize("kind", KINDS)
def test_local_crops_train_a_method_that_takes_them(tmp_path, kind):
    config = replace(RUN, method=KINDS[kind](**SMALL), augmentation="excb" if kind == "excb" else "swav", epochs=1)
    run = train(replace(config, out=str(tmp_path / kind)), say=None, events=False)
    final = run.summary["final"]
    assert 0 <= final["cluster_empty"] < 1 and len(final["sizes"]) == K
    assert sum(final["sizes"]) == pytest.approx(K, abs=0.01) and final["sizes"] == sorted(final["sizes"], reverse=True)
    assert set(final["study"]) == {"h", "p0", "z"} and -1 <= final["study"]["z"]["ari"] <= 1
    assert 0 < run.final["confidence"] <= 1 and json.loads((run.path / "summary.json").read_text())["final"] == final


def test_local_crops_are_refused_elsewhere():
    with pytest.raises(
        ValueError,
        match=r"a method that takes local crops \(swav, dino, excb, resa, lejepa, visreg, simdino, deepcluster\) for swav; received simclr",
    ):
        TrainConfig(method=SimCLR(), augmentation="swav")


def test_a_stopped_run_does_not_start_its_centroids_again(tmp_path, monkeypatch):
    whole = train(replace(RUN, out=str(tmp_path / "whole")), say=None, events=False)
    real, calls = loop.train_epoch, []

    def stop_in_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(replace(RUN, out=str(tmp_path / "cut")), say=None, events=False)
    monkeypatch.setattr(loop, "train_epoch", real)
    cut = train(replace(RUN, out=str(tmp_path / "cut")), say=None, events=False)
    assert cut.summary["final"] == whole.summary["final"]


def test_decay_of_weights_biases_and_centroids():
    config = replace(RUN, optimizer="sgd", weight_decay=0.1, weight_decay_end=0.3, decay_all=True)
    method = build_method(config)
    optimizer = make_optimizer(method, config)
    assert [p for p in optimizer.param_groups[2]["params"]] == [method.prototypes.weight]
    found = []
    for progress in (0.0, 0.5, 1.0):
        set_learning_rate(optimizer, config, progress, method.prototype_decay(progress))
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert found[0] == pytest.approx([0.1, 0.1, 1.0])
    assert found[1] == pytest.approx([0.2, 0.2, 0.2 * 5.5])
    assert found[2] == pytest.approx([0.3, 0.3, 0.3])


def _run_on_a_rank(folder, rank):
    return {
        name: train(replace(RUN, method=kind(**SMALL), out=f"{folder}/{name}"), say=None, events=False).history
        for name, kind in KINDS.items()
    }


def test_a_run_on_two_processes_is_the_run_on_one(tmp_path):
    """Sizes, centroids and codes belong to the whole batch, whoever holds its rows."""
    first, second = run_ranks(_run_on_a_rank, str(tmp_path))
    for name, kind in KINDS.items():
        alone = train(replace(RUN, method=kind(**SMALL), out=str(tmp_path / f"{name}-one")), say=None, events=False)
        for line, other, expected in zip(first[name], second[name], alone.history, strict=True):
            assert line == other
            for key in ("loss", "confidence", "w2"):
                if key in expected:
                    assert line[key] == pytest.approx(expected[key], rel=2e-3), (name, key)
