"""ReSA, ExCB, DINO and SwAV as whole methods: 200 steps beside the published step, restated in plain tensors, in float64 and with schedules."""

import functools
import math

import pytest
import torch
from torch import nn

from wssl.methods import DINO, METHODS, ExCB, SwAV

STEPS, N, IMAGES, PIXELS = 200, 12, 48, 3 * 4 * 4
SIZES = dict(hidden=10, out=6)
TOLERANCE = dict(rtol=0, atol=1e-12)


class Encoder(nn.Module):
    out_dim = 9

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(PIXELS, self.out_dim)

    def forward(self, x):
        return self.layer(x.flatten(1)).relu()


@functools.cache
def _images():
    """In four groups."""
    images = torch.randn(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images + 2 * images[torch.arange(IMAGES) % 4]


def _views(step, crops):
    """`crops` noisy copies of a batch."""
    draw = torch.Generator().manual_seed(1000 + step)
    batch = _images()[torch.randperm(IMAGES, generator=draw)[:N]]
    return [batch + 0.5 * torch.randn(batch.shape, generator=draw, dtype=torch.float64) for _ in range(crops)]


def _half_cosine(progress, start, end):
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _rate(step):
    """Ten steps of warm-up, then a cosine to 0."""
    return 0.02 * ((step + 1) / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / (STEPS - 10))) / 2)


# ---- what the papers' code does, in plain tensors


def _unit(z):
    return z / z.square().sum(1, keepdim=True).sqrt()


def _batch_norm(x, scale=1.0, shift=0.0):
    return (x - x.mean(0)) / ((x - x.mean(0)).square().mean(0) + 1e-5).sqrt() * scale + shift


def _encoded(w, x, name="encoder"):
    return (x.flatten(1) @ w[f"{name}.layer.weight"].T + w[f"{name}.layer.bias"]).clamp(min=0)


def _perceptron(w, x, name):
    """Linear, BatchNorm, ReLU, Linear."""
    x = _batch_norm(x @ w[f"{name}.0.weight"].T, w[f"{name}.1.weight"], w[f"{name}.1.bias"]).clamp(min=0)
    return x @ w[f"{name}.3.weight"].T + (w[f"{name}.3.bias"] if f"{name}.3.bias" in w else 0)


