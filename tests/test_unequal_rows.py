"""Two processes with unequal shares of the batch: the loss of the whole batch, or one error that is the same on both; nothing in between."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.balance import Centering, ClusterBalancer, assignment_softness, self_assignment, sinkhorn_knopp
from wssl.core.collectives import all_gather_rows, all_reduce_rows, row_counts
from wssl.losses import (
    WassersteinUniformityLoss,
    barlow_twins_loss,
    cholesky_whiten,
    coding_rate,
    info_nce,
    intl_loss,
    iter_norm,
    local_vicreg,
    lu_of_views,
    nt_xent,
    resa_loss,
    sigreg_loss,
    simdino_loss,
    sliced_w2_loss,
    swav_loss,
    vicreg_loss,
    visreg_loss,
    w2_of_views,
    w_mse_loss,
    zero_fcl_loss,
    zero_icl_loss,
)
from wssl.metrics import Moments, uniformity, uniformity_zscore, wasserstein_uniformity


def _seeded():
    return torch.Generator().manual_seed(5)


def _maps(z):
    """(n, m) as maps (n, 4, m / 2): four places, the first two as they are, the others turned over."""
    half = z.unflatten(1, (2, -1))
    return torch.cat([half, half.flip(1) * 0.5 + 0.1], 1)


SUMMED = {  # whatever the shares, they have the value of the whole batch while there are as many rows as columns
    "w2": w2_of_views,
    "w2, squared": lambda a, b, **how: wasserstein_uniformity(a, squared=True, **how) + 0 * b.sum(),
    "w2, raw rows": lambda a, b, **how: wasserstein_uniformity(a, normalize=False, **how) + 0 * b.sum(),
    "w2, corrected": lambda a, b, **how: wasserstein_uniformity(torch.cat([a, b]), corrected=True, **how),
    "w2, module": lambda a, b, group=None: WassersteinUniformityLoss(0.3, group=group)(a, b),
    "barlow": barlow_twins_loss,
    "vicreg": vicreg_loss,
    "zero_fcl": zero_fcl_loss,
    "w_mse": w_mse_loss,
    "whitened": lambda a, b, **how: (
        (cholesky_whiten(a, **how)[0] * b[0]).sum() if how else _first_rows(cholesky_whiten, a, b)
    ),
    "iter_norm": lambda a, b, **how: (iter_norm(a, **how)[0] * b[0]).sum() if how else _first_rows(iter_norm, a, b),
    "intl": lambda a, b, **how: intl_loss(a, b, trace_weight=0.1, **how),
    "coding_rate": lambda a, b, **how: coding_rate(a, **how) + coding_rate(b, **how),
    "simdino": lambda a, b, **how: simdino_loss([a, b], [b, a], **how),
    "sigreg": lambda a, b, **how: sigreg_loss(a, slices=9, generator=_seeded(), **how) + 0 * b.sum(),
    "sigreg, unscaled": lambda a, b, **how: sigreg_loss(b, 9, scaled=False, generator=_seeded(), **how) + 0 * a.sum(),
    "visreg without its shape": lambda a, b, **how: visreg_loss(a, shape=0, **how) + 0 * b.sum(),
    "swav": lambda a, b, **how: swav_loss(a.tanh(), b.tanh(), **how),
    "info_nce with a queue": lambda a, b, **how: info_nce(a, b, torch.ones(3, a.shape[1], dtype=a.dtype).tril(), **how),
    "local_vicreg": lambda a, b, **how: local_vicreg(_maps(a), _maps(b), matches=2, **how),
}
GATHERED = {  # they look at all rows at once
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "lu": lu_of_views,
    "lu, raw rows": lambda a, b, **how: uniformity(a, normalize=False, **how) + 0 * b.sum(),
    "zero_icl": zero_icl_loss,
    "sliced": lambda a, b, **how: sliced_w2_loss(a, slices=9, generator=_seeded(), **how) + 0 * b.sum(),
    "sliced, few slices": lambda a, b, **how: sliced_w2_loss(a, slices=2, generator=_seeded(), **how) + 0 * b.sum(),
    "visreg": lambda a, b, **how: visreg_loss(a, slices=9, generator=_seeded(), **how) + 0 * b.sum(),
    "resa": lambda a, b, **how: resa_loss(a, b, torch.eye(len(a), dtype=a.dtype), **how),
}
BY_ROWS = ["w2", "w2, squared", "barlow", "vicreg", "iter_norm", "intl", "coding_rate", "simdino", "local_vicreg"]
TALL, WIDE = (25, 6), (13, 40)  # rows of both processes, columns
SHARES = {TALL: (10, 15), WIDE: (5, 8)}


def _first_rows(whiten, a, b):
    """What two processes that look at their first row each would say, added."""
    w = whiten(a)
    return (w[0] * b[0]).sum(), (w[SHARES[tuple(a.shape)][0]] * b[SHARES[tuple(a.shape)][0]]).sum()


def _views(shape):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, *shape, generator=generator, dtype=torch.float64) @ torch.randn(
        shape[1], shape[1], generator=generator, dtype=torch.float64
    ).div(shape[1] ** 0.5)
    return [view.clone().add_(0.3) for view in (z[0], z[0] + 0.5 * z[1])]


def _mine(shape, rank):
    start = rank * SHARES[shape][0]
    return slice(start, start + SHARES[shape][rank])


def _said(call):
    """What a call gives: its value, or its error."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


