#!/bin/sh
# hnswlib 0.8.0. Guess: get_items gives back the vectors that were added. Seen: in the space 'cosine' they come back at unit length;
# the lengths are gone. In 'ip' and 'l2' they are as added.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check hnswlib==0.8.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import hnswlib
import numpy as np

x = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
for space in ("l2", "ip", "cosine"):
    index = hnswlib.Index(space, 2)
    index.init_index(2)
    index.add_items(x)
    back = np.array(index.get_items([0, 1]))
    print(f"{space}: added {x.tolist()}, got {back.round(6).tolist()}")
    assert np.allclose(back, x) == (space != "cosine")
assert np.allclose(np.linalg.norm(back, axis=1), 1)
PYTHON
