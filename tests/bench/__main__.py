"""`python -m tests.bench [--record] [--repeats N] [topic ...]`: ratios within one run; take it on a quiet machine."""

import argparse
import os

import pandas as pd

from tests.bench import augmentation, solvers, step, uniformity
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
}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"{', '.join(TOPICS)}; default: all")
    parser.add_argument("--repeats", type=int, default=15, help="rounds in which the functions take turns (default 15)")
    parser.add_argument("--record", action="store_true", help="write data/measured/bench.json")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS):
        parser.error(f"expected topics of {', '.join(TOPICS)}; received {', '.join(sorted(unknown))}")
    limit_threads()
    ceiling, load, results = ceilings(), os.getloadavg()[0], {}
    machine = f"{ceiling['flop/s'] / 1e9:.0f} GFLOP/s, {ceiling['bytes/s'] / 1e9:.0f} GB/s"
    print(f"{THREADS} threads, load {load:.1f} before the start; ceilings: {machine}\n", flush=True)
    for topic in options.topics or TOPICS:
        title, measure = TOPICS[topic]
        rows = []
        for row in measure(ceiling, options.repeats):
            rows.append(row)
            print(f"  {topic} {len(rows)}: {', '.join(f'{key} {value}' for key, value in row.items())}", flush=True)
        results[topic] = {"rows": rows, "ceilings": ceiling, "load before": round(load, 2)}
        results[topic].update(about(), threads=THREADS)
        print(f"\n{title}\n{pd.DataFrame(results[topic]['rows']).to_string(index=False, na_rep='')}\n", flush=True)
    if options.record:
        record("bench", results)


if __name__ == "__main__":
    main()
