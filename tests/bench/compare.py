"""Ours beside another library on the same input: in turns, with the same threads, and with the answers compared.

A row says how many times as long the peer takes, how far both answers lie apart, and how far ours is from what the machine could do.
Where ours takes more than `SLOW` times as long the row must carry a reason, and where the answers differ the difference of definition;
`complaints` names the rows that do neither. A peer that is not installed is a row that says so.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.bench.harness import floor, take_turns

SLOW = 1.2
LIBRARIES = {
    "faiss": "faiss-cpu",
    "ot": "POT",
    "sklearn": "scikit-learn",
    "solo": "solo-learn",
}  # as the index calls them
NEVER = {
    "peer": "no peer",
    "peer ms": None,
    "ratio": None,
    "value differs by": None,
    "gradient differs by": None,
    "equal": None,
}


@dataclass(frozen=True)
class Peer:
    """Another library's way to the same result."""

    name: str  # Library and what is called
    package: str  # What must be installed
    make: Callable  # () -> a function that runs it and returns its answers; imports the package when called
    definition: str = ""  # How its definition differs; empty: the same
    reason: str = ""  # Why ours may take longer


@dataclass(frozen=True)
class Case:
    """One thing to compute, at one size."""

    what: str
    size: str
    ours: Callable  # Runs it and returns its answers
    peers: list[Peer]
    flop: float  # That any program must do
    moved: float  # Bytes that any program must move
    tolerance: float = 1e-3  # Largest relative difference of answers that count as equal
    read: Callable = tuple  # Answers -> value, then gradients or other tensors; not timed


def versions(rows):
    """Versions of the libraries in `rows` that are installed."""
    found = {}
    for library in sorted({row["library"] for row in rows}):
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def installed(package):
    return package in sys.modules or importlib.util.find_spec(package) is not None


def apart(ours, theirs):
    """Relative distance of two answers; 0 where both are 0."""
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (ours, theirs))
    scale = torch.linalg.vector_norm(theirs).item()
    return torch.linalg.vector_norm(ours - theirs).item() / (scale or 1.0)


def rounds(once, repeats, budget):
    """More rounds for what is over in a small part of the budget."""
    return max(repeats, min(200, int(budget / 8 / max(once, 1e-9))))


def first(run, read):
    """Seconds and answers of a first call."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, [torch.as_tensor(x).clone() for x in read(found)]


def started(case):
    """What runs here by name, with the seconds and answers of a first call; and why the other peers do not."""
    runs, once, answers, absent = {"ours": case.ours}, {}, {}, {}
    once["ours"], answers["ours"] = first(case.ours, case.read)
    for peer in case.peers:
        if not installed(peer.package):
            absent[peer.name] = f"{peer.package} is not installed: `make bench` installs it"
            continue
        try:
            run = peer.make()
            once[peer.name], answers[peer.name] = first(run, case.read)
            runs[peer.name] = run
        except Exception as error:  # a peer that does not start is a row, not the end of the table
            absent[peer.name] = f"{peer.package} does not run here: {type(error).__name__}: {error}".splitlines()[0]
    return runs, once, answers, absent


def is_slow(ratio):
    """More than `SLOW` times the peer's time, of a ratio as it is printed."""
    return ratio < round(1 / SLOW, 2)


def compared(case, ceiling, repeats=9, budget=2.0):
    """The rows of one case: a row a peer."""
    runs, once, answers, absent = started(case)
    seconds = take_turns(runs, rounds(once["ours"], repeats, budget), budget, once)
    ours, least = seconds["ours"], floor(case.flop, case.moved, ceiling)
    for peer in case.peers:
        row = {"what": case.what, "size": case.size, "ours ms": round(1e3 * ours, 3), **NEVER, "peer": peer.name}
        row |= {"library": LIBRARIES.get(peer.package, peer.package), "definition": peer.definition}
        row |= {"floor ms": round(1e3 * least, 3), "ours / floor": round(ours / least, 1)}
        if peer.name in absent:
            yield row | {"reason": absent[peer.name]}
            continue
        value, *rest = [apart(a, b) for a, b in zip(answers["ours"], answers[peer.name], strict=True)]
        row |= {"value differs by": value, "gradient differs by": max(rest, default=None)}
        row |= {"equal": all(x <= case.tolerance for x in [value, *rest])}
        row |= {"peer ms": round(1e3 * seconds[peer.name], 3), "ratio": round(seconds[peer.name] / ours, 2)}
        yield row | {"reason": peer.reason if is_slow(row["ratio"]) else ""}


def complaints(rows):
    """A sentence for each row that is slower than its peer without a reason, or differs from it without a definition."""
    for row in rows:
        name = f"{row['what']}, {row['size']}, {row['peer']}"
        if row["ratio"] is None:
            if not row["reason"]:
                yield f"{name}: no measurement and no reason"
            continue
        if is_slow(row["ratio"]) and not row["reason"]:
            yield f"{name}: takes {1 / row['ratio']:.2f} times as long as the peer, and no reason is given"
        if not row["equal"] and not row["definition"]:
            yield f"{name}: another answer than the peer's, and no difference of definition is given"


def with_gradient(loss, *inputs):
    """A function that computes `loss` and the gradient of every input."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def run():
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves).sum()
        value.backward()
        return value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)

    return run


def table(cases, ceiling, repeats=9, budget=2.0):
    """The rows of all cases, one after the other."""
    for case in cases:
        yield from compared(case, ceiling, repeats, budget)