def _learned(loss, views):
    views = [view.clone().requires_grad_() for view in views]
    value = loss(*views, group=WORLD)
    value.backward()
    return value.detach(), [view.grad for view in views]


def _on_a_rank(rank):
    found = {}
    for shape, names in ((TALL, [*SUMMED, *GATHERED]), (WIDE, [*BY_ROWS, *GATHERED])):
        views = [view[_mine(shape, rank)] for view in _views(shape)]
        for name in names:
            loss = (SUMMED | GATHERED)[name]
            found[name, shape, "read"] = _said(lambda loss=loss, views=views: loss(*views, group=WORLD))
            found[name, shape, "learned"] = _said(lambda loss=loss, views=views: _learned(loss, views))
    return found, _others(rank)


def _others(rank):
    """What is no loss but looks across the processes."""
    a, b = (view[_mine(TALL, rank)] for view in _views(TALL))
    centering, balancer = Centering(6), ClusterBalancer(6, momentum=0.5)
    centering.update(a, WORLD)
    balancer.update(a.argmax(1), WORLD)
    long = torch.randn(60, 4, generator=_seeded())[slice(0, 20) if rank == 0 else slice(20, 60)]
    sent = []
    real = dist.all_reduce
    dist.all_reduce = lambda x, *args, **how: sent.append(x.numel()) or real(x, *args, **how)
    for loss in (barlow_twins_loss, w2_of_views):
        _learned(loss, [a, b])
    dist.all_reduce = real
    return {
        "centre": centering.center,
        "sizes": balancer.sizes,
        "codes": sinkhorn_knopp(a.tanh(), group=WORLD),
        "zscore": uniformity_zscore(long, group=WORLD),
        "moments": Moments(6).update(a).reduce(WORLD).cov,
        "gathered": _said(lambda: all_gather_rows(a, WORLD)),
        "gathered labels": _said(lambda: all_gather_rows(torch.arange(len(a)), WORLD)),
        "assignment": _said(lambda: self_assignment(a, b, group=WORLD)),
        "softness": _said(lambda: assignment_softness(torch.eye(len(a)), group=WORLD)),
        "counts": row_counts(len(a), a, WORLD),
        "sums": all_reduce_rows(a.float().sum(0), len(a), WORLD),
        "sent": sent,
    }


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(_on_a_rank)


def _whole(name, shape):
    views = [view.requires_grad_() for view in _views(shape)]
    value = SUMMED[name](*views)
    value = value if isinstance(value, tuple) else (value, value)
    slopes = torch.autograd.grad(sum(value) / 2, views)
    return value, slopes


