"""Hostile files, for those who read files of others: pickles that run code, bombs, lying headers, odd JSON."""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import zipfile
from functools import partial

import numpy as np
import torch
from safetensors.torch import save

from tests.torture.faults_images import ROOM, executed
from tests.torture.faults_inject import Died, Failed, Row, damaged, folder, fresh, in_child, places
from tests.torture.faults_training import CONFIG, judge, run_in, small_runs, stopped
from wssl.companion.cli import main
from wssl.evaluation.backbones import backbone
from wssl.evaluation.sources import load_embeddings, load_labels
from wssl.training import TrainConfig
from wssl.training.checkpoints import checkpoints
from wssl.training.runs import Run


class Calls:
    """A pickle of this calls a function."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


def gadgets(canary):
    """Ways to run code from a pickle, each of which would make `canary`."""
    words = f"__import__('os').mkdir({str(canary)!r})"
    yield "os.mkdir", Calls(os.mkdir, str(canary))
    yield "os.system", Calls(os.system, f"mkdir {canary}")
    yield "eval", Calls(eval, words)
    yield "exec", Calls(exec, words)
    yield "subprocess", Calls(subprocess.getoutput, f"mkdir {canary}")
    inner = pickle.dumps(Calls(os.mkdir, str(canary)))
    yield "a loader in a pickle", Calls(partial(torch.load, weights_only=False), io.BytesIO(inner))
    yield "numpy's own loader", Calls(np.load, io.BytesIO(inner), None, True)
    yield "getattr chain", Calls(getattr, Calls(__import__, "os"), "mkdir")
    yield "beside tensors", {"z": torch.ones(4, 2), "more": [Calls(os.mkdir, str(canary))]}
    yield "as a key", {"z": torch.ones(4, 2), ("k", Calls(eval, words)): 1}
    yield "in a tensor's dictionary", with_attribute(Calls(os.mkdir, str(canary)))
    yield "as a state dictionary", {"state_dict": {"weight": Calls(os.mkdir, str(canary))}}


def with_attribute(value):
    """A tensor that carries something."""
    z = torch.ones(4, 2)
    z.extra = value
    return z


def forms(value, at):
    """The same hostile value in every format that has pickles: (name, file)."""
    torch.save(value, at / "new.pt")
    torch.save(value, at / "old.pth", _use_new_zipfile_serialization=False)
    (at / "plain.pt").write_bytes(pickle.dumps(value))
    (at / "plain.npy").write_bytes(pickle.dumps(value))
    (at / "plain.npz").write_bytes(pickle.dumps(value))
    objects = np.empty(2, dtype=object)
    objects[0] = value
    with contextlib.suppress(Exception):
        np.save(at / "objects.npy", objects, allow_pickle=True)
        np.savez(at / "objects.npz", z=objects, x=np.ones((4, 2)))
    return sorted(path for path in at.iterdir() if path.is_file())


def read(function, path):
    """What a reader makes of a file, within an address space that a bomb would burst."""
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM, resource.RLIM_INFINITY))
    found = function(path)
    return tuple(found.shape) if isinstance(found, torch.Tensor) else None


def labels_of(path):
    """As labels, with a name where a file has several."""
    return load_labels(path, "z" if path.suffix == ".npz" else None)


def weights_of(path):
    """As weights of a model."""
    backbone("resnet18", str(path), 32)


def said_by(words):
    """Exit code and message of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, err.getvalue()


def commanded(row, words, of):
    """The command refuses with exit code 2 and one line."""
    try:
        code, said = in_child(said_by, words)
    except (Failed, Died) as error:
        row.add("no sentence", getattr(error, "trace", str(error)), of)
        return
    fine = code == 2 and said.startswith("wssl: expected ") and said.count("\n") == 1
    row.add("refused" if fine else "wrong results", said.removeprefix("wssl: ").strip(), of)


def opened(row, function, path, of, expected=None):
    """A reader refuses in one sentence, or gives what is expected."""
    try:
        found = in_child(read, function, path)
        row.add("went on" if found is not None and found == expected else "wrong results", str(found), of)
    except (Failed, Died) as error:
        row.refusal(error, of)


