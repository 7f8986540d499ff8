"""One case at a time: value, gradient, second derivative, NaN, sizes, scale and order of one subject of the table, against what it promises."""

import inspect
import math

import numpy as np
import torch

from tests.torture.numerics_table import ANY, DTYPES, SUBJECTS, Case
from wssl.core.checks import InputError

MOVES = 2  # Draws of rounding errors on the inputs
SPREAD = 64  # A value may be off by what so many rounding errors of the inputs do to the formula


class Broken(Exception):
    """A promise that was not kept; the message says which."""


def expect(ok, what, *details):
    if not ok:
        raise Broken(" ".join([what, *(f"{each:.6g}" if isinstance(each, float) else str(each) for each in details)]))


def _arrays(inputs):
    return [(x.detach().double() if x.is_floating_point() else x).numpy() for x in inputs]


def _called(subject, inputs):
    """The value, or None where it was refused in one sentence."""
    try:
        return subject.call(*inputs)
    except InputError as error:
        expect("\n" not in str(error) and str(error).startswith("expected "), "an error that is no sentence:", error)
        return None
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:150]}") from error


def _reference(subject, case, x, c):
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    drawn = {"dtype": dtype} if "dtype" in inspect.signature(subject.reference).parameters else {}
    with np.errstate(all="ignore"):
        return np.asarray(subject.reference(x, c, **drawn), float)


def _eps(subject, case):
    double = subject.wide or (case.dtype == "float64" and not subject.single)
    return torch.finfo(torch.float64 if double else torch.float32).eps


def _tolerance(subject, case, arrays, expected):
    """What rounding the inputs does to the formula, and rounding units of the value itself."""
    eps, rng, moved = _eps(subject, case), np.random.default_rng([case.seed, 99]), 0.0
    for _ in range(MOVES):
        near = [x * (1 + eps * rng.standard_normal(x.shape)) if x.dtype.kind == "f" else x for x in arrays]
        moved = np.maximum(moved, np.abs(_reference(subject, case, near, near) - expected).max(initial=0))
    size = subject.size(case.n, case.m) if callable(subject.size) else subject.size
    floor = subject.floor * eps * (np.abs(expected).max(initial=0) + size)
    slack = subject.slack(case, arrays, eps) if subject.slack else 0
    tiny = torch.finfo(DTYPES[case.dtype] if case.dtype == "float64" and not subject.single else torch.float32).tiny
    return float(floor + SPREAD * moved + slack + tiny)


def inside(subject, case):
    """Is this one of the exponents at which the value has to be right?"""
    low, high = (subject.reach or ANY)[case.dtype]
    return low <= case.exponent <= high


def value(name, case):
    """(error, tolerance) of the value; raises `Broken`."""
    subject = SUBJECTS[name]
    inputs = subject.inputs(case)
    found = _called(subject, inputs)
    if found is None:
        allowed = subject.least(case.n, case.m) and inside(subject, case) and not subject.refuses(case)
        expect(not allowed, "an input refused that is allowed")
        return 0.0, 0.0
    expect(found.dtype in (torch.float32, torch.float64) or subject.wide, "a result in", found.dtype)
    got = found.detach().double().numpy()
    if not inside(subject, case) and not np.isfinite(got).all():
        return 0.0, 0.0  # beyond the promise, and said so
    _in_range(subject, case, got[np.isfinite(got)])
    if not subject.posed(case):
        return 0.0, 0.0
    arrays = _arrays(inputs)
    expected = _reference(subject, case, arrays, arrays) if subject.reference else np.zeros(got.shape)
    if not np.isfinite(expected).all():
        expect(
            np.isnan(expected).any() or not np.isfinite(got).all(),
            str(got.ravel()[:3]),
            "for",
            str(expected.ravel()[:3]),
        )
        return 0.0, 0.0
    expect(np.isfinite(got).all(), "not finite:", str(got.ravel()[:3]))
    if subject.reference is None:
        return 0.0, 0.0
    expect(got.shape == expected.shape, "shape", got.shape, "for", expected.shape)
    tolerance = _tolerance(subject, case, arrays, expected)
    error = float(np.abs(got - expected).max(initial=0))
    expect(error <= tolerance, f"{got.ravel()[:3]} for {expected.ravel()[:3]}: error", error, "above", tolerance)
    return error, tolerance


