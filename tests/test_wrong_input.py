"""More wrong files and wrong command lines: one sentence of at most 300 characters, no row quoted, exit code 2, nothing written."""

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.test_diagnose_command import text
from tests.test_tables import EMB, Y, Z, lines
from wssl.companion.cli import main

T, F = torch.from_numpy(Z), Z.astype(np.float32)


def refusal(capsys, folder, *words, says):
    "What a command says that exits with 2: one short sentence without a row of the data, and no file more than before."
    before = sorted(folder.rglob("*"))
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and len(err) <= 300, (code, out, err)
    assert err.startswith("wssl: expected ") and "; received " in err and says in err, err
    assert sorted(folder.rglob("*")) == before
    assert not any(f"{value:.6f}"[:8] in err for value in Z[:3].flat)
    return err


# ---- files


def cut(write, share=0.6):
    "What `write` writes, without its end."
    return lambda p: (write(p), os.truncate(p, int(p.stat().st_size * share)))


def flipped(write, share=0.5):
    "What `write` writes, with 40 bytes turned over inside."

    def turned(p):
        write(p)
        content = bytearray(p.read_bytes())
        k = int(len(content) * share)
        content[k : k + 40] = bytes(255 - byte for byte in content[k : k + 40])
        p.write_bytes(content)

    return turned


def h5(**arrays):
    def write(p):
        with pytest.importorskip("h5py", reason="needs the extra formats").File(p, "w") as file:
            for name, values in arrays.items():
                file[name] = values

    return write


def table(**columns):
    def write(p):
        pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
        pa.parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
        pa.parquet.write_table(pa.table({name: make(pa) for name, make in columns.items()}), p)

    return write


def feather(p):
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    EMB.to_feather(p)


def mat(**arrays):
    from scipy.io import savemat

    return lambda p: savemat(p, arrays)


def picture(p):
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(p, "PNG")


def folder(**files):
    return lambda p: (
        p.mkdir(),
        [(p / name.replace("_json", ".json")).write_text(said) for name, said in files.items()],
    )


def raw(content):
    return lambda p: p.write_bytes(content)


def vectors(*widths):
    return b"".join(struct.pack("<i", m) + np.ones(m, "<f4").tobytes() for m in widths)


NPZ, PT, OLD = (
    lambda p: np.savez(p, z=Z),
    lambda p: torch.save(T, p),
    lambda p: torch.save(T, p, _use_new_zipfile_serialization=False),
)
POINTER = text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
PAGE = text("<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not, found</body></html>\n")
UNREAD = "what its reader cannot make sense of"

