#!/bin/sh
# Pillow 13.0.0. Guess: a grey TIFF whose photometric interpretation is WhiteIsZero (tag 262 = 0) is shown with zero as white at
# every depth. Seen: at 8 bits zeros are read as 255; at 16 bits the same file is read as 0, black, and nothing says that it is
# inverted.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
from PIL import Image

for kind in (np.uint8, np.uint16):
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), kind)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    at = next(k for k in range(0, len(data) - 12, 2) if data[k : k + 2] == b"\x06\x01" and data[k + 2 : k + 4] == b"\x03\x00")
    assert data[at + 8] == 1  # BlackIsZero, as it was written
    data[at + 8] = 0
    image = Image.open(io.BytesIO(bytes(data)))
    print(f"{np.dtype(kind)}: mode {image.mode}, tag 262 = {image.tag_v2[262]}, a stored 0 is read as {image.getpixel((0, 0))}")
    assert image.tag_v2[262] == 0 and image.getpixel((0, 0)) == (255 if kind is np.uint8 else 0)
PYTHON
