"""ReSA: its networks, its loss as the mean over pairs of views, its arms, and the measurement of its assignment."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.balance import self_assignment
from wssl.core.collectives import sync_batchnorm
from wssl.losses import info_nce
from wssl.methods import ReSA
from wssl.methods.resa import batch_statistics, batch_targets
from wssl.models import SmallResNet, encoder, initialised_from
from wssl.training import train
from wssl.training.presets import PRESETS, resa_paper
from wssl.training.step import in_bfloat16, in_parallel, objective

SMALL = dict(hidden=32, out=16)


def _build(dtype=torch.float64, **options):
    """A small one whose momentum networks are not copies of the online ones any more."""
    with initialised_from(0, "test"):
        method = ReSA(**SMALL | options).build(encoder("small", width=4)).to(dtype)
        for p in method.parameters():
            if p.ndim == 1 or not p.requires_grad:
                p.data.add_(0.1 * torch.rand_like(p))
    return method


def _views(n=8, local=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    return (*views, *(torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(local)))


def _unit(x):
    return x / x.norm(dim=1, keepdim=True)


def _sinkhorn(similarity, epsilon, iterations=3):
    q = np.exp(similarity / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdims=True) * len(q)
        q /= q.sum(1, keepdims=True) * len(q)
    return torch.tensor(q * len(q))


def _ends(method, views):
    """h, predictions, h', keys of all views, each view alone through each network of a copy (train mode moves BatchNorm)."""
    method = copy.deepcopy(method)
    h = [method.encoder(x) for x in views]
    p = [method.predictor(method.projector(each)) for each in h]
    if method.momentum_encoder is None:
        return h, p, h, [method.projector(each) for each in h]
    momentum_h = [method.momentum_encoder.net(x) for x in views]
    return h, p, momentum_h, [method.momentum_projector.net(each) for each in momentum_h]


def _loss(assignment, p, keys, tau=0.4):
    """Mean over pairs (q, v), q != v, v one of the two global views, of -1/n sum_ij A_ij log softmax_j."""
    terms = []
    for v in range(2):
        for q in range(len(p)):
            if q != v:
                terms.append(-(assignment * (_unit(p[q]) @ _unit(keys[v]).T / tau).log_softmax(1)).sum() / len(p[q]))
    assert len(terms) == 2 * (len(p) - 1)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("with_predictor", [False, True])
def test_it_is_the_mean_over_pairs_with_the_assignment_of_the_weak_view(local, with_predictor):
    method, views = _build(predictor=with_predictor), _views(local=local)
    h, p, momentum_h, keys = _ends(method, views)
    similarity = (_unit(h[0]) @ _unit(momentum_h[0]).T).detach().numpy()
    assignment = _sinkhorn(similarity, 0.05)
    output = method(views)
    torch.testing.assert_close(output.loss, _loss(assignment, p, keys), rtol=1e-8, atol=1e-10)
    assert output.terms["self"].item() == pytest.approx(assignment.diagonal().mean().item())
    support = torch.special.entr(assignment).sum(1).exp().mean().item()
    assert output.terms["support"].item() == pytest.approx(support)
    assert len(output.z) == len(output.h) == 2
    for found, expected in zip(output.h, h, strict=False):
        torch.testing.assert_close(found, expected)


def test_local_crops_are_predictions_only():
    """Neither assignment nor keys see them: the loss without them is the part of it with the global views."""
    method, views = _build(), _views(local=2)
    _, p, _, keys = _ends(method, views)
    whole, two = copy.deepcopy(method)(views), copy.deepcopy(method)(views[:2])
    assert whole.terms == two.terms
    a = method._target(views, *method.embed(views), None)[0]
    extra = [-(a * (_unit(p[q]) @ _unit(keys[v]).T / 0.4).log_softmax(1)).sum() / 8 for q in (2, 3) for v in (0, 1)]
    torch.testing.assert_close(6 * whole.loss, 2 * two.loss + sum(extra), rtol=1e-8, atol=1e-10)


def test_online_networks_learn_and_momentum_networks_do_not():
    method = _build(predictor=True)
    inputs = tuple(x.requires_grad_() for x in _views())
    method(inputs).loss.backward()
    for net in (method.momentum_encoder, method.momentum_projector):
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())
    for net in (method.encoder, method.projector, method.predictor):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_no_gradient_reaches_the_assignment():
    """The gradient is that of the formula with A and the keys as constants, to every parameter."""
    method, views = _build(epsilon=0.5), _views()
    h, _, momentum_h, keys = _ends(method, views)
    assignment = _sinkhorn((_unit(h[0]) @ _unit(momentum_h[0]).T).detach().numpy(), 0.5)
    copied = copy.deepcopy(method)
    method(views).loss.backward()
    z = [copied.projector(copied.encoder(x)) for x in views]
    _loss(assignment, z, [key.detach() for key in keys]).backward()
    for (name, a), b in zip(method.named_parameters(), copied.parameters(), strict=True):
        if a.requires_grad:
            assert (a.grad - b.grad).abs().max() <= 1e-8 * b.grad.abs().max() + 1e-12, name


