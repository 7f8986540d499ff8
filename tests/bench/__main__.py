"""`python -m tests.bench [--record] [--repeats N] [topic ...]`: ratios within one run; take it on a quiet machine. Exit 1 if a row of the
topics against peers is slower than its peer, or differs from it, and does not say why."""

import argparse
import os
import sys
import warnings

import pandas as pd

from tests.bench import (
    augmentation,
    earlier,
    evaluation,
    losses,
    metrics,
    reading,
    solvers,
    step,
    training,
    uniformity,
    views,
)
from tests.bench.compare import complaints, versions
from tests.bench.harness import THREADS, ceilings, limit_threads
from tests.record import about, record

# topic -> (what the columns say, function of the machine's ceilings and the number of repeats that gives a table's rows)
TOPICS = {
    "w2": ("W2 forward + backward; other columns: how many times as long they take", uniformity.losses),
    "moments": (
        "Moments, rows a second; last column: how many times as long one pass in float64 takes",
        uniformity.moments,
    ),
    "solvers": ("The two solvers of W2, forward and backward", solvers.measure),
    "augmentation": (
        "Views of images against torchvision",
        lambda ceiling, repeats: augmentation.measure(repeats=min(repeats, 5)),
    ),
    "step": (
        "A training step, BYOL with the small encoder, batch 256, 256 dimensions: what the loop and W2 add",
        lambda ceiling, repeats: step.measure(max(repeats, 50)),
    ),
    "fast_path": (
        f"A training step, batch 256, one thread, processor time: this build against commit {earlier.COMMIT}, in turns",
        earlier.measure,
    ),
    "reading": (
        "`wssl diagnose FILE` beside reading it and calling `diagnose`: processes of one thread, medians of 5 in turns",
        reading.measure,
    ),
}
# The same against other libraries; ratio: how many times as long the peer takes
AGAINST = {
    "losses": ("Losses, forward + backward, against peers", losses.measure),
    "metrics": ("Metrics against peers", metrics.measure),
    "evaluation": ("Neighbours, linear probe and k-means against peers", evaluation.measure),
    "views": ("Two views of a batch against peers", views.measure),
    "training": ("A training step and its parts against peers", training.measure),
}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"{', '.join(TOPICS | AGAINST)}; default: all")
    parser.add_argument("--repeats", type=int, default=15, help="rounds in which the functions take turns (default 15)")
    parser.add_argument("--record", action="store_true", help="write data/measured/bench.json")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS | AGAINST):
        parser.error(f"expected topics of {', '.join(TOPICS | AGAINST)}; received {', '.join(sorted(unknown))}")
    warnings.filterwarnings("ignore", module="(lightly|solo|kornia|ot|faiss|sklearn)")
    limit_threads()
    unexplained = []
    ceiling, load, results = ceilings(), os.getloadavg()[0], {}
    machine = f"{ceiling['flop/s'] / 1e9:.0f} GFLOP/s, {ceiling['bytes/s'] / 1e9:.0f} GB/s"
    print(f"{THREADS} threads, load {load:.1f} before the start; ceilings: {machine}\n", flush=True)
    for topic in options.topics or TOPICS | AGAINST:
        title, measure = (TOPICS | AGAINST)[topic]
        rows = []
        for row in measure(ceiling, options.repeats):
            rows.append(row)
            print(f"  {topic} {len(rows)}: {', '.join(f'{key} {value}' for key, value in row.items())}", flush=True)
        results[topic] = {"rows": rows, "ceilings": ceiling, "load before": round(load, 2)}
        results[topic].update(about(), threads=THREADS)
        if topic in AGAINST:
            results[topic]["peers"] = versions(rows)
            unexplained += complaints(rows)
        print(f"\n{title}\n{pd.DataFrame(results[topic]['rows']).to_string(index=False, na_rep='')}\n", flush=True)
        if options.record:  # at once: a run that is stopped keeps what it has
            record("bench", {topic: results[topic]})
    for sentence in unexplained:
        print(f"Unexplained: {sentence}")
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
