#!/bin/sh
# Pillow 13.0.0. Guess: converting a grey image with transparency (LA) to a palette image with transparency (PA) keeps the
# transparency, as PA to LA does. Seen: every pixel comes out opaque: (9, 0) becomes (9, 255), without a warning.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from PIL import Image

there = Image.new("LA", (1, 1), (9, 0)).convert("PA")
back = there.convert("LA")
print("LA (9, 0) as PA:", there.getpixel((0, 0)), "and back as LA:", back.getpixel((0, 0)))
assert there.getpixel((0, 0))[1] == 255 and back.getpixel((0, 0))[1] == 255
PYTHON