def test_the_momentum_network_moves_ahead_of_the_step_along_a_cosine():
    method = _build(momentum=0.5, momentum_end=0.9)
    pairs = [(method.encoder, method.momentum_encoder), (method.projector, method.momentum_projector)]
    for progress, share in ((0.0, 0.5), (0.5, 0.7), (1.0, 0.9)):
        before = [p.clone() for _, net in pairs for p in net.parameters()]
        online = [p for net, _ in pairs for p in net.parameters()]
        method.after_step(progress)
        assert all(
            torch.equal(a, b) for a, b in zip(before, (p for _, n in pairs for p in n.parameters()), strict=True)
        )
        method.before_step(progress)
        for old, own, new in zip(before, online, (p for _, n in pairs for p in n.parameters()), strict=True):
            torch.testing.assert_close(new, share * old + (1 - share) * own.detach())
    assert ReSA().momentum == 0.996 and ReSA().momentum_end == 1.0


def test_momentum_batchnorms_keep_statistics_of_their_own():
    method = _build()
    norm = method.momentum_encoder.net.stem[1]
    before = norm.running_mean.clone()
    method.before_step(0.5)
    assert torch.equal(norm.running_mean, before)
    method(_views())
    assert norm.training and not torch.equal(norm.running_mean, before)
    assert not torch.allclose(norm.running_mean, method.encoder.stem[1].running_mean)


# ---- arms


@pytest.mark.parametrize("kind", ["sinkhorn", "softmax", "hard", "identity"])
@pytest.mark.parametrize("source", ["h", "z"])
def test_arms_of_the_target(kind, source):
    method, views = _build(assignment=kind, source=source, epsilon=0.2), _views()
    h, p, momentum_h, keys = _ends(method, views)
    own, others = (h[0], momentum_h[0]) if source == "h" else (p[0], keys[0])
    similarity = (_unit(own) @ _unit(others).T).detach()
    soft = _sinkhorn(similarity.numpy(), 0.2)
    assignment = {
        "sinkhorn": soft,
        "softmax": (similarity / 0.2).exp() / (similarity / 0.2).exp().sum(1, keepdim=True),
        "hard": torch.eye(8, dtype=torch.float64)[soft.argmax(1)],
        "identity": torch.eye(8, dtype=torch.float64),
    }[kind]
    torch.testing.assert_close(method(views).loss, _loss(assignment, p, keys), rtol=1e-8, atol=1e-10)


def test_targets_differ_between_sources_and_kinds():
    """A choice that nothing reads would make two of these losses equal."""
    views = _views()
    losses = [_build(epsilon=0.2, **arm)(views).loss.item() for arm in ({}, {"assignment": "softmax"}, {"source": "z"})]
    losses += [_build(epsilon=0.2, **arm)(views).loss.item() for arm in ({"ema": False}, {"symmetric": True})]
    losses += [_build(epsilon=0.2, iterations=1)(views).loss.item(), _build()(views).loss.item()]
    assert np.diff(sorted(losses)).min() > 1e-7


def test_the_identity_arm_is_info_nce_against_momentum_keys():
    method, views = _build(assignment="identity", temperature=0.2), _views()
    _, p, _, keys = _ends(method, views)
    expected = (info_nce(p[0], keys[1].detach(), None, 0.2) + info_nce(p[1], keys[0].detach(), None, 0.2)) / 2
    output = method(views)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.terms["self"] == 1 and output.terms["support"] == 1


def test_without_momentum_the_online_network_gives_constants():
    method, views = _build(ema=False, epsilon=0.2), _views()
    assert method.momentum_encoder is None and method.evaluated == (method.encoder, method.projector)
    method.before_step(0.5)
    h, p, _, keys = _ends(method, views)
    h0 = _unit(h[0]).detach()
    assignment = _sinkhorn((h0 @ h0.T).numpy(), 0.2)
    copied = copy.deepcopy(method)
    output = method(views)
    torch.testing.assert_close(output.loss, _loss(assignment, p, keys), rtol=1e-8, atol=1e-10)
    output.loss.backward()
    z = [copied.projector(copied.encoder(x)) for x in views]
    _loss(assignment, z, [key.detach() for key in z]).backward()
    for a, b in zip(method.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)


