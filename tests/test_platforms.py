"""What needs POSIX is asked for where it is used: without it, importing, training and diagnosing work."""

import subprocess
import sys

WITHOUT = """
import asyncio, os, sys  # asyncio asks sys.platform, which stays: it is let in with what it needs

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "termios", "pwd", "grp"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
for name in ("sysconf", "sched_getaffinity", "fork", "getppid"):
    if hasattr(os, name):
        delattr(os, name)
"""


def without_posix(code, cwd):
    return subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_training_and_diagnosis_without_posix(tmp_path):
    found = without_posix(
        """
import numpy as np
import wssl.training, wssl.data, wssl.evaluation, wssl.metrics
from wssl.companion.cli import main
np.save("z.npy", np.random.default_rng(0).normal(size=(500, 8)).astype("float32"))
assert main(["diagnose", "z.npy"]) == 0
words = "train --method simclr --method.hidden 16 --method.out 8 --size 16 --per-class 8 --test-per-class 8 --batch 40 --epochs 1 --knn-k 5"
assert main(words.split()) == 0
""",
        tmp_path,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "healthy" in found.stdout and "Done." in found.stdout
