"""Alignment and uniformity against the formula retyped in float64, over dtypes, tiles, scales and processes."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.metrics import Alignment, RankMe, Uniformity
from wssl.metrics.alignment_uniformity import alignment, uniformity
from wssl.metrics.spectrum import rankme
from wssl.theory.sphere import uniformity_of_sphere


def rows(n, m, seed=0, dtype=torch.float64):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(z, t=2.0, normalize=True):
    """Equation 2 of Fang et al. 2024, pair by pair, in float64 and with differences, not products."""
    z = z.double()
    if normalize:
        z = z / z.norm(dim=1, keepdim=True)
    i, j = torch.triu_indices(len(z), len(z), 1)
    return torch.logsumexp(-t * (z[i] - z[j]).square().sum(1), 0) - math.log(len(i))


@settings(deadline=None)
@given(
    st.integers(2, 40), st.integers(1, 20), st.integers(1, 50), st.floats(0.1, 60), st.integers(0, 2**16), st.booleans()
)
def test_value_and_gradient_in_float64(n, m, chunk, t, seed, normalize):
    a = rows(n, m, seed).requires_grad_()
    b = a.detach().clone().requires_grad_()
    ours, theirs = uniformity(a, t, normalize, chunk=chunk), reference(b, t, normalize)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-9 * t)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 2e-6), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("n, m", [(512, 256), (300, 32), (64, 512), (1000, 3)])
def test_value_and_gradient_in_lower_precision(n, m, dtype, tolerance):
    z = rows(n, m, dtype=dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    value, truth = uniformity(z), reference(exact)
    assert value.dtype == torch.float32
    assert abs(value.item() - truth.item()) < tolerance
    # a half type rounds the gradient that is handed back, and float16 has no numbers near 1e-6: hence the factor
    (1e3 * value).backward()
    (1e3 * truth).backward()
    bound = max(5e-5, torch.finfo(dtype).eps)
    assert (z.grad.double() - exact.grad).norm() / exact.grad.norm() < bound


def test_autocast_changes_nothing():
    z = rows(200, 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = uniformity(z), alignment(z, z.flip(0))
    torch.testing.assert_close(inside, (uniformity(z), alignment(z, z.flip(0))), rtol=0, atol=0)


def test_gradcheck():
    z = rows(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: uniformity(z, chunk=3), z)
    assert torch.autograd.gradcheck(lambda z: uniformity(z, t=0.7, normalize=False, chunk=2), z)
    assert torch.autograd.gradcheck(lambda z: alignment(z[:3], z[3:6], alpha=3), z)


def test_second_derivative_is_refused_and_not_wrong():
    z = rows(5, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        torch.autograd.grad(uniformity(z), z, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values(dtype):
    constant = torch.full((300, 7), 0.3, dtype=dtype)
    assert uniformity(constant) == 0 and uniformity(1e4 * constant, normalize=False) == 0
    n = 65
    simplex = (torch.eye(n, dtype=torch.float64) - 1 / n).to(dtype)
    assert uniformity(simplex).item() == pytest.approx(-4 * n / (n - 1), rel=1e-6)
    assert uniformity(torch.tensor([[2.0], [-3.0]], dtype=dtype)).item() == pytest.approx(-8, rel=1e-6)
    assert uniformity(rows(2000, 16, 3, dtype)).item() == pytest.approx(uniformity_of_sphere(16), abs=5e-3)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e7])
def test_far_rows_are_finite_and_twins_are_at_distance_zero(scale):
    z = (rows(90, 24, 5) * scale).float()
    truth = reference(z, normalize=False)
    assert truth < -1e4
    torch.testing.assert_close(uniformity(z, normalize=False).double(), truth, rtol=1e-6, atol=0)
    twins = torch.cat([z, z[3:4]]).requires_grad_()
    value = uniformity(twins, normalize=False)
    assert value.item() == pytest.approx(-math.log(91 * 90 / 2), rel=1e-6)
    value.backward()
    assert torch.isfinite(twins.grad).all()


def test_a_far_mean_costs_no_digits():
    z = rows(100, 8, 6)
    far = z + 1e6
    assert uniformity(far, normalize=False).item() == pytest.approx(reference(far, normalize=False).item(), rel=1e-9)
    moved = (z * 1e-2 + 1.0).float()
    assert uniformity(moved, normalize=False).item() == pytest.approx(
        reference(moved, normalize=False).item(), rel=1e-6
    )
    assert uniformity(moved).item() == pytest.approx(
        reference(moved).item(), abs=3e-7
    )  # what rounding the unit rows costs


@pytest.mark.parametrize(
    "make", [torch.zeros, torch.ones, lambda *s: torch.cat([torch.zeros(1, s[1]), rows(s[0] - 1, s[1]).float()])]
)
def test_gradient_is_bounded_where_rows_are_equal_or_zero(make):
    z = make(20, 5).requires_grad_()
    uniformity(z).backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() < 10


def test_near_collapse_keeps_its_gradient():
    base = torch.ones(64, 16) + 1e-3 * rows(64, 16).float()
    z, exact = base.clone().requires_grad_(), base.double().requires_grad_()
    value, truth = uniformity(z), reference(exact)
    assert abs(value.item() - truth.item()) < 2e-7
    value.backward()
    truth.backward()
    assert (z.grad.double() - exact.grad).norm() / exact.grad.norm() < 1e-3


def test_cloned_rows_follow_the_closed_form():
    """L_U of c copies: log((2 c^2 G + n c (c-1)) / (c n (c n - 1))), G the sum of weights over the distinct pairs."""
    z, n = rows(50, 6), 50
    weight = reference(z).exp().item() * n * (n - 1) / 2
    for c in (1, 2, 5):
        closed = math.log((2 * c**2 * weight + n * c * (c - 1)) / (c * n * (c * n - 1)))
        assert uniformity(z.repeat(c, 1)).item() == pytest.approx(closed, abs=1e-12)


MEMORY = """
import resource, torch
from wssl.metrics.alignment_uniformity import uniformity
z = torch.randn(20000, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
uniformity(z[:300]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
uniformity(z).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_twenty_thousand_rows_without_a_matrix_of_pairs():
    """All pairs would be 800 MB in float32; here the forward and the backward pass stay below 100."""
    grown = int(subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout)
    assert grown < 100, f"{grown} MB"


def _network():
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def _on_each_process(rank):
    out = {}
    for normalize in (True, False):
        z = rows(24, 5, 8)[rank * 12 : rank * 12 + 12].requires_grad_()
        value = uniformity(z, normalize=normalize, group=WORLD, chunk=4)
        (3 * value).backward()
        out[normalize] = value.detach(), z.grad, uniformity(z.detach())
    out["one row each"] = uniformity(rows(2, 4, 9)[rank : rank + 1], group=WORLD)
    net = nn.parallel.DistributedDataParallel(_network())
    uniformity(net(rows(16, 6, 2)[rank * 8 : rank * 8 + 8]), group=WORLD).backward()
    out["ddp"] = {k: p.grad for k, p in net.module.named_parameters()}
    uniform, align, rank_me = Uniformity(), Alignment(), RankMe(6)
    part = slice(rank * 10, rank * 10 + 10)  # 10 rows here, 6 there
    uniform.update(rows(16, 6, 2)[part])
    align.update(rows(16, 6, 2)[part], rows(16, 6, 3)[part])
    rank_me.update(rows(16, 6, 2)[part])
    out["metrics"] = uniform.compute(), align.compute(), rank_me.compute()
    return out


def test_two_processes_are_one():
    net = _network()
    reference(net(rows(16, 6, 2))).backward()
    for rank, out in enumerate(run_ranks(_on_each_process)):
        mine = slice(rank * 12, rank * 12 + 12)
        for normalize in (True, False):
            z = rows(24, 5, 8).requires_grad_()
            value = reference(z, normalize=normalize)
            (3 * value).backward()
            theirs, grad, alone = out[normalize]
            torch.testing.assert_close(theirs, value.detach())
            torch.testing.assert_close(grad, 2 * z.grad[mine])  # world_size times, exactly once
            torch.testing.assert_close(alone, reference(z.detach()[mine]))
        torch.testing.assert_close(out["one row each"], reference(rows(2, 4, 9)))
        for name, p in net.named_parameters():
            torch.testing.assert_close(out["ddp"][name], p.grad, rtol=1e-8, atol=1e-10)
        whole = rows(16, 6, 2)
        torch.testing.assert_close(out["metrics"], (reference(whole), alignment(whole, rows(16, 6, 3)), rankme(whole)))


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3.5])
def test_alignment_is_the_mean_distance_of_pairs(alpha):
    z1, z2 = rows(40, 6, 1), rows(40, 6, 2)
    a, b = (z.numpy() / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    assert alignment(z1, z2, alpha).item() == pytest.approx((np.linalg.norm(a - b, axis=1) ** alpha).mean(), rel=1e-12)
    raw = (np.linalg.norm((z1 - z2).numpy(), axis=1) ** alpha).mean()
    assert alignment(z1, z2, alpha, normalize=False).item() == pytest.approx(raw, rel=1e-12)
    same = z1.clone().requires_grad_()
    alignment(same, z1, alpha).backward()
    assert torch.isfinite(same.grad).all()


def test_metric_classes_over_batches_and_merged():
    z1, z2 = rows(90, 5, 1, torch.float32), rows(90, 5, 2, torch.float32)
    parts = []
    for i in range(0, 90, 30):
        align, uniform = Alignment(), Uniformity(t=3.0)
        align.update(z1[i : i + 30], z2[i : i + 30])
        uniform.update(z1[i : i + 30])
        parts.append((align, uniform))
    for other in parts[1:]:
        parts[0][0].merge_state(other[0])
        parts[0][1].merge_state(other[1])
    assert parts[0][0].compute().item() == pytest.approx(alignment(z1, z2).item(), rel=1e-6)
    assert parts[0][1].compute().item() == pytest.approx(reference(z1, 3.0).item(), rel=1e-6)
    parts[0][1].reset()
    parts[0][1].update(z2)
    assert parts[0][1].compute().item() == pytest.approx(reference(z2, 3.0).item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    "call",
    [
        lambda: uniformity(torch.zeros(1, 4)),
        lambda: uniformity(torch.zeros(4)),
        lambda: uniformity(torch.zeros(4, 4), t=0),
        lambda: uniformity(torch.full((4, 4), float("nan"))),
        lambda: uniformity(torch.zeros(4, 4), group="all"),
        lambda: alignment(torch.zeros(4, 4), torch.zeros(5, 4)),
        lambda: alignment(torch.zeros(4, 4), torch.zeros(4, 4), alpha=0),
        lambda: Uniformity(t=-1),
        lambda: Uniformity().compute(),
        lambda: Alignment().compute(),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match="^expected .*; received "):
        call()