def test_the_symmetric_form_adds_the_transpose():
    """-1/2m [sum A log D(Z' of Z) + sum A^T log D(Z of Z')], the mean over pairs."""
    method, views = _build(symmetric=True, epsilon=0.2), _views()
    h, p, momentum_h, keys = _ends(method, views)
    a = _sinkhorn((_unit(h[0]) @ _unit(momentum_h[0]).T).detach().numpy(), 0.2)
    terms = []
    for q, v in ((0, 1), (1, 0)):
        s = _unit(p[q]) @ _unit(keys[v]).T / 0.4
        terms.append(-((a * s.log_softmax(1)).sum() + (a.T * s.T.log_softmax(1)).sum()) / 16)
    torch.testing.assert_close(method(views).loss, sum(terms) / 2, rtol=1e-8, atol=1e-10)


# ---- values to know


def test_the_loss_at_collapse_is_the_logarithm_of_the_batch():
    views = _views(16)
    collapsed = _build()
    with torch.no_grad():
        for head in (collapsed.projector, collapsed.momentum_projector.net):
            head[-2].weight.zero_()  # a constant stays one behind the last BatchNorm
            head[-1] = nn.Identity()
            head.append(nn.Linear(16, 16, dtype=torch.float64))
            head[-1].weight.zero_()
            head[-1].bias.fill_(1.0)
    assert collapsed(views).loss.item() == pytest.approx(math.log(16), abs=1e-9)


def test_an_assignment_begins_nearly_uniform_where_all_codes_are_alike():
    base = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    codes = base + 1e-4 * torch.rand(32, 64, generator=torch.Generator().manual_seed(1))
    soft = batch_targets(codes, codes)
    assert (soft - 1 / 32).abs().max() < 1e-3
    torch.testing.assert_close(batch_targets(codes, codes, "softmax"), self_assignment(codes, codes, iterations=0))


# ---- measuring


def test_measuring_says_what_a_training_step_would_see_and_leaves_no_trace():
    method, views = _build(epsilon=0.2), _views(12)
    labels = torch.arange(12) % 3
    h, _, momentum_h, _ = _ends(method, views)
    a = _sinkhorn((_unit(h[0]) @ _unit(momentum_h[0]).T).detach().numpy(), 0.2)
    before, modes = copy.deepcopy(method.state_dict()), [part.training for part in method.modules()]
    found = method.measure(views, labels)
    assert found["self"] == pytest.approx(a.diagonal().mean().item())
    same = (a * (labels[:, None] == labels)).sum() / 12 - a.diagonal().mean()
    assert found["same"] == pytest.approx(same.item())
    assert found["support"] == pytest.approx(torch.special.entr(a).sum(1).exp().mean().item())
    assert all(isinstance(value, float) for value in found.values())
    assert [part.training for part in method.modules()] == modes
    after = method.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    labels[5] = -1  # one is unknown
    assert set(method.measure(views, labels)) == {"self", "support"}


def test_measuring_in_evaluation_mode_and_of_a_bfloat16_network_is_the_same():
    views = tuple(x.float() for x in _views(12))
    labels = torch.arange(12) % 3
    wide, narrow = _build(torch.float32), in_bfloat16(_build(torch.float32))
    expected = wide.measure(views, labels)
    assert wide.eval().measure(views, labels) == expected
    assert not wide.training
    assert narrow.measure(views, labels) == pytest.approx(expected, rel=1e-5)


def test_statistics_come_back_after_an_error():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    with pytest.raises(RuntimeError), batch_statistics(net):
        net(torch.zeros(4, 5))
    assert net[0].running_mean.shape == (3,) and not net.training
    assert not net[0].training


# ---- two processes


ARMS = [{"assignment": "identity"}, {"ema": False}, {"symmetric": True, "source": "z", "predictor": True}]


def _step(net, method, views):
    output = net(views)
    output.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    return {"loss": output.loss.detach(), **output.terms}, gradients


def _on_a_rank(rank):
    found = []
    for arm in ARMS:
        method = sync_batchnorm(_build(epsilon=0.2, **arm))
        mine = tuple(x[rank * 6 : rank * 6 + 6] for x in _views(12, local=1))
        net = in_parallel(method)
        found.append(_step(net, method, mine))
    alone = (
        method.measure(mine, torch.arange(6) % 2) if rank == 0 else None
    )  # would wait for ever if it asked the others
    targets = batch_targets(mine[0].flatten(1), mine[0].flatten(1), "hard", group=WORLD)
    return found, alone, targets


