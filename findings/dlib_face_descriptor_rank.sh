#!/bin/sh
# dlib 20.0.1 (wheel dlib-bin 20.0.1.post1) with the face network of face-recognition-models 0.3.0. Guess: a trained face descriptor of 128
# numbers uses about 128 directions. Seen: 45 directions or more hold less than a millionth of the mean variance, though no number is constant,
# and the subspace is the same for every input: it belongs to the weights. A trained, widely used representation with collapsed dimensions.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check dlib-bin==20.0.1.post1 numpy==2.4.6
"$folder/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
    face-recognition-models==0.3.0
cd "$folder"
tar xzf face[-_]recognition[-_]models-0.3.0.tar.gz
"$folder/venv/bin/python" - <<'PYTHON'
import glob

import dlib
import numpy as np

path = glob.glob("*/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat")[0]
network, draw = dlib.face_recognition_model_v1(path), np.random.default_rng(0)


def pictures(count, cells):
    """Coloured cells of chance, enlarged to the 150 pixels that the network takes."""
    small = draw.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
    return list(small.repeat(150 // cells, 1).repeat(150 // cells, 2))


def descriptors(count, cells):
    return np.array(network.compute_face_descriptor(pictures(count, cells)), "float64")


rows = np.concatenate([descriptors(80, cells) for cells in (3, 5, 6, 10, 15)])
_, values, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
dead = values**2 < 1e-6 * (values**2).mean()
other = descriptors(20, 30)
inside = np.abs(other @ directions[dead].T).max() / np.linalg.norm(other, axis=1).mean()
print(f"{rows.shape[0]} rows: {dead.sum()} of {rows.shape[1]} directions dead, {int((rows.std(0) == 0).sum())} numbers constant")
print(f"largest part of other pictures in those directions: {inside:.1e} of their length")
assert dead.sum() >= 40 and (rows.std(0) > 0).all() and inside < 1e-2
PYTHON