@pytest.mark.parametrize("name", SUMMED)
def test_a_loss_of_sums_is_that_of_the_whole_batch(ranks, name):
    value, slopes = _whole(name, TALL)
    for rank, (found, _) in enumerate(ranks):
        torch.testing.assert_close(found[name, TALL, "read"], value[rank].detach(), rtol=1e-9, atol=1e-11)
        learned, grads = found[name, TALL, "learned"]
        torch.testing.assert_close(learned, value[rank].detach(), rtol=1e-9, atol=1e-11)
        for grad, slope in zip(grads, slopes, strict=True):
            torch.testing.assert_close(grad, 2 * slope[_mine(TALL, rank)], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("name", "shape"), [(n, s) for s in (TALL, WIDE) for n in GATHERED] + [(n, WIDE) for n in BY_ROWS]
)
def test_a_loss_that_gathers_rows_says_the_same_on_every_process(ranks, name, shape):
    times = 2 if name == "w2" else 1  # both views together
    first, second = (times * n for n in SHARES[shape])
    expected = "InputError", f"expected as many rows on each process; received {first}, {second}"
    for found, _ in ranks:
        assert found[name, shape, "learned"] == expected
        assert found[name, shape, "read"] == expected


def test_against_formulas_that_know_no_processes(ranks):
    a, b = (view.numpy() for view in _views(TALL))
    found = ranks[0][0]
    both = np.concatenate([a, b])
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    root = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(unit.T, bias=True)), 0, None)).sum()
    assert found["w2", TALL, "read"].item() == pytest.approx(math.sqrt(2 - 2 / math.sqrt(6) * root), rel=1e-9)
    s1, s2 = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (a, b))
    c = s1.T @ s2 / len(a)
    barlow = ((1 - np.diag(c)) ** 2).sum() + 0.0051 * ((c - np.diag(np.diag(c))) ** 2).sum()
    assert found["barlow", TALL, "read"].item() == pytest.approx(barlow, rel=1e-9)
    covariances = [np.cov(x.T) for x in (a, b)]
    spread = sum(np.clip(1 - np.sqrt(np.diag(v) + 1e-4), 0, None).mean() for v in covariances) / 2
    beside = sum(((v - np.diag(np.diag(v))) ** 2).sum() / 6 for v in covariances)
    vicreg = 25 * ((a - b) ** 2).mean() + 25 * spread + beside
    assert found["vicreg", TALL, "read"].item() == pytest.approx(vicreg, rel=1e-9)


def test_what_else_looks_across_processes(ranks):
    a, b = _views(TALL)
    centering, balancer = Centering(6), ClusterBalancer(6, momentum=0.5)
    centering.update(a)
    balancer.update(a.argmax(1))
    codes, long = sinkhorn_knopp(a.tanh()), torch.randn(60, 4, generator=_seeded())
    refused = "InputError", "expected as many rows on each process; received 10, 15"
    for rank, (_, other) in enumerate(ranks):
        torch.testing.assert_close(other["centre"], centering.center)
        torch.testing.assert_close(other["sizes"], balancer.sizes)
        torch.testing.assert_close(other["codes"], codes[_mine(TALL, rank)], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other["zscore"], uniformity_zscore(long), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other["moments"], torch.from_numpy(np.cov(a.numpy().T, bias=True)))
        assert [other[key] for key in ("gathered", "gathered labels", "assignment", "softness")] == [refused] * 4
        assert other["counts"] == [10, 15]
        sums, rows = other["sums"]
        assert rows.total == rows.number == 25 and rows.each == [10, 15]
        torch.testing.assert_close(sums, a.float().sum(0))


def test_the_numbers_of_rows_cost_no_message(ranks):
    for _, other in ranks:
        # Barlow: two means and two variances, each with its numbers of rows or without, the products; then the same backwards.
        # W2: the mean and the products; its gradient sends nothing
        assert other["sent"] == [8, 8 - 2, 8, 8 - 2, 36] + [36, 6, 8, 6, 8] + [8, 36]
