#!/bin/sh
# scikit-dimension 0.5.0. Guess: the maximum-likelihood estimate of 550 points of which 50 stand there twice is near that of the
# 500. Seen: MLE().fit(x).dimension_ is 0.0, without an error; each duplicate has a neighbour at distance zero. TwoNN on the same
# points warns and drops both members of every pair.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check scikit-dimension==0.5.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import skdim

x = np.random.default_rng(0).normal(size=(500, 5))
twice = np.concatenate([x, x[:50]])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    plain, doubled = (float(skdim.id.MLE().fit(points).dimension_) for points in (x, twice))
print(f"500 points: {plain:.2f}; the same with 50 of them twice: {doubled:.2f}")
assert 4 < plain < 6 and doubled == 0.0
PYTHON
