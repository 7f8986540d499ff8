"""Timings that can be compared: functions take turns in one run, and each is also measured against what the machine could do."""

import statistics
import time

import torch
from threadpoolctl import threadpool_limits

THREADS = 2


def limit_threads(threads=THREADS):
    """The same number of threads for PyTorch and for NumPy's BLAS, which keeps its own."""
    torch.set_num_threads(threads)
    return threadpool_limits(threads, "blas")


def clock(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(functions, repeats=15, budget=20.0, once=None):
    """Median seconds of each function over rounds in which each is called once, after one call to warm up (or none where `once` has its seconds).

    A function of which `repeats` calls would take longer than `budget` seconds sits out the later rounds, after three calls at least.
    """
    once = once or {name: clock(function) for name, function in functions.items()}
    rounds = {name: min(repeats, max(3, int(budget / seconds))) for name, seconds in once.items()}
    seconds = {name: [] for name in functions}
    for turn in range(repeats):
        for name, function in functions.items():
            if turn < rounds[name]:
                seconds[name].append(clock(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def ceilings():
    """What this machine reaches now: float32 operations a second in a large product, bytes a second in a copy."""
    a, source = torch.randn(2048, 2048), torch.zeros(2**26)
    target, b = torch.zeros_like(source), a.numpy()
    product = min(clock(function) for function in [lambda: a @ a, lambda: b @ b] * 4)
    copy = min(clock(lambda: target.copy_(source)) for _ in range(5))
    return {"flop/s": 2 * 2048**3 / product, "bytes/s": 2 * 4 * source.numel() / copy}


def floor(flop, moved, ceiling):
    """Seconds below which no program can do `flop` operations and move `moved` bytes here."""
    return max(flop / ceiling["flop/s"], moved / ceiling["bytes/s"])
