#!/bin/sh
# numpy 2.4.6 (.npy) and h5py 3.16.0 with ml_dtypes 0.6.0. Guess: an array of bfloat16 is stored as such, or refused, as
# safetensors' numpy front end does. Seen: both store it as opaque two-byte items without a word; read back it is an array of bytes
# of type V2, with ml_dtypes imported or not. a.view(ml_dtypes.bfloat16) brings the values back.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 h5py==3.16.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import h5py
import ml_dtypes
import numpy as np

a = np.arange(4).astype(ml_dtypes.bfloat16)
np.save("a.npy", a)
with h5py.File("a.h5", "w") as file:
    file["a"] = a
with h5py.File("a.h5") as file:
    found = {"npy": np.load("a.npy"), "h5": file["a"][:]}
for name, back in found.items():
    print(f"{name}: saved {a.dtype}, loaded {back.dtype}: {back.tolist()}")
    assert back.dtype == np.dtype("V2") and np.array_equal(back.view(ml_dtypes.bfloat16), a)
PYTHON
