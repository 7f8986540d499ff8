"""What wrote `written.tar.gz`: `python write.py`, in an environment with anndata, zarr and datasets. README.md says which versions."""

import tarfile
import tempfile
import warnings
from pathlib import Path

import anndata
import datasets
import numpy as np
import pandas as pd
import zarr

# Every file holds this matrix, and of labels these
Z = np.random.default_rng(0).standard_normal((12, 4))
Y = [None if k == 5 else ("B cell", "T cell", "none")[k % 3] for k in range(12)]


def annotated():
    obs = pd.DataFrame(
        {"kind": pd.Categorical(Y), "batch": np.arange(12) % 2, "words": [f"w{k % 4}" for k in range(12)]}
    )
    obs["gaps"] = pd.array([None if k == 5 else k % 3 for k in range(12)], "Int64")
    found = anndata.AnnData(np.ones((12, 3), "f4"), obs)
    found.obsm["X_pca"], found.obsm["X_umap"] = Z, Z[:, :2]
    found.obsm["frame"] = pd.DataFrame(Z[:, :2], index=found.obs_names, columns=["a", "b"])
    return found


def write(folder):
    warnings.simplefilter("ignore")
    annotated().write_h5ad(folder / "cells.h5ad")
    for version in (2, 3):
        anndata.settings.zarr_write_format = version
        annotated().write_zarr(folder / f"cells{version}.zarr")
        zarr.save_array(folder / f"plain{version}.zarr", Z, zarr_format=version)
    zarr.save_group(folder / "group.zarr", train=Z, test=Z[:3])
    shards = zarr.create_array(folder / "chunks.zarr", data=Z, chunks=(5, 3), shards=(10, 6))
    assert shards.shards
    features = datasets.Features({"id": datasets.Value("int64"), "z": datasets.List(datasets.Value("float64"))})
    saved = datasets.Dataset.from_dict({"id": np.arange(12) % 3, "z": Z.tolist()}, features=features)
    saved.save_to_disk(folder / "saved", num_shards=2)
    saved.shuffle(seed=0).save_to_disk(folder / "shuffled")
    datasets.DatasetDict({"train": saved, "test": saved.select(range(3))}).save_to_disk(folder / "splits")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(Path(__file__).with_name("written.tar.gz"), "w:gz") as file,
    ):
        write(Path(folder))
        file.add(
            folder, arcname=".", filter=lambda part: part.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)
        )
