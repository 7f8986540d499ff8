#!/bin/sh
# Pillow 13.0.0. Guess: Image.getexif() says the same orientation before and after an image is loaded, as for a JPEG. Seen: a TIFF
# with orientation 6 is turned while it loads and reports the turned size already at open; getexif() says 6 before load() and None
# after it, so who asks late finds nothing, and who turns it by the early answer turns it twice.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io

from PIL import Image

picture, told = Image.new("RGB", (4, 2)), {}
for kind in ("JPEG", "TIFF"):
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    picture.save(file, kind, **({"exif": exif} if kind == "JPEG" else {"tiffinfo": {274: 6}}))
    image = Image.open(io.BytesIO(file.getvalue()))
    before = image.getexif().get(274), image.size
    image.load()
    told[kind] = before, (image.getexif().get(274), image.size)
    print(f"{kind}: orientation and size before load {told[kind][0]}, after {told[kind][1]}")
assert told["JPEG"] == ((6, (4, 2)), (6, (4, 2)))
assert told["TIFF"] == ((6, (2, 4)), (None, (2, 4)))
PYTHON
