#!/bin/sh
# torchmetrics 1.9.0 against scikit-learn 1.9.1. Guess: two equal labelings have a normalized mutual information of 1 in both. Seen:
# where all rows are in one cluster scikit-learn says 1.0 and torchmetrics 0.0; for two clusters both say 1. A collapsed clustering
# that matches exactly is at opposite ends of the two scales.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from sklearn.metrics import normalized_mutual_info_score as theirs
from torchmetrics.functional.clustering import normalized_mutual_info_score as torch_nmi

for labels in ([0, 0, 0, 0], [0, 0, 1, 1]):
    a, b = theirs(labels, labels), torch_nmi(torch.tensor(labels), torch.tensor(labels)).item()
    print(f"{labels} with itself: scikit-learn {a}, torchmetrics {b:.6f}")
    assert a == 1.0 and (b == 0.0 if labels == [0, 0, 0, 0] else abs(b - 1) < 1e-5)
PYTHON