def test_two_processes_are_one_and_a_measurement_needs_no_other():
    (first, alone, hard), (second, none, hard2) = run_ranks(_on_a_rank)
    for arm, one, two in zip(ARMS, first, second, strict=True):
        method = _build(epsilon=0.2, **arm)
        terms, gradients = _step(method, method, _views(12, local=1))
        for key, value in terms.items():
            assert (one[0][key] + two[0][key]).item() / 2 == pytest.approx(value.item(), rel=1e-8), (arm, key)
        for key, grad in gradients.items():
            for found in (one[1][key], two[1][key]):
                assert (found - grad).abs().max() <= 1e-6 * grad.abs().max() + 1e-12, (arm, key)
    assert none is None and 0 < alone["self"] <= 1
    rows = _views(12, local=1)[0].flatten(1)
    assert torch.equal(torch.cat([hard, hard2]), batch_targets(rows, rows, "hard"))


# ---- one graph, bad input


@pytest.mark.parametrize("arm", [{"assignment": "hard"}, {"symmetric": True, "source": "z"}, {"ema": False}], ids=str)
def test_every_arm_traces_into_one_graph(arm):
    torch.compiler.reset()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True, dynamic=False)
    views, found = tuple(x.float() for x in _views(local=1)), []
    for function in (objective, compiled):
        with initialised_from(0, "tiny"):
            method = ReSA(**SMALL | arm).build(SmallResNet(width=4, blocks=(1,)))
        loss, terms, _ = function(method, views, "none", 0.0)
        loss.backward()
        found.append([loss.detach(), *terms.values(), *(p.grad for p in method.parameters() if p.requires_grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(momentum=1.5),
        dict(momentum_end=-0.1),
        dict(temperature=0),
        dict(epsilon=0),
        dict(iterations=0),
        dict(assignment="soft"),
        dict(source="p"),
    ],
    ids=str,
)
def test_impossible_options_are_one_sentence(options):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        ReSA(**options).build(encoder("small", width=4))


# ---- presets


@pytest.mark.parametrize(
    ("name", "numbers"),
    {  # Table 8: encoder, batch, rate, decay, epochs of warm-up of all epochs
        "cifar10": ("resnet18", 256, 0.3, 1e-4, 2, 1000),
        "cifar100": ("resnet18", 256, 0.3, 1e-4, 2, 1000),
        "imagenet100": ("resnet18", 128, 0.5 * 128 / 256, 2.5e-5, 2, 400),
        "imagenet-256": ("resnet50", 256, 0.5, 1e-5, 2, 200),
        "imagenet-1024": ("resnet50", 1024, 0.4 * 4, 1e-5, 10, 800),
    }.items(),
)
def test_a_preset_has_the_published_numbers_and_trains(tmp_path, name, numbers):
    """Two steps on generated images, ImageNet's on smaller ones: at 224 pixels they would take a minute."""
    config = PRESETS[f"resa-{name}"]()
    found = config.encoder, config.batch, config.lr, config.weight_decay, config.warmup * config.epochs, config.epochs
    assert found == (*numbers[:2], *(pytest.approx(number) for number in numbers[2:]))
    assert (config.optimizer, config.lr_end, config.decay_all) == ("sgd", 0.1, True)
    method = config.method
    assert (method.hidden, method.out, method.layers) == (2048, 512, 3)
    assert (method.temperature, method.epsilon, method.iterations, method.momentum) == (0.4, 0.05, 3, 0.996)
    size = min(config.size, 48)
    little = dict(source="synthetic", size=size, per_class=1, test_per_class=1, batch=5, epochs=1, warmup=0.5)
    little |= dict(probe="none", eval_every=0, knn_k=3, threads=1, out=str(tmp_path / "run"), device="cpu")
    run = train(replace(config, **little), say=None, events=False)
    assert math.isfinite(run.final["loss"]) and 0 < run.final["measured_self"] <= 1
    assert run.history[-1]["step"] == 2


def test_published_rates_at_other_lengths():
    assert [PRESETS["resa-imagenet-1024"](epochs=n).lr for n in (100, 200, 800)] == pytest.approx([2.0, 2.0, 1.6])
    for wrong in (dict(method="byol"), dict(regularizer="w2")):
        with pytest.raises(ValueError, match=r"^expected method resa without a regularizer; received "):
            PRESETS["resa-cifar10"](**wrong)
    with pytest.raises(ValueError, match=r"^expected a setting \(cifar10, .*; received 'mnist'"):
        resa_paper("mnist")
