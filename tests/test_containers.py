"""Columns, containers and the formats of the field: what real writers wrote comes back, or one sentence says what was found."""

import base64
import json
import shutil
import struct
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tests.checkout import ROOT
from tests.test_tables import EMB, FRAME, Y, Z, said, sentence
from wssl.companion.cli import main
from wssl.evaluation.sources import load_embeddings, load_labels

pa = pytest.importorskip("pyarrow", reason="parquet needs the extra parquet")
import pyarrow.feather as feather  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

T, F = torch.from_numpy(Z), Z.astype(np.float32)


def parquet(p, **columns):
    pq.write_table(pa.table(columns), p)


def whole(p):
    feather.write_feather(pa.table({"z": Z.tolist()}), p)


def stream(p):
    "As `datasets` writes the parts of a saved folder."
    table = pa.table({"z": Z.tolist()})
    with pa.OSFile(str(p), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def array2d(p):
    "As `datasets` stores Array2D((1, 8), 'float64')."
    pq.write_table(pa.table({"z": pa.array([[row] for row in Z.tolist()], pa.list_(pa.list_(pa.float64())))}), p)


# name -> (write, key, what the notes say)
READ = {
    "float-index.parquet": (lambda p: EMB.set_index(np.linspace(0, 1, 300)).to_parquet(p), None, "__index_level_0__ left out"),
    "whole-index.parquet": (lambda p: EMB.set_index(Y + 10).to_parquet(p), None, "__index_level_0__ left out"),
    "named-index.parquet": (lambda p: EMB.assign(id=Y).set_index("id").to_parquet(p), None, "id left out"),
    "range-index.parquet": (lambda p: EMB.to_parquet(p), None, ""),
    "two-indices.parquet": (lambda p: EMB.set_index([Y, Y + 0.5]).to_parquet(p), None, "__index_level_1__ left out"),
    "number-names.parquet": (lambda p: FRAME.rename(columns=str).to_parquet(p), None, ""),
    "lat.parquet": (lambda p: EMB.assign(lat=0.5, emb_id=Y).to_parquet(p), "emb_", "emb_id left out"),
    "tensors.parquet": (lambda p: parquet(p, z=pa.FixedShapeTensorArray.from_numpy_ndarray(Z)), None, ""),
    "tensors-1m.parquet": (lambda p: parquet(p, z=pa.FixedShapeTensorArray.from_numpy_ndarray(Z[:, None])), None, ""),
    "lists-of-one.parquet": (array2d, None, ""),
    "large-lists.parquet": (lambda p: parquet(p, z=pa.array(Z.tolist(), pa.large_list(pa.float64()))), None, ""),
    "lists-and-more.parquet": (lambda p: parquet(p, id=Y, z=Z.tolist(), score=Z[:, 0]), None, "other columns left out"),
    "file.feather": (whole, None, ""),
    "stream.arrow": (stream, None, ""),
    "nested.pt": (lambda p: torch.save({"train": {"emb": T, "epoch": 3}, "test": {"emb": T[:9]}}, p), "train.emb", ""),
    "nested-folder.pt": (lambda p: torch.save({"train": {"emb": T}, "test": {"emb": T[:9]}}, p), "train", ""),
    "one-of-state.pt": (lambda p: torch.save({"emb": T, "epoch": 3, "args": {"lr": 0.1}}, p), None, "'emb' alone"),
    "batches.pt": (lambda p: torch.save(list(T.split(64)), p), None, "5 batches in a list"),
    "named-batches.pt": (lambda p: torch.save({"z": tuple(T.split(64)), "y": torch.from_numpy(Y)}, p), "z", "5 batches"),
    "vectors.pt": (lambda p: torch.save(list(T), p), None, "300 vectors are its rows"),
    "pair.pt": (lambda p: torch.save((T, torch.from_numpy(Y)), p), "0", ""),
    "words.json.jsonl": (lambda p: p.write_text("".join(json.dumps({"id": 1, "t": "ab", "e": row}) + "\n" for row in Z.tolist())), None, "'e' of every line"),
    "openai.jsonl": (lambda p: p.write_text("".join(json.dumps({"response": {"body": {"data": [{"embedding": row}]}}}) + "\n" for row in Z.tolist())), None, "embedding"),
    "lists.jsonl": (lambda p: p.write_text("".join(f"{row}\n" for row in Z.tolist())), None, ""),
    "savetxt.txt": (lambda p: np.savetxt(p, Z), None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_columns_and_containers(name, tmp_path, capsys):
    write, key, note = READ[name]
    write(tmp_path / name)
    notes = []
    back = load_embeddings(tmp_path / name, key, notes)
    assert back.dtype == torch.float64 and torch.equal(back, T) and note in " ".join(notes), notes
    found = said(tmp_path, capsys, tmp_path / name, *(["--key", key] if key else []))
    assert found["values"]["rows"] == 300 and found["values"]["dimensions"] == 8
    assert all(one in found["notes"] for one in notes)


def nulls(p):
    values = pa.array([None if k % 3 == 0 else float("nan") if k % 10 == 1 else 0.5 for k in range(12_000)])
    parquet(p, emb_0=values, emb_1=pa.array(np.ones(12_000)))


REFUSED = {
    "lat.parquet": (lambda p: EMB.assign(lat=0.5).to_parquet(p), [], "numbers in column 'lat' beside emb_0"),
    "emb-id.parquet": (lambda p: EMB.assign(emb_id=Y).to_parquet(p), [], "integers in column 'emb_id' beside emb_0"),
    "nulls.parquet": (nulls, [], "4000 null and 800 NaN"),
    "null-rows.parquet": (lambda p: parquet(p, z=pa.array([None, [0.5, 1.5], None, [2.5, 3.5]], pa.list_(pa.float64(), 2))), [], "2 rows that are null"),
    "null-lists.parquet": (lambda p: parquet(p, z=[[0.5, 1.5], None]), [], "1 rows that are null"),
    "nulls-inside.parquet": (lambda p: parquet(p, z=[[0.5, None], [0.5, 1.5]]), [], "1 null"),
    "matrices.parquet": (lambda p: parquet(p, z=Z.reshape(300, 2, 4).tolist()), [], "shape (2, 4) in every row"),
    "tensors.parquet": (lambda p: parquet(p, z=pa.FixedShapeTensorArray.from_numpy_ndarray(Z.reshape(300, 2, 4))), [], "shape (2, 4) in every row"),
    "bools.parquet": (lambda p: parquet(p, a=Z[:, 0] > 0, b=Z[:, 1]), [], "true and false in column 'a'"),
    "words-in-lists.parquet": (lambda p: parquet(p, z=[["a", "b"], ["c", "d"]]), [], "lists of string in column 'z'"),
    "numpy.pt": (lambda p: torch.save({"z": Z}, p), [], "received an array of numpy in a pickle"),
    "numpy-number.pt": (lambda p: torch.save({"z": T, "loss": np.float64(0.5)}, p), [], "received a number of numpy"),
    "numpy-old.pth": (lambda p: torch.save([Z], p, _use_new_zipfile_serialization=False), [], "save torch.from_numpy(z), or np.savez"),
    "nested.pt": (lambda p: torch.save({"train": {"emb": T}, "test": {"emb": T}}, p), [], "2 (train.emb, test.emb)"),
    "uneven.pt": (lambda p: torch.save([T, T[:, :4]], p), [], "one array"),
    "pair.pt": (lambda p: torch.save((T, torch.from_numpy(Y)), p), [], "2 (0, 1)"),
    "short.fbin": (lambda p: p.write_bytes(struct.pack("<ii", 300, 8) + F.tobytes()[:-4]), [], "300 vectors of 8 in short.fbin"),
    "short.fvecs": (lambda p: p.write_bytes(struct.pack("<i", 8) + F.tobytes()), [], "vectors of one dimension"),
    "ragged.jsonl": (lambda p: p.write_text("[0.5, 1.5]\n[0.5]\n"), [], "1 in line 2"),
    "gap.jsonl": (lambda p: p.write_text('{"z": [0.5, 1.5]}\n{"z": null}\n'), [], "none in line 2"),
    "two.jsonl": (lambda p: p.write_text('{"a": [0.5, 1.5], "b": [0.5, 1.5]}\n'), [], "2 (a, b)"),
    "torn.jsonl": (lambda p: p.write_text('[0.5, 1.5]\n[0.5, 1.'), [], "something else in line 2"),
    "glove.txt": (lambda p: p.write_text("the 0.5 1.5\nof 0.5 1.5 2.5\na 0.5\n"), [], "a word and 2 numbers"),
    "torn.arrow": (lambda p: p.write_bytes(b"ARROW1 torn"), [], "torn.arrow"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_open_is_one_sentence(name, tmp_path, capsys):
    write, words, says = REFUSED[name]
    write(tmp_path / name)
    assert says in sentence(capsys, tmp_path, tmp_path / name, *words)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_numbers_of_8_bits_become_float32_with_a_note(kind, ending, tmp_path, capsys):
    z = (T.abs() + 0.1).float().to(getattr(torch, kind))
    at = tmp_path / f"z{ending}"
    torch.save({"z": z}, at) if ending == ".pt" else save_file({"z": z}, at)
    notes = []
    assert torch.equal(load_embeddings(at, notes=notes), z.float()) and kind in notes[0]
    assert any(kind in note for note in said(tmp_path, capsys, at)["notes"])


def test_parts_are_one_matrix_where_that_is_asked_for_and_never_stages_by_themselves(tmp_path, capsys):
    shards, folder = [], tmp_path / "parts"
    folder.mkdir()
    for k, rows in enumerate(np.split(Z, [100, 220])):
        shards.append(tmp_path / f"img_emb_{k:04}.npy")
        np.save(shards[-1], rows)
        pd.DataFrame(rows).add_prefix("e").to_parquet(folder / f"part-{k + 8}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    assert "--join for parts of one matrix, or --stages" in sentence(capsys, tmp_path, *shards)
    assert "--join for a folder of files" in sentence(capsys, tmp_path, folder)
    np.save(tmp_path / "y.npy", Y)
    for words in (["--join", *shards], ["--join", folder]):
        found = said(tmp_path, capsys, *words, "--labels", tmp_path / "y.npy")
        assert found["values"]["rows"] == 300 and "3 files joined" in found["notes"][0]
        whole = said(tmp_path, capsys, *plain(tmp_path))
        assert found["values"]["class share"] == whole["values"]["class share"]
    assert len(said(tmp_path, capsys, "--stages", *shards)["history"]) == 3
    np.save(tmp_path / "img_emb_0001.npy", Z[:, :4])
    capsys.readouterr()
    assert "4 in img_emb_0001.npy" in sentence(capsys, tmp_path, "--join", *shards)
    assert main(["diagnose", "--join", "--stages", *map(str, shards)]) == 2


def plain(at):
    np.save(at / "z.npy", Z)
    return [at / "z.npy", "--labels", at / "y.npy"]


def vecs(dtype):
    return lambda p, z: p.write_bytes(
        b"".join(struct.pack("<i", z.shape[1]) + row.astype(dtype).tobytes() for row in z)
    )


def bins(dtype):
    return lambda p, z: p.write_bytes(struct.pack("<II", *z.shape) + z.astype(dtype).tobytes())


@pytest.mark.parametrize(
    "ending, write", [(".fvecs", vecs("<f4")), (".bvecs", vecs("u1")), (".fbin", bins("<f4")), (".u8bin", bins("u1"))]
)
def test_vectors_of_neighbour_search(ending, write, tmp_path):
    whole = "f" not in ending
    z = np.random.default_rng(1).integers(0, 256, (500, 16)).astype(np.float32) if whole else F
    write(tmp_path / f"z{ending}", z)
    notes = []
    assert torch.equal(load_embeddings(tmp_path / f"z{ending}", notes=notes), torch.from_numpy(z))
    assert bool(notes) == whole


def test_base64_is_float32(tmp_path):
    (tmp_path / "z.jsonl").write_text(
        "".join(json.dumps({"id": "abcdefgh" * 3, "embedding": base64.b64encode(row).decode()}) + "\n" for row in F)
    )
    assert torch.equal(load_embeddings(tmp_path / "z.jsonl", "embedding"), torch.from_numpy(F))
    (tmp_path / "y.jsonl").write_text("".join(json.dumps({"label": int(y) if y else None}) + "\n" for y in Y))
    assert load_labels(tmp_path / "y.jsonl", "label").tolist() == np.where(Y, Y, -1).tolist()


def test_words_that_look_like_marks(tmp_path):
    words = ["#", '"', ",", ". . .", "<unk>", "na", "0.5", "é"]
    lines = [f"{word} {' '.join(f'{x:.9g}' for x in row)}" for word, row in zip(words * 37, F, strict=False)]
    (tmp_path / "glove.txt").write_text("the " + lines[0].split(" ", 1)[1] + "\n" + "\n".join(lines[1:]) + "\n")
    assert torch.equal(load_embeddings(tmp_path / "glove.txt"), torch.from_numpy(F[: len(lines)]))


def test_gensim_writes_what_is_read(tmp_path):
    models = pytest.importorskip("gensim.models", reason="gensim is no part of the extras; it wrote the pattern above")
    vectors = models.KeyedVectors(8)
    vectors.add_vectors([f"w{k}" for k in range(300)], F)
    vectors.save_word2vec_format(str(tmp_path / "z.txt"))
    notes = []
    assert torch.equal(load_embeddings(tmp_path / "z.txt", notes=notes), torch.from_numpy(F)) and "counts" in notes[0]


def test_hdf5_of_benchmarks_pandas_free_and_matlab(tmp_path, capsys):
    h5py = pytest.importorskip("h5py", reason="HDF5 needs the extra formats")
    with h5py.File(tmp_path / "ann.hdf5", "w") as file:
        for name, rows in {"train": Z, "test": Z[:9], "neighbors": np.zeros((9, 3), "i4")}.items():
            file[name] = rows
    assert torch.equal(load_embeddings(tmp_path / "ann.hdf5", "train"), T)
    assert "3 (neighbors, test, train)" in sentence(capsys, tmp_path, tmp_path / "ann.hdf5")
    with h5py.File(tmp_path / "z.mat", "w", userblock_size=512) as file:  # as `save(..., '-v7.3')`
        file.create_dataset("z", data=Z.T).attrs["MATLAB_class"] = np.bytes_("double")
    notes = []
    assert torch.equal(load_embeddings(tmp_path / "z.mat", notes=notes), T) and "axes turned" in notes[0]
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["X"], file["obsm/X_pca"], file["obsm/X_umap"] = Z[:, :3], Z, Z[:, :2]
        file["obs/kind/categories"], file["obs/kind/codes"] = ["B cell", "T cell"], np.where(Y < 4, Y % 2, -1)
    assert torch.equal(load_embeddings(tmp_path / "a.h5ad", "X_pca"), T)
    assert "2 (obsm/X_pca, obsm/X_umap)" in sentence(capsys, tmp_path, tmp_path / "a.h5ad")
    assert load_labels(tmp_path / "a.h5ad", "obs/kind").tolist() == np.where(Y < 4, Y % 2, -1).tolist()


def test_matlab_before_7_3(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "z.mat", {"z": Z})
    assert torch.equal(load_embeddings(tmp_path / "z.mat"), T)


def test_without_h5py_hdf5_is_a_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "z.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install h5py" in sentence(capsys, tmp_path, tmp_path / "z.h5")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "What anndata, zarr and datasets wrote (tests/written/README.md): each file holds `OF_OTHERS`."
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(ROOT / "tests/written/written.tar.gz") as file:
        file.extractall(folder, filter="data")
    return folder


OF_OTHERS = np.random.default_rng(0).standard_normal((12, 4))
KINDS = [-1 if k == 5 else k % 3 for k in range(12)]  # the third is called "none"
CELLS = ["cells.h5ad", "cells2.zarr", "cells3.zarr"]


@pytest.mark.parametrize(
    "name, key, width",
    [(name, key, 4) for name in CELLS for key in ("X_pca", "obsm/X_pca")]
    + [(name, "frame", 2) for name in CELLS]  # a DataFrame in obsm
    + [("plain2.zarr", None, 4), ("plain3.zarr", None, 4), ("group.zarr", "train", 4), ("chunks.zarr", None, 4)]
    + [("saved", None, 4), ("splits/train", None, 4)],
)
def test_what_others_wrote_is_read(name, key, width, written, tmp_path, capsys):
    _needs(name)
    z = torch.from_numpy(OF_OTHERS[:, :width])
    assert torch.equal(load_embeddings(written / name, key), z)
    found = said(tmp_path, capsys, written / name, *(["--key", key] if key else []))
    assert found["values"]["rows"] == 12 and found["values"]["dimensions"] == width


def _needs(name):
    if name.endswith((".h5ad", ".zarr")):
        pytest.importorskip(name[-4:].replace("h5ad", "h5py"), reason="needs the extra formats")


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    "key, classes",
    [
        ("kind", KINDS),
        ("batch", [k % 2 for k in range(12)]),
        ("obs/words", [k % 4 for k in range(12)]),
        ("gaps", KINDS),
    ],
)
def test_labels_of_cells(name, key, classes, written):
    _needs(name)
    assert load_labels(written / name, key).tolist() == classes


@pytest.mark.parametrize(
    "name, words, says",
    [(name, [], "3 (obsm/X_pca, obsm/X_umap, obsm/frame)") for name in CELLS]
    + [
        ("group.zarr", [], "2 (test, train)"),
        ("cells2.zarr", ["--key", "obs/kind"], "received words"),
        ("cells3.zarr", ["--key", "X_tsne"], "received 'X_tsne'"),
        ("plain3.zarr", ["--key", "X_pca"], "the name of an array in plain3.zarr (plain3)"),
        ("splits", [], "such as splits/train; received 2 (train, test)"),
    ],
)
def test_what_is_open_in_what_others_wrote(name, words, says, written, tmp_path, capsys):
    _needs(name)
    assert says in sentence(capsys, tmp_path, written / name, *words)


def test_a_shuffled_data_set_is_read_in_its_new_order(written):
    z = load_embeddings(written / "shuffled")
    assert sorted(z.tolist()) == sorted(OF_OTHERS.tolist()) and z.tolist() != OF_OTHERS.tolist()
    assert load_labels(written / "shuffled", "id").tolist() == [OF_OTHERS.tolist().index(row) % 3 for row in z.tolist()]


def test_zarr_that_is_torn_or_none_is_a_sentence(written, tmp_path, capsys, monkeypatch):
    pytest.importorskip("zarr", reason="needs the extra formats")
    shutil.copytree(written / "plain3.zarr", tmp_path / "torn.zarr")
    next(path for path in (tmp_path / "torn.zarr").rglob("*") if path.is_file() and path.suffix != ".json").write_bytes(
        b"torn"
    )
    assert "torn.zarr" in sentence(capsys, tmp_path, tmp_path / "torn.zarr")
    (tmp_path / "torn.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type"')
    assert "torn.zarr" in sentence(capsys, tmp_path, tmp_path / "torn.zarr")
    (tmp_path / "none.zarr").mkdir()
    assert "neither" in sentence(capsys, tmp_path, tmp_path / "none.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert "pip install zarr" in sentence(capsys, tmp_path, written / "plain3.zarr")


def test_an_order_beside_the_rows_is_not_passed_over(tmp_path, capsys):
    "What `datasets` saves of a shuffled data set where it keeps the order in a file of its own."
    (tmp_path / "saved").mkdir()
    state = {"_data_files": [{"filename": "data.arrow"}], "_indices_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    assert "dataset.flatten_indices()" in sentence(capsys, tmp_path, tmp_path / "saved")
