"""What the loop and W2 cost in a training step: BYOL with the small encoder, batch 256, embeddings of 256 dimensions (512 x 256 for W2)."""

import statistics
from dataclasses import replace

import torch

from tests.bench.harness import clock
from wssl.core.seeds import generator
from wssl.data.images import synthetic
from wssl.methods import BYOL
from wssl.training import TrainConfig
from wssl.training.config import views_of
from wssl.training.step import build_method, make_optimizer, train_step

CONFIG = TrainConfig(method=BYOL(out=256), source="synthetic", batch=256)


def by_loop(config, images):
    """A step of our loop: rows, views, and what `train_epoch` calls."""
    method = build_method(config).train()
    optimizer, views, count = make_optimizer(method, config), views_of(config), iter(range(10**9))

    def step():
        draw = generator(config.seed, "bench", next(count))
        rows = torch.randperm(len(images), generator=draw)[: config.batch]
        train_step(method, optimizer, views(images.x[rows], draw), config, 0.5, 0.5)

    return step


def by_hand(config, images):
    """The same network and views in the shortest loop there is."""
    method = build_method(config).train()
    views, count = views_of(config), iter(range(10**9))
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)

    def step():
        draw = generator(config.seed, "bench", next(count))
        rows = torch.randperm(len(images), generator=draw)[: config.batch]
        loss = method(views(images.x[rows], draw)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(0.5)

    return step


def rounds(functions, repeats):
    """Seconds of each function in rounds of one call each, in an order that turns, after two calls to warm up."""
    for function in functions.values():
        function(), function()
    seconds, names = {name: [] for name in functions}, list(functions)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(clock(functions[name]))
    return seconds


def measure(repeats=50):
    """Rows of: step, milliseconds (median), per cent more than its base in the same round (median and quartiles)."""
    images = synthetic("train", per_class=60)
    functions = {
        "by hand": by_hand(CONFIG, images),
        "loop": by_loop(CONFIG, images),
        "loop + W2": by_loop(replace(CONFIG, regularizer="w2", weight=0.2), images),
    }
    seconds, bases = rounds(functions, repeats), {"loop": "by hand", "loop + W2": "loop"}
    for name, values in seconds.items():
        row = {"step": name, "ms": round(1e3 * statistics.median(values), 1), "steps": repeats}
        if base := bases.get(name):
            more = [100 * (a / b - 1) for a, b in zip(values, seconds[base], strict=True)]
            low, middle, high = statistics.quantiles(more, n=4)
            medians = 100 * (statistics.median(values) / statistics.median(seconds[base]) - 1)
            row |= {"against": base, "% more": round(medians, 1), "% more by round": round(middle, 1)}
            row |= {"quartiles": f"{low:.1f} to {high:.1f}"}
        yield row