def _in_range(subject, case, got):
    eps = _eps(subject, case)
    low, high = (edge(case.n, case.m) if callable(edge) else edge for edge in (subject.low, subject.high))
    slack = 256 * eps * max(1, *(abs(edge) for edge in (low, high) if math.isfinite(edge)), 1)
    expect((got >= low - slack).all() and (got <= high + slack).all(), f"outside [{low:g}, {high:g}]:", str(got[:3]))


def gradient(name, case):
    """(error, tolerance) of the gradient along a random direction; finite everywhere."""
    subject = SUBJECTS[name]
    inputs = subject.inputs(case)
    if not subject.free or not inside(subject, case) or not subject.least(case.n, case.m):
        return 0.0, 0.0
    leaves = [x.detach().requires_grad_() for x in inputs[: subject.free]]
    total = subject.call(*leaves, *inputs[subject.free :])
    pull = torch.from_numpy(np.random.default_rng([case.seed, 55]).standard_normal(tuple(total.shape))).to(total.dtype)
    grads = torch.autograd.grad((total * pull).sum(), leaves, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]
    if subject.posed(case) and not (case.dtype == "float16" and case.exponent < 0):  # 1 / z overflows there by itself
        expect(all(torch.isfinite(g).all() for g in grads), "a gradient that is not finite")
    if (
        case.dtype not in ("float32", "float64")
        or case.exponent < -10  # rows under 1e-12 get no gradient
        or not subject.gradients(case)
        or not subject.posed(case)
        or subject.reference is None
    ):
        return 0.0, 0.0
    return _slope(subject, case, inputs, [g.double().numpy() for g in grads], pull.double().numpy())


def _slope(subject, case, inputs, grads, pull):
    """The gradient along a random direction against central differences of the reference; constants are held."""
    arrays, rng = _arrays(inputs), np.random.default_rng([case.seed, 56])
    directions = [rng.standard_normal(g.shape) * np.abs(x).max(initial=0) for g, x in zip(grads, arrays, strict=False)]
    step, sides = 1e-6, []
    for sign in (1, -1):
        moved = [x + sign * step * d for x, d in zip(arrays, directions, strict=False)] + arrays[len(directions) :]
        sides.append((_reference(subject, case, moved, arrays) * pull).sum())
    slope = (sides[0] - sides[1]) / (2 * step)
    shown = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    size = math.sqrt(sum(np.square(g).sum() * np.square(d).mean() for g, d in zip(grads, directions, strict=True)))
    noise = 1e-15 * max(abs(side) for side in sides) / step  # of the differences
    loose = 2e-2 if case.dtype == "float32" else 1e-5
    tolerance = loose * (size + 1e-3 * abs(slope)) + 32 * noise + (1e-6 if case.dtype == "float32" else 1e-9)
    expect(abs(shown - slope) <= tolerance, "slope", float(shown), "for", float(slope), "above", float(tolerance))
    return float(abs(shown - slope)), float(tolerance)