def _sinkhorn(scores, epsilon):
    """`distributed_sinkhorn` of SwAV, DINO's successors and ReSA, on one process."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def _cross_entropy(target, scores, temperature):
    scores = scores / temperature
    log_p = scores - scores.max(1, keepdim=True).values
    log_p = log_p - log_p.exp().sum(1, keepdim=True).log()
    return -(target * log_p).sum(1).mean()


def _swapped(scores, targets, temperature):
    """Every view against the targets of the two global ones, not its own."""
    pairs = [(v, t) for t in range(2) for v in range(len(scores)) if v != t]
    return sum(_cross_entropy(targets[t], scores[v], temperature) for v, t in pairs) / len(pairs)


class Plain:
    """Weights by name, stochastic gradient descent with momentum, and what a method keeps between steps."""

    def __init__(self, method):
        self.w = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters() if p.requires_grad}
        self.speed = {name: torch.zeros_like(p) for name, p in self.w.items()}

    def descend(self, loss, rate):
        gradients = torch.autograd.grad(loss, list(self.w.values()), allow_unused=True)
        with torch.no_grad():
            for (name, p), grad in zip(self.w.items(), gradients, strict=True):
                grad = (torch.zeros_like(p) if grad is None else grad) + 1e-4 * p
                self.speed[name] = 0.9 * self.speed[name] + grad
                p -= rate * self.speed[name]

    def copies(self, *names):
        """A teacher: copies of the parts that start with `names`."""
        return {name: p.detach().clone() for name, p in self.w.items() if name.startswith(names)}

    def follow(self, teacher, momentum):
        for name in teacher:
            teacher[name] = momentum * teacher[name] + (1 - momentum) * self.w[name].detach()

    def cosines(self, z, still=False):
        c = self.w["prototypes.weight"]
        return _unit(z) @ _unit(c.detach() if still else c).T

    def embed(self, views):
        """Global crops through the encoder together, local ones after them, all through the projector together."""
        h = torch.cat([_encoded(self.w, torch.cat(views[:2])), _encoded(self.w, torch.cat(views[2:]))])
        return _perceptron(self.w, h, "projector")


class PlainSwAV(Plain):
    def __init__(self, method):
        super().__init__(method)
        self.queues = [queue.rows.clone() for queue in method.queues]

    def step(self, views, progress):
        z = self.embed(views)
        scores = self.cosines(z, still=progress < 0.1).split(N)
        with torch.no_grad():
            targets = []
            for view in range(2):
                older = self.queues[view] if progress >= 0.3 else torch.empty(0, z.shape[1], dtype=z.dtype)
                both = torch.cat([scores[view], self.cosines(older)]) if len(older) else scores[view]
                targets.append(_sinkhorn(both, 0.05)[:N])
        loss = _swapped(scores, targets, 0.1)
        self.fresh = [_unit(each.detach()) for each in z.split(N)[:2]]
        return loss

    def after(self, progress):
        self.queues = [torch.cat([old[N:], new]) for old, new in zip(self.queues, self.fresh, strict=True)]


class PlainDINO(Plain):
    def __init__(self, method):
        super().__init__(method)
        self.teacher = self.copies("encoder", "projector", "prototypes")
        self.center = torch.zeros(8, dtype=torch.float64)

    def step(self, views, progress):
        scores = self.cosines(self.embed(views), still=progress < 0.1).split(N)
        t = self.teacher
        z = _perceptron(t, _encoded(t, torch.cat(views[:2])), "projector")
        self.fresh = _unit(z) @ _unit(t["prototypes.weight"]).T
        targets = ((self.fresh - self.center) / 0.04).softmax(1).split(N)
        return _swapped(scores, targets, 0.1)

    def after(self, progress):
        self.follow(self.teacher, _half_cosine(progress, 0.9, 1.0))
        self.center = 0.8 * self.center + 0.2 * self.fresh.mean(0)


class PlainExCB(Plain):
    def __init__(self, method):
        super().__init__(method)
        self.teacher = self.copies("encoder", "projector", "prototypes")
        self.sizes = torch.full((8,), 1 / 8, dtype=torch.float64)

    def balanced(self, cosines):
        """The operator as printed: one case for each cluster."""
        columns = []
        for k, r in enumerate((8 * self.sizes).tolist()):
            z = cosines[:, k]
            columns.append(1 - (1 - z) * r if r <= 1 else (1 + z) / r - 1)
        return torch.stack(columns, 1)

    def step(self, views, progress):
        w, t, z = self.w, self.teacher, self.embed(views)
        teacher = _perceptron(t, _encoded(t, torch.cat(views[:2])), "projector")
        targets = (self.balanced(_unit(teacher) @ _unit(t["prototypes.weight"]).T) / 0.1).softmax(1)
        self.fresh = targets.argmax(1)
        one, two = targets.split(N)
        normed = _batch_norm(z, w["predictor.0.weight"], w["predictor.0.bias"])
        rest = {
            f"{i}.{kind}": w[f"predictor.{i + 1}.{kind}"]
            for i, kind in ((0, "weight"), (1, "weight"), (1, "bias"), (3, "weight"), (3, "bias"))
        }
        rest = {f"rest.{name}": p for name, p in rest.items()}
        predicted = self.cosines(_perceptron(rest, normed, "rest"), still=True).split(N)
        first, second = self.cosines(z[: 2 * N]).split(N)
        terms = [_cross_entropy(one, second, 0.1), _cross_entropy(two, first, 0.1)]
        terms += [_cross_entropy(target, scores, 0.1) for scores in predicted for target in (one, two)]
        return sum(terms) / len(terms)

    def after(self, progress):
        self.follow(self.teacher, _half_cosine(progress, 0.9, 1.0))
        shares = torch.bincount(self.fresh, minlength=8).double() / len(self.fresh)
        self.sizes = 0.95 * self.sizes + 0.05 * shares


class PlainReSA(Plain):
    def __init__(self, method):
        super().__init__(method)
        self.teacher = self.copies("encoder", "projector")

    def project(self, w, h):
        return _batch_norm(_perceptron(w, h, "projector"))

    def step(self, views, progress):
        t = self.teacher
        self.follow(t, _half_cosine(progress, 0.9, 1.0))
        h = [_encoded(self.w, x) for x in views]
        z = [self.project(self.w, each) for each in h]
        slow = [_encoded(t, x) for x in views[:2]]
        keys = [self.project(t, each) for each in slow]
        target = _sinkhorn(_unit(h[0].detach()) @ _unit(slow[0]).T, 0.05)
        pairs = [(q, v) for v in range(2) for q in range(len(views)) if q != v]
        return sum(_cross_entropy(target, _unit(z[q]) @ _unit(keys[v]).T, 0.4) for q, v in pairs) / len(pairs)

    def after(self, progress):
        pass


EMA = dict(momentum=0.9, momentum_end=1.0)
CASES = {
    "swav": (SwAV(8, queue=3 * N, queue_start=0.3, freeze=0.1, **SIZES), PlainSwAV),
    "dino": (DINO(8, center_momentum=0.8, freeze=0.1, **EMA, **SIZES), PlainDINO),
    "excb": (ExCB(8, size_momentum=0.95, teacher_temperature=0.1, kmeans=0, **EMA, **SIZES), PlainExCB),
    "resa": (METHODS["resa"](**EMA, **SIZES), PlainReSA),
}


def _kept(method, plain):
    """What is carried from step to step besides the weights, as pairs."""
    pairs = []
    teacher = getattr(plain, "teacher", {})
    for name, p in teacher.items():
        part, rest = name.split(".", 1)
        if isinstance(plain, PlainReSA):
            net = (method.momentum_encoder if part == "encoder" else method.momentum_projector).net
        else:
            net = method.target.net[["encoder", "projector", "prototypes"].index(part)]
        pairs.append((net.state_dict()[rest], p))
    if isinstance(plain, PlainSwAV):
        for queue, rows in zip(method.queues, plain.queues, strict=True):
            oldest = int(queue.place)
            pairs.append((torch.cat([queue.rows[oldest:], queue.rows[:oldest]]), rows))
    if isinstance(plain, PlainDINO):
        pairs.append((method.centering.center, plain.center))
    if isinstance(plain, PlainExCB):
        pairs.append((method.balancer.sizes, plain.sizes))
    return pairs


@pytest.mark.parametrize("name", CASES)
def test_200_steps_beside_the_published_step(name):
    options, restated = CASES[name]
    torch.manual_seed(5)
    method = options.build(Encoder()).double().train()
    plain = restated(method)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    losses = []
    for step in range(STEPS):
        views = _views(step, crops=4)
        optimizer.param_groups[0]["lr"] = _rate(step)
        method.before_step(step / STEPS)
        out = method(views)
        optimizer.zero_grad()
        out.loss.backward()
        for p in method.parameters():
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        loss = plain.step(views, step / STEPS)
        plain.descend(loss, _rate(step))
        method.after_step((step + 1) / STEPS)
        plain.after((step + 1) / STEPS)
        torch.testing.assert_close(
            out.loss.detach(), loss.detach(), **TOLERANCE, msg=lambda m, s=step: f"step {s}: {m}"
        )
        losses.append(loss.item())
    assert min(losses[-20:]) < losses[0] - 0.05, "it learns"
    for key, p in method.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.detach(), plain.w[key].detach(), **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")
    for ours, theirs in _kept(method, plain):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