FILES = {
    "cut.npz": (cut(NPZ), UNREAD),
    "flipped.npz": (flipped(NPZ), UNREAD),
    "objects.npz": (lambda p: np.savez(p, z=np.array([{}, None], dtype=object)), "may run code"),
    "maps.npz": (lambda p: np.savez(p, z=np.zeros((4, 3, 2))), "shape (4, 3, 2)"),
    "header.npy": (raw(b"\x93NUMPY\x01\x00\x10\x00{'descr': oops}\n"), UNREAD),
    "version.npy": (raw(b"\x93NUMPY\x09\x00" + b"\0" * 100), UNREAD),
    "larger-than-said.npy": (raw(b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 1000), }".ljust(117) + b"\n"), UNREAD),
    "dates.npy": (lambda p: np.save(p, np.zeros((4, 2), "M8[D]")), "datetime64[D]"),
    "picture.npy": (picture, "received an image"),
    "page.npy": (PAGE, "a page of the web"),
    "pointer.npy": (POINTER, "git lfs pull"),
    "link.npy": (lambda p: p.symlink_to("nowhere"), "does not exist"),
    "cut.parquet": (cut(lambda p: EMB.to_parquet(p)), UNREAD),
    "flipped.parquet": (flipped(lambda p: EMB.to_parquet(p), 0.3), UNREAD),
    "norows.parquet": (lambda p: EMB[:0].to_parquet(p), "at least 1 row"),
    "nocolumns.parquet": (lambda p: pd.DataFrame(index=range(4)).to_parquet(p), "1 column"),
    "structs.parquet": (table(z=lambda pa: [{"a": 1.5}, {"a": 2.5}]), "struct<a: double> in column 'z'"),
    "times.parquet": (lambda p: pd.DataFrame({"t": pd.date_range("2020", periods=4)}).to_parquet(p), "timestamp"),
    "decimals.parquet": (table(z=lambda pa: pa.array([1, 2]).cast(pa.decimal128(30, 2))), "decimal128"),
    "bytes.parquet": (table(z=lambda pa: [b"ab", b"cd"]), "binary in column 'z'"),
    "empty-lists.parquet": (table(z=lambda pa: pa.array([[], []], pa.list_(pa.float64()))), "1 column"),
    "nan-in-lists.parquet": (table(z=lambda pa: [[0.5, float("nan")], [0.5, 1.5]]), "1 NaN or infinite"),
    "pointer.parquet": (POINTER, "git lfs pull"),
    "cut.feather": (cut(feather), UNREAD),
    "first-version.feather": (raw(b"FEA1" + b"\0" * 50 + b"FEA1"), UNREAD),
    "cut.h5": (cut(h5(z=Z), 0.3), UNREAD),
    "words.h5": (text("no HDF5 at all"), UNREAD),
    "compound.h5": (h5(z=np.zeros(4, [("x", "f4"), ("y", "i4")])), "numbers of at most 64 bits"),
    "complex.h5": (h5(z=Z.astype(complex)), "complex128"),
    "maps.h5": (h5(z=np.zeros((4, 3, 2))), "shape (4, 3, 2)"),
    "texts.h5": (h5(z=["a", "b"]), "received words"),
    "nan.h5": (h5(z=np.where(Z > 2, np.nan, Z)), "NaN or infinite"),
    "several.h5": (h5(a=Z, b=Z), "2 (a, b)"),
    "cut.mat": (cut(mat(z=Z)), UNREAD),
    "several.mat": (mat(a=Z, b=Z), "2 (a, b)"),
    "cells.mat": (mat(z=np.array([[1, "a"]], dtype=object)), "type object"),
    "cut.safetensors": (cut(lambda p: save_file({"z": T.clone()}, p)), UNREAD),
    "json.safetensors": (raw(struct.pack("<Q", 8) + b"{oops}  "), UNREAD),
    "long-header.safetensors": (raw(struct.pack("<Q", 2**60) + b"{}"), UNREAD),
    "none.safetensors": (lambda p: save_file({}, p), "0 ()"),
    "whole.safetensors": (lambda p: save_file({"z": torch.arange(12).view(4, 3)}, p), "floating point"),
    "pointer.safetensors": (POINTER, "git lfs pull"),
    "cut.pt": (cut(PT), UNREAD),
    "cut-old.pt": (cut(OLD), UNREAD),
    "module.pt": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "may run code"),
    "none.pt": (lambda p: torch.save(None, p), "NoneType"),
    "words.pt": (lambda p: torch.save("words", p), "received str"),
    "complex.pt": (lambda p: torch.save(T.to(torch.complex64), p), "complex64"),
    "meta.pt": (lambda p: torch.save(torch.empty(4, 3, device="meta"), p), "without values"),
    "script.pt": (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p), UNREAD),
    "zip.pt": (lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x"), UNREAD),
    "pointer.pt": (POINTER, "git lfs pull"),
    "picture.png": (picture, "a file of embeddings"),
    "table.json": (text("[[1.5, 2.5]]"), "a file of embeddings"),
    "packed.npy.gz": (raw(gzip.compress(b"x")), "a file of embeddings"),
    "no-ending": (text("1.5,2.5\n"), "a file of embeddings"),
    "folder.csv": (folder(), "--checkpoint or --model"),
    "packed.csv": (raw(gzip.compress(lines(Z).encode())), "gzip has packed"),
    "picture.csv": (picture, "received an image"),
    "page.csv": (PAGE, "a page of the web"),
    "pointer.csv": (POINTER, "git lfs pull"),
    "zip.csv": (raw(b"PK\x03\x04" + b"\x14\0\6\0" * 200), "text in column"),
    "zeros.csv": (raw(b"\0" * 1000), "text in column"),
    "blank.csv": (text("\n\n\n"), "rows in blank.csv; received none"),
    "comments.csv": (text("# a\n# b\n"), "received none"),
    "two-headers.csv": (text("a,b\nc,d\n0.5,1.5\n2.5,3.5\n"), "text in column 'a'"),
    "dates.csv": (text("a,b\n2020-01-01,2.5\n2020-01-02,3.5\n"), "text in column 'a'"),
    "complex.csv": (text("(1+2j),(2+1j)\n(1+1j),(3+1j)\n"), "text in column"),
    "hexadecimal.csv": (text("0x1f,0x2e\n0x11,0x12\n"), "text in column"),
    "percent.csv": (text("a,b\n50%,2.5\n40%,3.5\n"), "text in column 'a'"),
    "infinite.csv": (text("a,b\n0.5,inf\n0.5,1.5\n"), "1 NaN or infinite"),
    "one-row.csv": (text("0.5,1.5,2.5\n"), "at least 2 rows"),
    "short-later.csv": (text(lines(Z.tolist() * 70) + "0.5,1.5\n"), "data row 21001"),
    "long-later.csv": (text(lines(Z.tolist() * 70) + "0.5,1,2,3,4,5,6,7,8\n"), "then 9 in line 21001"),
    "open-quote.csv": (text('a,b\n"0.5,1.5\n2.5,3.5\n'), "2 names above 1 fields"),
    "one-long-word.csv": (text("x" * 2_000_000 + "\n"), "text in column"),
    "printed-tensors.csv": (text('z\n"tensor([0.5, 1.5])"\n'), "text in column"),
    "line-7.jsonl": (text("[0.5, 1.5]\n" * 6 + "[0.5, oops]\n"), "something else in line 7"),
    "one-line.jsonl": (lambda p: p.write_text(json.dumps(Z[:4].tolist())), "none in line 1"),
    "indented.jsonl": (lambda p: p.write_text(json.dumps({"z": [0.5, 1.5]}, indent=2)), "in line 1"),
    "two-kinds.jsonl": (text('{"z": [0.5, 1.5]}\n[0.5, 1.5]\n'), "another in line 2"),
    "other-name.jsonl": (text('{"z": [0.5, 1.5]}\n{"y": [0.5, 1.5]}\n'), "none in line 2"),
    "texts.jsonl": (text('{"z": ["0.5", "1.5"]}\n'), "0 ()"),
    "utf16.jsonl": (raw("[0.5, 1.5]\n".encode("utf-16")), UNREAD),
    "deep.jsonl": (text("[" * 100_000 + "\n"), UNREAD),
    "overflow.jsonl": (text("[1e999, 0.5]\n[0.5, 0.5]\n"), "1 NaN or infinite"),
    "widths.fvecs": (raw(vectors(3, 3, 3, 2, 4)), "others in vector 3"),
    "negative.fvecs": (raw(struct.pack("<i", -3) + b"\0" * 12), "-3 as the first"),
    "larger-than-said.fbin": (raw(struct.pack("<II", 2**31, 2**31) + b"\0" * 64), "64 bytes of them"),
    "no-rows.fbin": (raw(struct.pack("<II", 0, 8)), "1 column"),
    "fewer-words.vec": (text("3 2\na 0.5 1.5\nb 0.5 1.5\n"), "received 2"),
    "binary.vec": (raw(b"300 8\nthe " + F[0].tobytes() + b"\nof " + F[1].tobytes()), "text in UTF-8"),
    "lost-part": (folder(state_json='{"_data_files": [{"filename": "gone.arrow"}]}'), UNREAD),
    "torn-state": (folder(state_json='{"_data_files"'), UNREAD),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_one_sentence(name, tmp_path, capsys):
    if name.endswith((".parquet", ".feather")) or name in ("lost-part", "torn-state"):
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    write, says = FILES[name]
    write(tmp_path / name)
    refusal(capsys, tmp_path, "diagnose", tmp_path / name, "--json", tmp_path / "out.json", says=says)


LABELS = {
    "all-nan.npy": (lambda p: np.save(p, np.full(300, np.nan)), "a label for some row in all-nan.npy"),
    "all-blank.csv": (text("y\n" + "\n" * 300), "a label for some row"),
    "none.npy": (lambda p: np.save(p, np.full(300, -1)), "a label for some row"),
    "infinite.npy": (lambda p: np.save(p, np.full(300, np.inf)), "numbers such as inf"),
    "two-columns.npy": (lambda p: np.save(p, np.stack([Y, Y], 1)), "shape (300, 2)"),
    "objects.npy": (lambda p: np.save(p, np.array([{}] * 300, dtype=object)), "may run code"),
    "beyond-int64.npy": (lambda p: np.save(p, np.full(300, 2**64 - 1, "u8")), "below 2^63"),
    "one-more.npy": (lambda p: np.save(p, np.arange(301) % 5), "shape (301,)"),
    "cut.npy": (cut(lambda p: np.save(p, Y)), UNREAD),
    "two.npz": (lambda p: np.savez(p, a=Y, b=Y), "one of them (--labels-key)"),
    "points.h5": (h5(y=Z[:, 0]), "as integers or words"),
    "lists.jsonl": (text("[1, 2]\n" * 300), "list in line 1"),
    "fields.jsonl": (text('{"a": 1, "b": 2}\n' * 300), "(--labels-key); received a, b"),
    "name-alone.csv": (text("label\n"), "a label for some row"),
    "ragged.csv": (text("1\n2,3\n" * 150), "rows of different lengths"),
    "folder.csv": (folder(), "is a folder"),
    "picture.png": (picture, "a file of labels ("),
    "words.pt": (lambda p: torch.save("cat", p), "received str"),
    "times.parquet": (lambda p: pd.DataFrame({"t": pd.date_range("2020", periods=300)}).to_parquet(p), "timestamp"),
}


@pytest.mark.parametrize("name", LABELS)
def test_wrong_labels_are_one_sentence(name, tmp_path, capsys):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    write, says = LABELS[name]
    write(tmp_path / name)
    np.save(tmp_path / "z.npy", Z)
    words = ["diagnose", tmp_path / "z.npy", "--labels", tmp_path / name, "--html", tmp_path / "out.html"]
    refusal(capsys, tmp_path, *words, says=says)


# ---- command lines

JOBS = {
    "torn.json": "{",
    "no-arms.json": '{"seeds": [1]}',
    "arm.json": '{"arms": {"x": {}}, "seeds": [0]}',
    "seeds.json": '{"arms": {"byol-a": {}}, "seeds": ["a"]}',
    "field.json": '{"arms": {"byol-a": {"speed": 3}}, "seeds": [0]}',
    "good.json": '{"common": {"epochs": 1}, "arms": {"byol-a": {"method": {"name": "byol"}}}, "seeds": [0]}',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("place")
    np.save(at / "z.npy", Z), np.save(at / "half.npy", Z[:, :4]), np.save(at / "y.npy", Y)
    np.savez(at / "two.npz", a=Z, b=Z)
    (at / "t.csv").write_text("id,e0,e1\na,0.5,1.5\nb,2.5,3.5\nc,1.5,.5\n")
    for name in ("empty", "pictures", "torn-run", "folder.json"):
        (at / name).mkdir()
    (at / "pictures/one.png").write_bytes(b"broken")
    (at / "torn-run/config.json").write_text("{")
    (at / "notes.pt").write_text("words")
    (at / "torn.tar").write_bytes(b"torn" * 300)
    for name, said in JOBS.items():
        (at / name).write_text(said)
    return at


# command line -> what its sentence says
LINES = {
    "diagnose": "expected FILE",
    "diagnose z.npy --fail-below nan": "a share from 0 to 1",
    "diagnose z.npy --fail-below -0.1": "received -0.1",
    "diagnose z.npy --fail-below": "expected one argument",
    "diagnose pictures --checkpoint empty": "a run directory with a config.json",
    "diagnose pictures --checkpoint z.npy --layer x": "choose from",
    "diagnose pictures --model resnet18 --weights random --size -5": "at least 1 pixel",
    "diagnose pictures --model resnet18 --weights random --seed one": "--seed",
    "diagnose pictures --model resnet18 --weights empty": "weights in a file",
    "diagnose pictures --model resnet18 --weights notes.pt": "a checkpoint in notes.pt",
    "diagnose pictures --model ./z.npy --weights random": "a classifier of torchvision or timm",
    "diagnose pictures --model= --skip-broken": "--checkpoint or --model beside",
    "diagnose pictures --model resnet18 random": "unrecognized arguments: random",
    "diagnose empty --join": "which holds none",
    "diagnose z.npy --join --stages": "not allowed with",
    "diagnose z.npy --join --second half.npy": "(300, 8) and (300, 4)",
    "diagnose z.npy y.npy": "shape (300,)",
    "diagnose z.npy --second nowhere.npy": "does not exist",
    "diagnose z.npy --second pictures": "a file of embeddings",
    "diagnose z.npy --labels nowhere.npy": "does not exist",
    "diagnose z.npy --labels-key y": "--labels beside --labels-key",
    "diagnose z.npy --weights w.pt": "--model beside --weights",
    "diagnose z.npy --size 32": "--checkpoint or --model beside --size",
    "diagnose z.npy --layer h": "--checkpoint beside --layer",
    "diagnose two.npz --key c": "(a, b); received 'c'",
    "diagnose two.npz --key=": "received ''",
    "diagnose two.npz --key a --labels two.npz": "(--labels-key); received 2 (a, b)",
    "diagnose t.csv --key=": "an empty one",
    "diagnose t.csv --key 5:9": "places of columns from 0 to 3",
    "diagnose t.csv --key f": "or how it starts; received 'f'",
    "diagnose z.npy --json folder.json": "a file to write to",
    "diagnose z.npy --json /dev/null/out.json": "a file to write to",
    "diagnose z.npy --html out.html/": "a file ending in .html",
    "diagnose z.npy --epochs 3": "unrecognized arguments: --epochs 3",
    "diagnose z.npy --protocol knn": "--protocol",
    "train --out run --epochs 1.5": "--epochs",
    "train --out run --batch 1": "at least 2",
    "train --out run --size 3": "half of its blur kernel",
    "train --out run --per-class 0": "at least 1",
    "train --out run --lr inf": "lr as a number above 0",
    "train --out run --optimizer rmsprop": "'rmsprop'",
    "train --out run --encoder resnet19": "'resnet19'",
    "train --out run --augmentation strong": "...; received 'strong'",
    "train --out run --precision fp8": "'fp8'",
    "train --out run --device tpu": "'tpu'",
    "train --out run --threads 0": "threads as a whole number",
    "train --out run --warmup 50": "at most 0.5",
    "train --out run --holdout 1.5": "at most 0.5",
    "train --out run --imbalance 0": "imbalance",
    "train --out run --size-start 64 --size 32": "at most size 32",
    "train --out run --evaluate-on nowhere": "split train or test of digits",
    "train --out run --source digits:extra": "received digits:extra",
    "train --out run --source folder:z.npy": "received a file: z.npy",
    "train --out run --source tar:torn.tar": "a whole tar archive",
    "train --out run --source stream:nowhere": "nowhere, which does not exist",
    "train --out run --regularizer w3": "'w3'",
    "train --out run --preset nothing": "'nothing'",
    "train --out run --method.hidden 0": "sizes of at least 1",
    "train --out run --compile maybe": "true or false",
    "train --out run --start-from empty": "a run directory with a config.json",
    "train --out z.npy/run": "a run directory to write to",
    "train --out run --key e": "--key",
    "train --jobs nowhere.json": "a JSON file of jobs",
    "train --jobs torn.json": "torn.json as JSON",
    "train --jobs z.npy": "z.npy as JSON",
    "train --jobs no-arms.json": '"arms" and "seeds"',
    "train --jobs arm.json": "named method-variant",
    "train --jobs seeds.json": "seeds as whole numbers",
    "train --jobs field.json": "received speed",
    "train --jobs good.json --epochs 3": "also --epochs",
    "train --jobs good.json --workers 0": "at least 1 worker",
    "evaluate z.npy": "which is a file",
    "evaluate torn-run": "config.json as it was written",
    "evaluate empty --protocol everything": "'everything'",
    "evaluate empty --device tpu": "--device",
    "evaluate empty --json z.npy/out.json": "a file to write to",
    "table --project z.npy": "which is no folder",
    "companion --workers many": "--workers",
    "companion --readme extra": "extra",
    "help": "'help'",
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_command_line_is_one_sentence(line, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    refusal(capsys, place, *line.split(" "), says=LINES[line])


def test_a_name_that_is_no_folder_costs_no_training(place, capsys, monkeypatch):
    "Records go to a checkout, which is looked for before the first step, and so is what would be written outside of it."
    monkeypatch.chdir(place)
    refusal(capsys, place, "train", "--out", "run", "--record", "../x", says="a plain experiment name")


@pytest.mark.parametrize("line", ["diagnose z.npy --size 32", "train --out run --size 3", "evaluate torn-run"])
def test_as_a_process(line, place):
    done = subprocess.run([sys.executable, "-m", "wssl", *line.split()], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and LINES[line] in done.stderr


def test_how_many_there_are():
    "Twice as many new ones as the 43 files and 18 command lines there were."
    from tests import test_containers, test_tables

    files = [FILES, LABELS, test_containers.REFUSED, test_tables.REFUSED, test_tables.WRONG_LABELS]
    assert sum(map(len, files)) >= 86 and len(LINES) >= 36
