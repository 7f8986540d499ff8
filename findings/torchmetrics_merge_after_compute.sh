#!/bin/sh
# torchmetrics 1.9.0 (torch 2.9.1). Guess: after `merge_state` a metric computes the value of both shares of rows. Seen: where it had been computed
# before the merge, `compute` returns the value from before, since `merge_state` leaves the cached result in place; `update` would clear it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.9.1 torchmetrics==1.9.0 numpy==2.3.4
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torchmetrics import MeanMetric

fresh, looked_at, other = MeanMetric(), MeanMetric(), MeanMetric()
for metric in (fresh, looked_at):
    metric.update(torch.tensor([1.0, 1.0]))
other.update(torch.tensor([4.0, 4.0]))
before = looked_at.compute().item()
for metric in (fresh, looked_at):
    metric.merge_state(other)
merged, stale = fresh.compute().item(), looked_at.compute().item()
state = (looked_at.mean_value / looked_at.weight).item()
print(f"mean of both shares {merged}; computed before the merge {before}, after it {stale}; by the metric's own state {state}")
assert (merged, before, stale, state) == (2.5, 1.0, 1.0, 2.5), "the behaviour has changed"
PYTHON