def pickles(at):
    """Code in every format, for embeddings, labels, weights and the command."""
    row, canary = Row("code in a pickle", "embeddings, labels, weights; the command"), at / "canary"
    for gadget, value in gadgets(canary):
        for path in forms(value, fresh(at, "files")):
            of = f"{gadget} in {path.name}"
            readers = [load_embeddings, labels_of] + [weights_of] * (path.suffix in (".pt", ".pth"))
            for reader in readers:
                only_z = reader is load_embeddings and path.name == "objects.npz"
                opened(row, (lambda p: load_embeddings(p, "z")) if only_z else reader, path, of)
                executed(row, canary, of)
            commanded(row, ["diagnose", path, *(["--key", "z"] if path.suffix == ".npz" else [])], of)
            executed(row, canary, of)
    return row


def checkpoints_with_code(truth, at, row):
    """A state of the optimizer that would run code, in a checkpoint whose manifest fits it."""
    canary, kept = at / "canary", stopped(at, truth)
    newest = checkpoints(kept)[0].name
    for gadget, value in gadgets(canary):
        for name, new in (("state.pt", True), ("state.pt", False), ("model.safetensors", True)):
            out = at / "work"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(kept, out)
            torch.save(value, out / newest / name, _use_new_zipfile_serialization=new)
            (out / newest / "manifest.json").unlink()  # as in a checkpoint that is older than manifests
            judge(row, out, truth, f"{gadget} in {name}")
            executed(row, canary, gadget)
    return row


