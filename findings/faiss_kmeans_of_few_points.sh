#!/bin/sh
# faiss-cpu 1.15.1. Guess: k-means of 200 rows that are only two different points, asked for four centroids, gives the two points
# (twice, or with empty clusters). Seen: four centroids of which none is a data point: each point times 0.999 and times 1.001, the
# trace of how an empty cluster is filled. So the centroids of a collapsed embedding look like four close clusters.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np

points = np.eye(4, dtype=np.float32)[:2]
x = np.repeat(points, 100, axis=0)
kmeans = faiss.Kmeans(4, 4, seed=1, niter=25)
kmeans.train(x)
centroids = kmeans.centroids
print(centroids.tolist())
distance = np.abs(centroids[:, None] - points[None]).max(-1).min(1)
print("distance of each centroid to the nearest data point:", distance.tolist())
assert (distance > 5e-4).all() and (distance < 2e-3).all()
PYTHON
