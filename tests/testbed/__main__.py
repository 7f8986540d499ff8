"""`python -m tests.testbed [--record] [--seeds 0 1 2] [arm ...]`: short trainings that collapse and that do not, each measured at some epochs with every meter.
A training takes about half a minute of one core; those that the record has are not made again."""

import argparse
import json
import sys
import time

import torch

from tests.record import about
from tests.testbed.arms import ARMS
from tests.testbed.measure import embeddings, meters, told
from wssl.companion.records import data_dir, write_record
from wssl.core.seeds import seed_everything
from wssl.training import TrainConfig
from wssl.training.config import augmentation_of
from wssl.training.evaluation import load_data
from wssl.training.loop import train_epoch
from wssl.training.step import build_method, in_bfloat16, make_optimizer

EPOCHS, LOOKS = 10, (0, 1, 2, 4, 7, 10)
COMMON = {"source": "tar:cifar10-jpeg.tar.xz", "per_class": 500, "test_per_class": 200, "size": 24, "batch": 256}
COMMON |= {"epochs": EPOCHS, "lr": 4e-3, "optimizer": "adam", "augmentation": "small", "precision": "bfloat16"}


def look(method, data, config, arm, epoch):
    """One row of the record: meters and kNN accuracy at an epoch."""
    plain = augmentation_of(config)
    bank, rows = (embeddings(method, images, plain)[arm.space].float() for images in data)
    space = "embedding" if arm.space == "z" else "representation"
    accuracy = told(bank, data[0].y, rows, data[1].y)
    return {"epoch": epoch, "kNN": round(float(accuracy), 4), **meters(rows, space)}


def trained(name, seed, data):
    """All rows of one training; those of an intact method in both spaces, where its twins are compared."""
    arm = ARMS[name]
    config = TrainConfig(method=arm.method, seed=seed, **COMMON)
    seed_everything(seed)
    method = in_bfloat16(build_method(config))
    if arm.change:
        arm.change(method)
    optimizer, rows = make_optimizer(method, config), []
    spaces = [arm] if arm.twin else [arm, arm._replace(space="h")]
    for epoch in range(EPOCHS + 1):
        if epoch:
            train_epoch(method, optimizer, data[0], config, epoch - 1)
        for part in spaces if epoch in LOOKS else ():
            row = look(method, data, config, part, epoch)
            rows.append({"arm": name, "twin": arm.twin, "seed": seed, "space": part.space, **row})
    return rows


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", description=__doc__)
    parser.add_argument("arms", nargs="*", metavar="arm", help="parts of names; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--record", action="store_true", help="write data/measured/test_bed.json as each training ends")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = data_dir() / "measured" / "test_bed.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    data = load_data(TrainConfig(**COMMON))
    for seed in options.seeds:
        for name in ARMS:
            if (options.arms and not any(part in name for part in options.arms)) or any(
                (row["arm"], row["seed"]) == (name, seed) for row in rows
            ):
                continue
            began, found = time.monotonic(), trained(name, seed, data)
            rows += found
            last = found[-1]
            said = ", ".join(f"{key} {last[key]}" for key in ("space", "kNN", "status", "dead directions", "RankMe"))
            print(f"{name}, seed {seed}: {said}, {time.monotonic() - began:.0f} s", flush=True)
            if options.record:
                write_record(path, {"rows": rows, "training": COMMON | {"epochs": EPOCHS}, **about()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