def bombs_and_lies(at, seed, most):
    """Files that say or become more than they are."""
    row, z = Row("bombs, lying headers", "npy, npz, pt, safetensors, parquet, csv"), np.ones((40, 3), np.float32)
    np.save(at / "z.npy", z)
    head = (at / "z.npy").read_bytes()
    for shape in ("(40, 300000000)", "(1099511627776, 3)", "(-1, 3)", "(40, 3, )*9", "(True, 3)", "'x'"):
        text = str({"descr": "<f4", "fortran_order": False}).rstrip("}") + f", 'shape': {shape}, }}"
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"
        for suffix in (".npy", ".npz"):
            path = at / f"lie{suffix}"
            if suffix == ".npy":
                path.write_bytes(header + head[128:])
            else:
                with zipfile.ZipFile(path, "w") as file:
                    file.writestr("z.npy", header + head[128:])
            opened(row, load_embeddings, path, f"shape {shape} in {path.name}")
    with (
        zipfile.ZipFile(at / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("z.npy", "w", force_zip64=True) as part,
    ):
        text = "{'descr': '<f4', 'fortran_order': False, 'shape': (536870912, 2), }\n"
        part.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode())
        for _ in range(64):
            part.write(bytes(1 << 26))
    opened(row, load_embeddings, at / "bomb.npz", "4 GiB of zeros in an npz")
    good = save({"z": torch.ones(40, 3)})
    for length in (0, 1, 8, 2**31, 2**40, 2**63, 2**64 - 1):
        (at / "z.safetensors").write_bytes(struct.pack("<Q", length) + good[8:])
        opened(row, load_embeddings, at / "z.safetensors", f"a header of {length} bytes")
    size = struct.unpack("<Q", good[:8])[0]
    for old, new in ((b"480", b"999"), (b"[40,3]", b"[99,9]"), (b"F32", b"F64"), (b'"z"', b'"\\"')):
        (at / "z.safetensors").write_bytes(good[:8] + good[8 : 8 + size].replace(old, new) + good[8 + size :])
        opened(row, load_embeddings, at / "z.safetensors", f"{new} for {old}")
    for text in (
        "1,2\n" * 3 + "x,y\n",
        "1e999,2\n3,4\n",
        "nan,nan\n",
        "=cmd|'/c calc'!A1,2\n3,4\n",
        "\0\0\0\n",
        '"' * 1001 + "\n1,2\n",
    ):
        (at / "z.csv").write_text(text)
        opened(row, load_embeddings, at / "z.csv", repr(text[:20]))
    (at / "z.csv").write_bytes(b"\xff\xfe\x00a,b\n1,2\n")
    opened(row, load_embeddings, at / "z.csv", "no UTF-8")
    draw = random.Random(seed)
    for suffix in (".npy", ".npz", ".pt", ".pth", ".safetensors", ".parquet", ".csv", ".tsv"):
        for start in (b"", b"PAR1", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04"):
            for _ in range(max(1, most // 10)):
                (at / f"noise{suffix}").write_bytes(start + draw.randbytes(draw.randint(1, 3000)) + start)
                opened(row, load_embeddings, at / f"noise{suffix}", f"noise behind {start} in a {suffix}")
    return row


def flipped(at, seed, most):
    """Bits of embeddings' own headers: refused, or an array of the same shape (their values carry no checksum outside this library's formats)."""
    row, z = Row("flipped bits", "headers of npy, npz, pt, safetensors, parquet"), torch.arange(120.0).view(40, 3)
    np.save(at / "f.npy", z.numpy()), np.savez(at / "f.npz", z=z.numpy()), torch.save(z, at / "f.pt")
    (at / "f.safetensors").write_bytes(save({"z": z}))
    import pandas as pd

    pd.DataFrame(z.numpy(), columns=list("abc")).to_parquet(at / "f.parquet")
    for path in sorted(at.glob("f.*")):
        content = path.read_bytes()
        for k in places(len(content), seed, most):
            path.write_bytes(damaged(content, "flip", k))
            try:
                found = in_child(read, load_embeddings, path)
                row.add("went on" if found == (40, 3) else "wrong results", str(found), f"byte {k} of {path.name}")
            except (Failed, Died) as error:
                row.refusal(error, f"byte {k} of {path.name}")
        path.write_bytes(content)
    return row


def odd_json(truth, at, row):
    """JSON that is none, or says strange things, in the place of a run's own."""
    kept, config = stopped(at, truth), json.dumps(CONFIG.to_dict())
    texts = [
        "",
        "null",
        "[]",
        "0",
        '"x"',
        "{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "NaN",
        "\0",
        "9" * 5000,
        '{"epochs": 1e999}',
    ]
    texts += [
        config.replace('"seed": 0', f'"seed": {value}')
        for value in ("NaN", "1e400", '"0"', "[0]", "null", "-1", "9" * 40, '0, "seed": 1')
    ]
    texts += [
        config.replace('"name": "byol"', f'"name": {value}')
        for value in ('"os.system"', "[]", "{}", '"__class__"', "3")
    ]
    for name in ("config.json", "metrics.jsonl", f"{checkpoints(kept)[0].name}/manifest.json", "summary.json"):
        for text in texts:
            out = at / "work"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(kept, out)
            (out / name).write_text(text)
            judge(row, out, truth, f"{text[:30]} in {name}")
    for text in texts:
        out = fresh(at)
        (out / "config.json").write_text(text)
        try:
            in_child(Run.read, out)
            row.add("went on" if TrainConfig.from_dict(json.loads(text)) else "wrong results", "", f"{text[:30]} read")
        except (Failed, Died) as error:
            row.refusal(error, f"{text[:30]} read as a run")
    return row


def measure(seed, share=1.0):
    """Rows of all kinds; `share` of the drawn injections."""
    many = lambda count: max(2, round(share * count))  # noqa: E731
    with folder() as at:
        backbone("resnet18", "random", 32)
        yield pickles(at)
        yield bombs_and_lies(fresh(at, "lies"), seed, many(30))
        yield flipped(fresh(at, "flips"), seed, many(80))
    with small_runs(), folder() as at:
        run_in(fresh(at))
        truth, _ = in_child(run_in, fresh(at, "whole"))
        yield checkpoints_with_code(truth, at, Row("code in a pickle", "checkpoints of a run"))
        yield odd_json(truth, at, Row("odd JSON", "config, metrics, manifest, summary of a run"))
