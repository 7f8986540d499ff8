"""Faults, injected one at a time: no run lost, nothing executed, nothing silently wrong, one sentence.

Each part yields a row a kind of fault: how many were injected, and how many of them ended in the result of an undisturbed run ("went on"), were refused
in one sentence whose following leads there ("refused"), or failed: the run cannot be had any more, another result without a word, code that ran, no sentence.
"""

import importlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

FAILURES = ["runs lost", "wrong results", "code executed", "no sentence"]
PARTS = ("training", "companion", "images", "files", "processes")


def rows_of(part, seed):
    """The rows of one part, in a process of its own that forks the rest."""
    rows = []
    for row in importlib.import_module(f"tests.torture.faults_{part}").measure(seed):
        rows.append(row.done())
        print(f"    {part}: {row.fault} in {row.where}: {rows[-1]['injected']} injected", flush=True)
    return rows


def measure(seed):
    """Rows: one a kind of fault; two parts at a time."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(rows_of, part, seed) for part in PARTS]):
            yield from done.result()
