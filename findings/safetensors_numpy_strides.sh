#!/bin/sh
# safetensors 0.8.0, numpy front end. Guess: an array that is not C-contiguous is stored by its values, or refused. Seen: the shape
# of the view is written beside the memory of what it is a view of, so a Fortran-ordered, transposed or strided array comes back
# with other values and no error. np.ascontiguousarray before saving helps.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

c = np.arange(6.0).reshape(2, 3)
for name, array in {"C order": c, "Fortran order": np.asfortranarray(c), "transposed": c.T, "every second column": c[:, ::2]}.items():
    back = load(save({"a": array}))["a"]
    print(f"{name}: saved {array.tolist()}, loaded {back.tolist()}")
    assert np.array_equal(array, back) == (name == "C order"), name
PYTHON