def second(name, case):
    """Second derivatives are those of `gradgradcheck`, or refused."""
    subject = SUBJECTS[name]
    if not subject.free or subject.twice is None:
        return 0.0, 0.0
    inputs = subject.inputs(Case(7, 3, dtype="float64", seed=case.seed))
    leaves = [x.detach().requires_grad_() for x in inputs[: subject.free]]

    def call(*leaves):
        return subject.call(*leaves, *inputs[subject.free :])

    if subject.twice:
        try:
            torch.autograd.gradgradcheck(call, leaves, atol=1e-4, rtol=1e-3)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
        return 0.0, 1e-3
    try:
        beside = sum(
            x.pow(3).sum() for x in leaves
        )  # a term that can be differentiated again, as in a gradient penalty
        first = torch.autograd.grad(call(*leaves).sum() + beside, leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    except RuntimeError as error:
        expect(len(str(error)) > 20, "a refusal without a reason")
        return 0.0, 0.0
    raise Broken("a second derivative that is neither promised nor refused")


def invariance(name, case):
    """(error, tolerance) under another order of rows and under multiples by a power of two."""
    subject = SUBJECTS[name]
    inputs = subject.inputs(case)
    before = _called(subject, inputs)
    if before is None or not torch.isfinite(before).all() or not subject.posed(case) or not inside(subject, case):
        return 0.0, 0.0
    arrays = _arrays(inputs)
    expected = _reference(subject, case, arrays, arrays) if subject.reference else before.double().numpy()
    tolerance = 2 * (_tolerance(subject, case, arrays, expected) if subject.reference else 1e-4) + 1e-30
    worst = 0.0
    if subject.scale and case.kind != "subnormal" and case.exponent > -10:  # shorter rows count as zero
        factor = 4.0 if case.exponent <= 0 else 0.25
        after = _called(subject, [x * factor if x.is_floating_point() else x for x in inputs])
        worst = float((after - before).double().abs().max())
    if (
        subject.rows
        and inputs[0].ndim == 2
        and all(len(x) == case.n for x in inputs)
        and all(x.shape != (case.n, case.n) for x in inputs)
    ):
        order = torch.from_numpy(np.random.default_rng([case.seed, 33]).permutation(case.n))
        after = _called(subject, [x[order] for x in inputs])
        worst = max(worst, float((after - before).double().abs().max()))
    expect(worst <= tolerance, "another scale or order changes the value by", worst, "above", tolerance)
    return worst, tolerance


def not_a_number(name, case):
    """One NaN or infinite entry in one input: refused, or not finite."""
    subject = SUBJECTS[name]
    if not subject.nan or not subject.least(case.n, case.m):
        return 0.0, 0.0
    rng = np.random.default_rng([case.seed, 44])
    for bad in (math.nan, math.inf, -math.inf):
        inputs = [x.clone(memory_format=torch.contiguous_format) for x in subject.inputs(case)]
        places = [i for i, x in enumerate(inputs) if x.is_floating_point()]
        which = inputs[places[rng.integers(len(places))]]
        which.view(-1)[int(rng.integers(which.numel()))] = bad
        for learning in (False, True)[: 1 + bool(subject.free)]:
            found = _called(subject, [x.requires_grad_(learning and x.is_floating_point()) for x in inputs])
            expect(
                found is None or not torch.isfinite(found).all(),
                f"{bad} in input of shape {tuple(which.shape)} gave",
                str(found),
            )
    return 0.0, 0.0


def _misfits(x):
    """What is no matrix, or none of the right kind."""
    yield "one axis", x[0]
    yield "an axis more", x.unsqueeze(0)
    yield "no rows", x[:0]
    yield "no columns", x[..., :0]
    yield "integers", x.long()
    yield "complex", x.to(torch.complex64)


def misfit(name, case):
    """Wrong shapes and types: one sentence, or an answer where it is one."""
    subject = SUBJECTS[name]
    if not subject.nan:
        return 0.0, 0.0
    inputs = subject.inputs(Case(12, 4, dtype=case.dtype))
    for place, x in enumerate(inputs):
        if not x.is_floating_point():
            continue
        for what, bad in _misfits(x):
            try:
                found = _called(subject, [*inputs[:place], bad, *inputs[place + 1 :]])
                expect(found is None or what != "complex", "an answer:", str(found))
            except Broken as error:
                raise Broken(f"input {place} with {what}: {error}") from error
        if place and inputs[0].ndim == 2:
            for what, bad in (("a row less", x[1:]), ("a column less", x[..., 1:])):
                try:
                    _called(subject, [*inputs[:place], bad, *inputs[place + 1 :]])
                except Broken as error:
                    raise Broken(f"input {place} with {what}: {error}") from error
    return 0.0, 0.0
