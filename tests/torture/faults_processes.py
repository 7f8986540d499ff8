"""Two processes of `torchrun`, one of them killed: the other ends too, and the same command ends in the numbers of an undisturbed job."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.checkout import ROOT
from tests.torture.faults_inject import Row, folder, fresh
from tests.torture.faults_training import difference, numbers
from wssl.training import Run
from wssl.training.runs import read_metrics

WORDS = """-m torch.distributed.run --standalone --nproc-per-node 2 -m wssl train --method byol --method.hidden 16 --method.out 8 --w2 0.5 --per-class 4
    --test-per-class 2 --size 8 --epochs 6 --batch 20 --eval-every 1 --knn-k 3 --threads 1 --online-probe true --device cpu"""


def start(out):
    """The job, in a session of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *WORDS.split(), "--out", str(out)]
    return subprocess.Popen(
        line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ranks_of(process):
    """Process numbers of both ranks, rank 0 first."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            entries = (path / "environ").read_bytes().split(b"\0")
            rank = next((int(entry[5:]) for entry in entries if entry.startswith(b"RANK=")), None)
            if parent == process.pid and rank is not None:
                found[rank] = int(path.name)
    return [found[rank] for rank in sorted(found)]


def killed(at, row, seed, times):
    """SIGKILL of rank 0 or rank 1 while they train."""
    draw, whole = random.Random(seed), fresh(at, "whole")
    done = start(whole)
    said = done.communicate(timeout=200)[0]
    assert done.returncode == 0, said[-2000:]
    truth = numbers(Run.read(whole))
    for number in range(times):
        out, rank, epoch = fresh(at), number % 2, draw.randint(1, 5)
        process, end = start(out), time.monotonic() + 200
        while len(read_metrics(out)) <= epoch and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        ranks, of = ranks_of(process), f"rank {rank} in epoch {epoch + 1}"
        if len(ranks) == 2:
            os.kill(ranks[rank], signal.SIGKILL)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            row.add("no sentence", "the other process did not end", of)
            continue
        if not process.returncode and len(ranks) == 2:
            row.add("no sentence", "exit 0 with a process killed", of)
            continue
        again = start(out)
        said = again.communicate(timeout=200)[0]
        if again.returncode:
            row.add("runs lost", said[-900:], of)
            continue
        found = numbers(Run.read(out))
        row.add("went on" if found == truth else "wrong results", difference(found, truth), of)
        shutil.rmtree(out)
    return row


def measure(seed, share=1.0):
    """The row; `share` of the drawn injections."""
    with folder() as at:
        yield killed(at, Row("SIGKILL", "one of two processes of torchrun"), seed, max(2, round(3 * share)))
