"""`wssl diagnose FILE` beside reading the file with pandas or h5py and calling `diagnose`: processor time and memory of whole processes, in turns."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
SIZE = (200_000, 256)
OURS = "import sys; from wssl.companion.cli import main; sys.exit(main(['diagnose', sys.argv[1]]))"
HEAD = "import sys, numpy as np, pandas as pd, torch; from wssl.metrics import diagnose; path = sys.argv[1]; "
TAIL = "; print(diagnose(torch.from_numpy(z)))"
PEERS = {  # ending -> (name, program)
    ".csv": ("pandas.read_csv", f"{HEAD}z = pd.read_csv(path).to_numpy(np.float32){TAIL}"),
    ".parquet": ("pandas.read_parquet", f"{HEAD}z = pd.read_parquet(path).to_numpy(){TAIL}"),
    ".h5": ("h5py", f"{HEAD}import h5py; z = h5py.File(path)['z'][:]{TAIL}"),
}


def write(path, size):
    """A file of float32 normal numbers with names of columns, as its usual writer makes it."""
    z = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            file["z"] = z
        return
    frame = pd.DataFrame(z).add_prefix("emb_")
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)


def anonymous(process):
    """Mebibytes that a process holds and no file backs."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def run(program, path):
    """(seconds of the processor, seconds, mebibytes at the peak that no file backs) of a process of one thread."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], env=env, stdout=subprocess.DEVNULL)
    while True:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, anonymous(process))
        time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"expected a diagnosis of {path.name}; received status {process.returncode} of {program}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start, peak


def measure(ceiling=None, repeats=5, size=SIZE):
    """Rows: one a format; medians over rounds in which both programs take turns."""
    with tempfile.TemporaryDirectory() as folder:
        for ending, (name, program) in PEERS.items():
            path = Path(folder) / f"z{ending}"
            write(path, size)
            pairs = [(run(OURS, path), run(program, path)) for _ in range(min(repeats, 5))]
            ours, theirs = (
                [statistics.median(values) for values in zip(*side, strict=True)] for side in zip(*pairs, strict=True)
            )
            yield {
                "file": f"{size[0]:,} x {size[1]} {ending}",
                "MiB": round(path.stat().st_size / 2**20),
                "peer": f"{name}, diagnose",
                "ours, processor s": round(ours[0], 2),
                "peer, processor s": round(theirs[0], 2),
                "ours / peer": round(ours[0] / theirs[0], 3),
                "ours, s": round(ours[1], 2),
                "peer, s": round(theirs[1], 2),
                "ours, MiB at the peak": round(ours[2]),
                "peer, MiB at the peak": round(theirs[2]),
            }
            path.unlink()
