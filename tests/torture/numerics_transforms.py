"""The pure functions under `torch.compile`, `torch.func` and autocast: the same numbers as without, or a reason."""

import torch

from tests.torture.numerics_table import SUBJECTS, Case
from wssl.balance import Centering
from wssl.core.checks import InputError

AUTOCAST = 2e-5  # Relative: internals stay in float32


def _case(seed=0):
    return Case(24, 5, dtype="float32", seed=seed)


def _row(name, what, examples, broken, worst="", note=""):
    for each in broken:
        print(f"  to repeat: {what} of {name}: {each}", flush=True)
    return {
        "function": name,
        "property": what,
        "examples": examples,
        "failed": len(broken),
        "worst": worst,
        "note": note,
    }


def _value_and_grads(subject, function, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs[: subject.free]]
    value = function(*leaves, *inputs[subject.free :])
    grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else []
    return [value.detach(), *(g for g in grads if g is not None)]


def _distance(found, expected):
    return max(float((a - b).abs().max() / (b.abs().max() + 1e-6)) for a, b in zip(found, expected, strict=True))


def _compared(name, what, tolerance, note, transformed, plain):
    try:
        worst = _distance(transformed(), plain())
    except Exception as error:
        return _row(name, what, 1, [f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"])
    return _row(
        name, what, 1, [f"differs by {worst:.2g}"] * (not worst <= tolerance), f"{worst:.1e} of {tolerance:.0e}", note
    )


def compiled(name, dynamic=False):
    subject, inputs = SUBJECTS[name], SUBJECTS[name].inputs(_case())
    torch.compiler.reset()
    function = torch.compile(subject.call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    if dynamic:
        _value_and_grads(subject, function, subject.inputs(Case(31, 5, dtype="float32")))
    what = "compile, dynamic shapes" if dynamic else "compile"
    return _compared(
        name, what, 1e-3, "one graph, value and gradient",
        lambda: _value_and_grads(subject, function, inputs), lambda: _value_and_grads(subject, subject.call, inputs),
    )  # fmt: skip


def autocast(name):
    subject, inputs = SUBJECTS[name], SUBJECTS[name].inputs(_case())

    def cast(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return subject.call(*inputs)

    return _compared(
        name, "autocast", AUTOCAST, "internals in float32: value and gradient",
        lambda: _value_and_grads(subject, cast, inputs), lambda: _value_and_grads(subject, subject.call, inputs),
    )  # fmt: skip


def batched(name):
    """`torch.func.vmap` against a loop; where it cannot, an error of its own that says so."""
    subject = SUBJECTS[name]
    sets = [torch.stack(each) for each in zip(*(subject.inputs(_case(seed)) for seed in range(3)), strict=True)]
    if subject.vmap:
        return _refused(name, "vmap", subject.vmap, lambda: torch.func.vmap(subject.call)(*sets))
    return _compared(
        name, "vmap", 1e-4, "a batch of embedding sets",
        lambda: [torch.func.vmap(subject.call, randomness="same")(*sets)],
        lambda: [torch.stack([subject.call(*(each[i] for each in sets)) for i in range(3)])],
    )  # fmt: skip


def derived(name):
    """`torch.func.grad` and `jacrev` against autograd."""
    subject, inputs = SUBJECTS[name], SUBJECTS[name].inputs(_case())
    rest = inputs[1:]

    def first(z):
        return subject.call(z, *rest).sum()

    if subject.func:
        return _refused(name, "func.grad", subject.func, lambda: torch.func.grad(first)(inputs[0]))

    def plain():
        z = inputs[0].clone().requires_grad_()
        return [torch.autograd.grad(first(z), z)[0]] * 2

    return _compared(
        name, "func.grad", 1e-4, "and jacrev",
        lambda: [torch.func.grad(first)(inputs[0]), torch.func.jacrev(first)(inputs[0])], plain,
    )  # fmt: skip


def _refused(name, what, reason, call):
    try:
        call()
    except (RuntimeError, NotImplementedError, InputError):
        return _row(name, what, 1, [], "refused", reason)
    except Exception as error:
        return _row(name, what, 1, [f"{type(error).__name__}: {error}"])
    return _row(name, what, 1, ["neither refused nor right: the table says that it cannot"])


def functional():
    """`torch.func.functional_call` of the modules with state."""
    module, scores = Centering(5), torch.randn(7, 5)
    found = torch.func.functional_call(module, {"center": torch.ones(5)}, (scores,))
    return _row("Centering", "functional_call", 1, ["wrong"] * (not torch.equal(found, scores - 1)))


LEARNT = [name for name, subject in SUBJECTS.items() if subject.free and not name.startswith(("gaussian", "bhatta"))]


def transform_rows(names=LEARNT):
    for name in names:
        if SUBJECTS[name].compiles:
            yield compiled(name)
    for name in ("nt_xent", "barlow_twins_loss", "wasserstein_uniformity", "uniformity"):
        if name in names:
            yield compiled(name, dynamic=True)
    for transform in (autocast, batched, derived):
        for name in names:
            yield transform(name)
    yield functional()
