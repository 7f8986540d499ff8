"""Checks, paths, seeds, schedules, collectives and the look of figures."""

from wssl.core.checks import InputError, NotFinite, as_embeddings, as_labels, as_views, check_finite, expect
from wssl.core.collectives import (
    WORLD,
    SyncBatchNorm,
    all_gather_rows,
    all_reduce_rows,
    all_reduce_sum,
    from_first,
    joined,
    rank,
    sync_batchnorm,
    world_size,
)
from wssl.core.paths import cache_dir, find_root, project_root, write_atomically
from wssl.core.rows import normalize_rows, widen
from wssl.core.schedules import cosine, linear, warmup_cosine
from wssl.core.seeds import generator, seed_everything, stream_seed

__all__ = [
    "InputError", "NotFinite", "SyncBatchNorm", "WORLD", "all_gather_rows", "all_reduce_rows", "all_reduce_sum", "as_embeddings",
    "as_labels", "as_views", "cache_dir", "check_finite", "cosine", "expect", "find_root", "from_first", "generator",
    "joined", "linear", "normalize_rows", "project_root", "rank", "seed_everything", "stream_seed", "sync_batchnorm",
    "warmup_cosine", "widen", "world_size", "write_atomically",
]
