"""`python -m tests.torture [--record] [--seed N] [topic ...]`: injected faults and extreme numbers, by the hundred; exit 1 if one of them was not met as promised."""

import argparse
import os
import sys
import time

import pandas as pd

from tests.record import about, record
from tests.torture import faults, numerics

# topic -> (what the rows say, function of a seed that yields them; every row counts its failures in the columns named here)
TOPICS = {
    "faults": ("Faults injected into training, caches, archives and companion runs", faults.measure, faults.FAILURES),
    "numerics": ("Losses, metrics and balancing on extreme numbers", numerics.measure, numerics.FAILURES),
}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"{', '.join(TOPICS)}; default: all")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the instants, bytes and numbers that are drawn (default 0)"
    )
    parser.add_argument("--record", action="store_true", help="write data/measured/torture.json")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS):
        parser.error(f"expected topics of {', '.join(TOPICS)}; received {', '.join(sorted(unknown))}")
    results, failed = {}, 0
    for topic in options.topics or TOPICS:
        title, measure, failures = TOPICS[topic]
        start, rows = time.perf_counter(), []
        for row in measure(options.seed):
            rows.append(row)
            print(f"  {topic} {len(rows)}: {', '.join(f'{key} {value}' for key, value in row.items())}", flush=True)
        failed += sum(row[column] for row in rows for column in failures)
        results[topic] = {"rows": rows, "seed": options.seed, "seconds": round(time.perf_counter() - start), **about()}
        print(f"\n{title}\n{pd.DataFrame(rows).to_string(index=False, na_rep='')}\n", flush=True)
    if options.record:
        record("torture", results)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
