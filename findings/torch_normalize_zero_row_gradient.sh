#!/bin/sh
# torch 2.13.0. Guess: torch.nn.functional.normalize has gradient 0 at a row of zeros, as vector_norm has. Seen: it divides by eps =
# 1e-12 there, so the gradient is 1e12 times the incoming one, and one dead embedding row drowns a batch. cosine_similarity with its
# eps of 1e-8 gives about 1e8 over the other row's length.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
F.normalize(x).sum().backward()
print("normalize:", x.grad.tolist())
assert torch.allclose(x.grad[0], torch.full((2,), 1e12)) and x.grad[1].abs().max() < 0.1
x.grad = None
torch.linalg.vector_norm(x, dim=1).sum().backward()
print("vector_norm:", x.grad.tolist())
assert (x.grad[0] == 0).all()
x.grad = None
F.cosine_similarity(x, torch.ones(2, 2)).sum().backward()
print("cosine_similarity:", x.grad.tolist())
assert (x.grad[0] > 1e7).all()
PYTHON
