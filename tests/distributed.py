"""Real processes on one machine: run a function on each rank of a gloo job and collect what it returns."""

import multiprocessing
import os
import socket
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# one server a test session imports what the processes need; it has never computed anything, so it may be forked
multiprocessing.set_forkserver_preload(
    ["torch", "torch._dynamo", "wssl.evaluation", "wssl.training", "tests.distributed"]
)


def _rank_main(rank, fn, world_size, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        results[rank] = fn(rank)
    finally:
        dist.destroy_process_group()


def run_ranks(fn, *args, world_size=2):
    """`fn(*args, rank)` on `world_size` gloo processes; returns the list of results by rank. `fn` must be importable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        arguments = (partial(fn, *args), world_size, port, results)
        mp.start_processes(_rank_main, arguments, nprocs=world_size, start_method="forkserver")
        return [results[rank] for rank in range(world_size)]
