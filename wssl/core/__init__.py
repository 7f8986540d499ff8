"""Checks, paths, seeds, schedules, collectives and the look of figures."""

from importlib import import_module
from typing import TYPE_CHECKING

from wssl.core.errors import InputError, NotFinite, expect
from wssl.core.paths import cache_dir, find_root, project_root, write_atomically
from wssl.core.schedules import cosine, linear, warmup_cosine

if TYPE_CHECKING:
    from wssl.core.checks import as_embeddings, as_labels, as_views, check_finite
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
    from wssl.core.rows import normalize_rows, widen
    from wssl.core.seeds import generator, seed_everything, stream_seed

__all__ = [
    "InputError", "NotFinite", "SyncBatchNorm", "WORLD", "all_gather_rows", "all_reduce_rows", "all_reduce_sum", "as_embeddings",
    "as_labels", "as_views", "cache_dir", "check_finite", "cosine", "expect", "find_root", "from_first", "generator",
    "joined", "linear", "normalize_rows", "project_root", "rank", "seed_everything", "stream_seed", "sync_batchnorm",
    "warmup_cosine", "widen", "world_size", "write_atomically",
]


def __getattr__(name):
    "PyTorch is imported when a name that needs it is asked for, not for `wssl --help`."
    for module in ("checks", "collectives", "rows", "seeds") if name in __all__ else ():
        if hasattr(found := import_module(f"wssl.core.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module 'wssl.core' has no attribute {name!r}")
