"""The training step of this build and of an earlier one, in turns: what the fast path buys, and where the time goes before and after."""

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

COMMIT = "8df1751"  # the last build before the fast path
ROOT = Path(__file__).resolve().parents[2]
SCHEDULE = {24: 1 / 2, 32: 1 / 2}  # share of the epochs at each size, as `size_start=24` has it
ARMS = {  # name -> (build, precision, share of the epochs at each size)
    "earlier, float32": ("earlier", "float32", {32: 1.0}),
    "earlier, bfloat16": ("earlier", "bfloat16", {32: 1.0}),
    "now, float32": ("now", "float32", {32: 1.0}),
    "now, bfloat16": ("now", "bfloat16", {32: 1.0}),
    "now, bfloat16, first half 24 pixels": ("now", "bfloat16", SCHEDULE),
}


def earlier_build(commit=COMMIT):
    """Folder of the package as it was at `commit`; it is taken from the history once."""
    folder = ROOT / ".venv-bench" / f"earlier-{commit}"
    if not (folder / "wssl").is_dir():
        found = subprocess.run(["git", "-C", ROOT, "archive", commit, "wssl", "settings.ini"], capture_output=True)
        if found.returncode:
            sys.exit(
                f"expected commit {commit} in the history of this checkout; received {found.stderr.decode().strip()}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(folder, filter="data")
    return folder


class Build:
    """A process that trains with one build of the package, one thread."""

    def __init__(self, folder):
        worker = Path(__file__).with_name("fast_path_worker.py")
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(worker)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env, text=True)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(
                f"expected an answer from a build of wssl; received its end, status {self.process.wait()}"
            )
        return json.loads(said)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def milliseconds(times):
    """Median processor time of views and step, and of an image of each size, over all rounds."""
    return {part: 1e3 * statistics.median(times[part]) for part in ("views", "step")}


def measure(ceiling, repeats=9):
    """Rows: a method and an arm, its times at full size, its images a second and core over a whole run, and how many times the earlier build's float32."""
    builds = {"earlier": Build(earlier_build()), "now": Build(ROOT)}
    try:
        for method in ("simclr", "byol"):
            times = {}
            for turn in range(repeats + 1):
                for build, precision, sizes in ARMS.values():
                    for size in sizes:
                        key = build, precision, size
                        if times.get(key, {}).get("turn") == turn:
                            continue  # two arms share it
                        told = builds[build].ask(method=method, precision=precision, size=size, steps=2)
                        kept = times.setdefault(key, {"views": [], "step": []})
                        kept["turn"] = turn
                        if turn:  # the first warms up
                            kept["views"] += told["views"]
                            kept["step"] += told["step"]
            yield from rows_of(method, times, builds)
    finally:
        for build in builds.values():
            build.close()


def rows_of(method, times, builds):
    """The rows of one method."""
    medians = {key: milliseconds(value) for key, value in times.items()}
    images = {}
    for name, (build, precision, sizes) in ARMS.items():
        each = {size: sum(medians[build, precision, size].values()) / 256 for size in sizes}  # ms an image
        images[name] = 1e3 / sum(share * each[size] for size, share in sizes.items())
        full = medians[build, precision, 32]
        shares = builds[build].ask(method=method, precision=precision, size=32, shares=True)
        yield {
            "method": method,
            "arm": name,
            "views, ms": round(full["views"], 1),
            "step, ms": round(full["step"], 1),
            "images/s/core": round(images[name]),
            "times earlier": round(images[name] / images["earlier, float32"], 2),
            "views": round(full["views"] / (full["views"] + full["step"]), 3),
            **{part: round(share * full["step"] / (full["views"] + full["step"]), 3) for part, share in shares.items()},
        }
