"""A whole training step, from views to moved weights, beside the same network with lightly's loss, momentum and examples' loop; LARS and the momentum update alone."""

import copy
import importlib

import torch
from torch import nn

from tests.bench.compare import Case, Peer, table
from tests.bench.losses import of_lightly, solo
from wssl.core.seeds import generator
from wssl.data.images import synthetic
from wssl.methods import BYOL, BarlowTwins, SimCLR
from wssl.models import MomentumNetwork, encoder
from wssl.training import LARS, TrainConfig
from wssl.training.config import views_of
from wssl.training.step import build_method, make_optimizer, train_step

TOGETHER = "both views pass the network as one batch, whose activations are twice as large as the caches can hold"
FOREACH = "ours passes over all weights at once, five times, so that a GPU has few launches; on a processor the peer's loop finds each weight in the cache"
HALVES = "each view passes the network apart, as its examples do, so BatchNorm sees half as many rows"


def ours(config, views):
    method = build_method(config).train()
    optimizer = make_optimizer(method, config)
    return lambda: (train_step(method, optimizer, views, config, 0.5, 0.5)["loss"],)


def theirs(config, views, name):
    """The loop of lightly's examples around a copy of our network."""
    method = build_method(config).train()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=config.lr)
    net = nn.Sequential(method.encoder, method.projector)
    criterion = of_lightly(name, **{"temperature": config.method.temperature} if name == "NTXentLoss" else {})

    def run():
        loss = criterion(*(net(x) for x in views))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return (loss.detach(),)

    return run


def their_byol(config, views):
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    method = build_method(config).train()
    net, predictor = nn.Sequential(method.encoder, method.projector), method.predictor
    target = copy.deepcopy(net)
    deactivate_requires_grad(target)
    optimizer = torch.optim.Adam([*net.parameters(), *predictor.parameters()], lr=config.lr)
    criterion = of_lightly("NegativeCosineSimilarity")

    def run():
        update_momentum(net, target, m=0.99)
        p1, p2 = (predictor(net(x)) for x in views)
        with torch.no_grad():
            t1, t2 = (target(x) for x in views)
        loss = 4 + 2 * (criterion(p1, t2) + criterion(p2, t1))  # as the paper's squared distance
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return (loss.detach(),)

    return run


def flop_of_a_step(method, views, passes):
    """Products of all convolutions and layers, twice a multiply-add, `passes` times a forward pass."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        each = layer.weight[0].numel() if output.dim() == 4 else layer.weight.shape[1]
        total += 2 * output.numel() * each

    net = copy.deepcopy(nn.Sequential(method.encoder, method.projector))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.cat(views))
    return passes * total


METHODS = {
    "SimCLR": (SimCLR(), "NTXentLoss", HALVES, 3),
    "Barlow Twins": (BarlowTwins(lambd=5e-3), "BarlowTwinsLoss", "", 3),
    "BYOL": (BYOL(momentum_end=0.99), None, "", 4),
}


def step(name, n):
    method, loss, definition, passes = METHODS[name]
    config = TrainConfig(method=method, source="synthetic", batch=n)
    images = synthetic("train", per_class=-(-n // 10)).x[:n]
    views = views_of(config)(images, generator(0, "bench", "step"))
    built = build_method(config)
    peer = Peer(
        f"lightly {loss or 'NegativeCosineSimilarity + update_momentum'}",
        "lightly",
        lambda: theirs(config, views, loss) if loss else their_byol(config, views),
        definition,
        TOGETHER if definition else "",
    )
    moved = 4 * (2 * views[0].numel() + 7 * sum(p.numel() for p in built.parameters()))
    flop = flop_of_a_step(built, views, passes)
    tolerance = 2e-2 if definition else 1e-3
    yield Case(f"{name}, a training step", f"batch {n}", ours(config, views), [peer], flop, moved, tolerance)


def resnet_weights(seed):
    random = torch.Generator().manual_seed(seed)
    shapes = [p.shape for p in encoder("resnet18").parameters()]
    weights = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    for p in weights:
        p.grad = torch.randn(p.shape, generator=random)
    return [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]


def lars(options=(("lr", 0.1), ("momentum", 0.9))):
    options = dict(options)

    def groups():
        weights, biases = resnet_weights(0)
        return weights, biases, [{"params": weights, "weight_decay": 1e-4}, {"params": biases, "weight_decay": 0.0}]

    def moving(make):
        weights, biases, params = groups()
        optimizer, grads = make(params), [p.grad.clone() for p in weights + biases]

        def run():
            optimizer.step()
            for p, grad in zip(weights + biases, grads, strict=True):  # a peer may write into it
                p.grad.copy_(grad)
            return weights[0].detach().clone(), weights[-1].detach().clone()

        return run

    def of_lightly_lars():
        make = importlib.import_module("lightly.utils.lars").LARS
        return moving(lambda params: make(params, trust_coefficient=0.02, **options))

    def of_solo():
        wrap = solo("utils.lars").LARSWrapper
        return moving(lambda params: wrap(torch.optim.SGD(params, **options), eta=0.02, exclude_bias_n_norm=True))

    numbers = sum(p.numel() for part in resnet_weights(0) for p in part)
    norm = "adds the lengths of gradient and decay, where ours takes the length of their sum (You et al. 2017 has both forms)"
    peers = [
        Peer("lightly LARS", "lightly", of_lightly_lars, norm, FOREACH),
        Peer("solo-learn LARSWrapper", "solo", of_solo, norm, FOREACH),
    ]
    case = moving(lambda params: LARS(params, eta=0.02, **options))
    yield Case("LARS, a step", "ResNet-18's weights", case, peers, 8 * numbers, 4 * 7 * numbers)


def average(momentum=0.99):
    def pair():
        weights, biases = resnet_weights(0)
        net = nn.ParameterList(weights + biases)
        other, more = resnet_weights(1)
        return net, nn.ParameterList(other + more)

    def run_ours():
        net, online = pair()
        target = MomentumNetwork(net)

        def run():
            target.update(online, momentum)
            return (next(target.parameters()).detach().clone(),)

        return run

    def run_lightly():
        from lightly.models.utils import update_momentum

        target, online = pair()

        def run():
            update_momentum(online, target, momentum)
            return (next(target.parameters()).detach().clone(),)

        return run

    def run_solo():
        target, online = pair()
        updater = solo("utils.momentum").MomentumUpdater(momentum)

        def run():
            updater.update(online, target)
            return (next(target.parameters()).detach().clone(),)

        return run

    numbers = sum(p.numel() for part in resnet_weights(0) for p in part)
    peers = [
        Peer("lightly update_momentum", "lightly", run_lightly),
        Peer("solo-learn MomentumUpdater", "solo", run_solo),
    ]
    yield Case("momentum update", "ResNet-18's weights", run_ours(), peers, 3 * numbers, 4 * 3 * numbers)


SIZES = {step: [(name, n) for name in METHODS for n in (256, 512)], lars: [()], average: [()]}


def measure(ceiling, repeats=9, budget=2.0):
    """Rows: one a method or part, a size and a peer."""
    cases = (case for family, sizes in SIZES.items() for size in sizes for case in family(*size))
    yield from table(cases, ceiling, repeats, budget)
