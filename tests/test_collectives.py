"""Two real gloo processes against one process on the whole batch."""

import torch
from torch import nn

from tests.distributed import run_ranks
from wssl import WORLD
from wssl.core.collectives import all_gather_rows, all_reduce_sum, rank, sync_batchnorm, world_size


def _rows(seed, shape=(8, 5)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _collect(rank_):
    x = _rows(0)[rank_ * 4 : rank_ * 4 + 4].requires_grad_()
    gathered = all_gather_rows(x, WORLD)
    loss = (gathered.T @ gathered).square().sum() + all_reduce_sum(x.sum(0), WORLD).pow(3).sum()
    loss.backward()
    assert world_size(WORLD) == 2 and rank(WORLD) == rank_ and world_size(None) == 1
    return gathered.detach(), loss.detach(), x.grad


def test_value_is_global_and_gradient_is_world_size_times_global():
    x = _rows(0).requires_grad_()
    loss = (x.T @ x).square().sum() + x.sum(0).pow(3).sum()
    loss.backward()
    for rank_, (gathered, value, grad) in enumerate(run_ranks(_collect)):
        torch.testing.assert_close(gathered, x.detach())
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(grad, 2 * x.grad[rank_ * 4 : rank_ * 4 + 4])


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
        nn.BatchNorm1d(3, affine=False),
    )


def _train(rank_):
    net = nn.parallel.DistributedDataParallel(sync_batchnorm(_network()))
    x = _rows(1, (8, 3, 6, 6)).float()[rank_ * 4 : rank_ * 4 + 4]
    net(x).pow(3).mean().backward()
    return {k: p.grad for k, p in net.module.named_parameters()}, dict(net.module.state_dict())


def test_sync_batchnorm_under_ddp_equals_one_process():
    net = _network()
    net(_rows(1, (8, 3, 6, 6)).float()).pow(3).mean().backward()
    grads = {k: p.grad for k, p in net.named_parameters()}
    for rank_grads, state in run_ranks(_train):
        for name, grad in grads.items():
            torch.testing.assert_close(rank_grads[name], grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(state["1.running_var"], net.state_dict()["1.running_var"])
        torch.testing.assert_close(state["5.running_mean"], net.state_dict()["5.running_mean"])
