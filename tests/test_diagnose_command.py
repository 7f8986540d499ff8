"""`wssl diagnose` as a user meets it: every format, images, stages; forty kinds of wrong input, each one sentence, exit code 2, nothing written."""

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkout import ROOT
from wssl.companion.cli import main
from wssl.evaluation.backbones import backbone, embed, images_below
from wssl.evaluation.sources import load_embeddings, load_labels
from wssl.metrics import diagnose

Z = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).numpy()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def save_zip(path, names):
    import zipfile

    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"no array")


def parquet(path, **columns):
    pa = pytest.importorskip("pyarrow", reason="parquet needs the extra parquet")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def text(content):
    return lambda at: at.write_text(content)


WRONG = {
    "objects.npy": (lambda at: np.save(at, np.array([{}, None], dtype=object), allow_pickle=True), "may run code"),
    "strings.npy": (lambda at: np.save(at, np.array([["a", "b"]])), "numbers of at most 64 bits"),
    "complex.npy": (lambda at: np.save(at, Z.astype(np.complex64)), "complex64"),
    "structured.npy": (lambda at: np.save(at, np.zeros(4, dtype=[("x", "f4")])), "numbers"),
    "longdouble.npy": (lambda at: np.save(at, Z.astype(np.longdouble)), "64 bits"),
    "ints.npy": (lambda at: np.save(at, np.ones((40, 4), dtype=np.int32)), "floating point"),
    "bools.npy": (lambda at: np.save(at, Z > 0), "floating point"),
    "flat.npy": (lambda at: np.save(at, Z[:, 0]), "shape (200,)"),
    "scalar.npy": (lambda at: np.save(at, np.float32(1)), "shape ()"),
    "maps.npy": (lambda at: np.save(at, np.zeros((4, 8, 8), np.float32)), "shape (4, 8, 8)"),
    "norows.npy": (lambda at: np.save(at, Z[:0]), "shape (0, 16)"),
    "nocolumns.npy": (lambda at: np.save(at, Z[:, :0]), "shape (200, 0)"),
    "onerow.npy": (lambda at: np.save(at, Z[:1]), "at least 2 rows"),
    "nan.npy": (lambda at: np.save(at, np.where(Z > 2, np.nan, Z)), "finite"),
    "inf.npy": (lambda at: np.save(at, np.where(Z > 2, np.inf, Z)), "finite"),
    "huge.npy": (lambda at: np.save(at, Z * np.float32(1e30)), "below 1e+15"),
    "torn.npy": (lambda at: (np.save(at, Z), os.truncate(at, 700)), "torn.npy"),
    "renamed.npy": (text("just words"), "renamed.npy"),
    "empty.npy": (text(""), "an empty file"),
    "torn.npz": (lambda at: at.write_bytes(b"PK\x03\x04 torn"), "torn.npz"),
    "zip.npz": (lambda at: save_zip(at, ["readme.txt"]), "zip.npz"),
    "several.npz": (lambda at: np.savez(at, a=Z, b=Z), "2 (a, b)"),
    "none.npz": (lambda at: np.savez(at), "0 ()"),
    "code.pt": (lambda at: torch.save({"z": Bomb()}, at), "may run code"),
    "plain.pt": (lambda at: at.write_bytes(pickle.dumps(Bomb())), "plain.pt"),
    "list.pt": (lambda at: torch.save([1, 2], at), "list"),
    "sparse.pt": (lambda at: torch.save(torch.eye(4).to_sparse(), at), "sparse.pt"),
    "state.pt": (lambda at: torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, at), "2 (a, b)"),
    "torn.safetensors": (lambda at: at.write_bytes(b"\x10\x00\x00\x00"), "torn.safetensors"),
    "ragged.csv": (text("1.0,2.0\n3.0,4.0,5.0\n"), "rows of different lengths"),
    "short.csv": (text("1.5,2.5\n3.5\n"), "data row 2"),
    "gap.csv": (text("a,b\n1.5,2.5\n,4.5\n"), "data row 2"),
    "text.csv": (text("name,x\ncat,0.5\ndog,0.6\n"), "text in column 'name'"),
    "mixed.csv": (text("label,x\n1,0.5\n2,0.6\n"), "integers in column 'label'"),
    "words.csv": (text("0.5,0.6\n0.1,oops\n"), "text in column"),
    "headeronly.csv": (text("a,b\n"), "headeronly.csv"),
    "latin.csv": (lambda at: at.write_bytes(b"\xff\xfe1,2\n3,4\n"), "latin.csv"),
    "text.parquet": (lambda at: parquet(at, name=["a", "b"], x=[0.5, 0.6]), "text in column 'name'"),
    "ragged.parquet": (lambda at: parquet(at, z=[[0.5, 0.6], [0.7]]), "lists of one length"),
    "gap.parquet": (lambda at: parquet(at, x=[0.5, None]), "a number in every place"),
    "torn.parquet": (lambda at: at.write_bytes(b"PAR1 torn PAR1"), "torn.parquet"),
    "table.xlsx": (text("x"), "a file of embeddings"),
    "object.pkl": (lambda at: at.write_bytes(pickle.dumps(Bomb())), "a file of embeddings"),
}  # fmt: skip


def sentence(capsys, folder, *words):
    "What a command says that exits with 2; nothing else may be said or written."
    before = sorted(os.listdir(folder))
    code = main(["diagnose", *map(str, words), "--html", str(folder / "out.html"), "--json", str(folder / "out.json")])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err, (code, out, err)
    assert err.startswith("wssl: expected ") and "; received " in err
    assert sorted(os.listdir(folder)) == before and not os.path.exists("bomb")
    return err


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(name, tmp_path, capsys, monkeypatch):
    make, says = WRONG[name]
    make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert says in sentence(capsys, tmp_path, tmp_path / name)


@pytest.fixture
def good(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "y.npy", np.arange(200) % 4)
    np.save(tmp_path / "y150.npy", np.arange(150))
    np.save(tmp_path / "half.npy", Z[:, :8])
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.png").write_bytes(b"broken")
    return tmp_path


WRONG_WORDS = {
    "missing file": (["nowhere.npy"], "does not exist"),
    "unknown key": (["z.npy", "--key"], "--key"),
    "other second view": (["z.npy", "--second", "half.npy"], "(200, 16) and (200, 8)"),
    "too few labels": (["z.npy", "--labels", "y150.npy"], "labels of shape (200,)"),
    "labels with a point": (["z.npy", "--labels", "z.npy"], "labels"),
    "share above 1": (["z.npy", "--fail-below", "1.5"], "a share from 0 to 1"),
    "share in words": (["z.npy", "--fail-below", "half"], "half"),
    "no images": (["empty", "--model", "resnet18", "--weights", "random"], "a folder with images"),
    "folder alone": (["pictures"], "--checkpoint or --model"),
    "both": (["pictures", "--model", "resnet18", "--checkpoint", "run"], "both"),
    "no such model": (["pictures", "--model", "resnet19", "--weights", "random"], "resnet19"),
    "no such run": (["pictures", "--checkpoint", "nowhere"], "a run directory"),
    "no such weights": (["pictures", "--model", "resnet18", "--weights", "nowhere.pt"], "nowhere.pt"),
    "model of a file": (["z.npy", "--model", "resnet18"], "a folder of images"),
    "second of stages": (["z.npy", "half.npy", "--second", "z.npy"], "one file beside --second"),
    "unknown option": (["z.npy", "--colour", "red"], "--colour"),
    "output of another kind": (["z.npy", "--png", "out.pdf"], ".png"),
    "output in a file": (["z.npy", "--png", "z.npy/out.png"], "a file to write to"),
}


@pytest.mark.parametrize("name", WRONG_WORDS)
def test_wrong_words(name, good, capsys, monkeypatch):
    words, says = WRONG_WORDS[name]
    monkeypatch.chdir(good)
    assert says in sentence(capsys, good, *words)


def test_without_pyarrow_a_parquet_file_is_a_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "z.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in sentence(capsys, tmp_path, tmp_path / "z.parquet")


def write(at, ending):
    z = torch.from_numpy(Z)
    named = {f"e{i}": Z[:, i] for i in range(16)}
    pa = pytest.importorskip("pyarrow", reason="parquet needs the extra parquet") if "parquet" in ending else None
    writers = {
        "z.npy": lambda p: np.save(p, Z),
        "fortran.npy": lambda p: np.save(p, np.asfortranarray(Z)),
        "big-endian.npy": lambda p: np.save(p, Z.astype(">f4")),
        "z.npz": lambda p: np.savez_compressed(p, z=Z),
        "z.pt": lambda p: torch.save(z, p),
        "old.pt": lambda p: torch.save(z, p, _use_new_zipfile_serialization=False),
        "parameter.pth": lambda p: torch.save({"z": torch.nn.Parameter(z)}, p),
        "z.safetensors": lambda p: save_file({"z": z}, p),
        "z.csv": lambda p: np.savetxt(p, Z, delimiter=",", fmt="%.9g"),
        "z.tsv": lambda p: np.savetxt(p, Z, delimiter="\t", fmt="%.9g", header="\t".join(named), comments=""),
        "columns.parquet": lambda p: parquet(p, **named),
        "lists.parquet": lambda p: parquet(p, z=list(Z)),
        "fixed.parquet": lambda p: parquet(p, z=pa.FixedSizeListArray.from_arrays(Z.reshape(-1), 16)),
    }
    writers[ending](at / ending)
    return at / ending


@pytest.mark.parametrize(
    "ending",
    ["z.npy", "fortran.npy", "big-endian.npy", "z.npz", "z.pt", "old.pt", "parameter.pth", "z.safetensors"]
    + ["z.csv", "z.tsv", "columns.parquet", "lists.parquet", "fixed.parquet"],
)
def test_every_format_gives_back_what_was_saved(ending, tmp_path):
    back = load_embeddings(write(tmp_path, ending))
    assert torch.equal(back, torch.from_numpy(Z)) and not back.requires_grad


def test_a_table_with_more_columns(tmp_path):
    lines = ["id;class;e0;e1", "a;dog;0.5;1", "b;cat;0.25;-1", "c;dog;1.25;3"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert load_embeddings(tmp_path / "t.csv", "e").tolist() == [[0.5, 1], [0.25, -1], [1.25, 3]]
    assert load_labels(tmp_path / "t.csv", "class").tolist() == [1, 0, 1]


def test_outputs_whole_and_self_contained(good, capsys):
    names = ["out.html", "out.json", "out.png"]
    options = [word for name in names for word in (f"--{name[4:]}", str(good / "new" / name))]
    assert main(["diagnose", str(good / "z.npy"), "--labels", str(good / "y.npy"), *options]) == 0
    assert sorted(os.listdir(good / "new")) == names and "Written: " in capsys.readouterr().out
    page = (good / "new/out.html").read_text()
    assert (
        not re.search(r"(?:src|href)=['\"](?!data:)|url\(|@import|https?:", page)
        and "prefers-color-scheme:dark" in page
    )
    found = json.loads((good / "new/out.json").read_text())
    assert (
        found["status"] == "healthy"
        and found["intervals"]["W2"][0] <= found["values"]["W2"] <= found["intervals"]["W2"][1]
    )
    assert (good / "new/out.png").read_bytes()[:4] == b"\x89PNG"


def test_stages_say_since_when(good, capsys):
    paths = []
    for epoch, alive in enumerate((16, 16, 8, 4)):
        paths.append(str(good / f"epoch{epoch}.npy"))
        draw = torch.Generator().manual_seed(epoch)
        np.save(paths[-1], (torch.randn(400, 16, generator=draw) * (torch.arange(16) < alive)).numpy())
    assert main(["diagnose", *paths, "--json", str(good / "h.json")]) == 0
    assert "healthy (epoch0 to epoch1), then dimensional collapse (epoch2 to epoch3)" in capsys.readouterr().out
    assert [line["effective"] for line in json.loads((good / "h.json").read_text())["history"]] == [16, 16, 8, 4]


def test_fail_below_is_for_continuous_integration(good, capsys):
    np.save(good / "dead.npy", Z * (np.arange(16) < 4))
    np.save(good / "few.npy", Z[:10])
    for name, least, code in (("z", 0.8, 0), ("dead", 0.8, 1), ("dead", 0.2, 0), ("few", 0.1, 1)):
        assert main(["diagnose", str(good / f"{name}.npy"), "--fail-below", str(least)]) == code
    assert "too few rows" in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    from wssl.data.images import digits

    found = digits("test").take(range(48))
    for row, (x, y) in enumerate(zip(found.x, found.y.tolist(), strict=True)):
        at = tmp_path / "pictures" / str(y % 2) / f"{row:02}.png"
        at.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(at)
    return tmp_path


def test_images_through_a_model_by_name(pictures, capsys):
    words = [
        "diagnose",
        str(pictures / "pictures"),
        "--model",
        "resnet18",
        "--size",
        "32",
        "--json",
        str(pictures / "a.json"),
    ]
    torch.manual_seed(0)
    assert main([*words, "--weights", "random"]) == 0
    assert capsys.readouterr().err.count("random weights") == 1
    found = json.loads((pictures / "a.json").read_text())
    assert found["values"]["dimensions"] == 512 and found["values"]["rows"] == 48 and len(found["classes"]) == 2
    torch.manual_seed(0)
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, pictures / "w.pth")
    assert main([*words, "--weights", str(pictures / "w.pth")]) == 0
    assert "random" not in capsys.readouterr().err
    again = json.loads((pictures / "a.json").read_text())
    assert again["values"]["W2"] == pytest.approx(found["values"]["W2"], abs=1e-5)
    torch.save({"x": torch.ones(2)}, pictures / "other.pth")
    assert main([*words, "--weights", str(pictures / "other.pth")]) == 2


def test_weights_that_cannot_be_fetched_are_random_with_one_warning(monkeypatch, capsys):
    from torchvision import models

    get = models.get_model

    def offline(name, weights=None):
        if weights:
            raise OSError("no network")
        return get(name, weights=None)

    monkeypatch.setattr(models, "get_model", offline)
    network, _ = backbone("resnet18")
    assert capsys.readouterr().err.count("random weights") == 1 and isinstance(network.fc, torch.nn.Identity)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_0", "vit_tiny_patch16_224"])
def test_other_models(name, pictures):
    if name.startswith("vit"):
        pytest.importorskip("timm", reason="models of timm need the extra vit")
    if name == "squeezenet1_0":
        with pytest.raises(ValueError, match="a linear layer at its end"):
            backbone(name, "random", 64)
        return
    network, plain = backbone(name, "random", 224 if name.startswith("vit") else 64)
    z = embed(network, images_below(pictures / "pictures", plain.size).take(range(3)), plain)
    assert z.shape[0] == 3 and z.shape[1] in (1024, 192)


def test_images_through_a_checkpoint(pictures, capsys):
    run = str(pictures / "run")
    tiny = ["--per-class", "8", "--test-per-class", "4", "--epochs", "1", "--batch", "40", "--knn-k", "5"]
    assert main(["train", "--out", run, *tiny]) == 0
    for layer, m in (("z", 128), ("h", 256)):
        words = [str(pictures / "pictures"), "--checkpoint", run, "--layer", layer, "--json", str(pictures / "c.json")]
        assert main(["diagnose", *words]) == 0
        found = json.loads((pictures / "c.json").read_text())
        assert found["values"]["rows"] == 48 and (layer == "h" or found["values"]["dimensions"] == m)


MEMORY = """
import sys, torch
from wssl.companion.cli import main
from wssl.metrics import diagnose
torch.set_num_threads(1)
diagnose(torch.randn(20_000, 32))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
import threading, time
top, stop = [peak()], []
def watch():
    while not stop:
        top[0] = max(top[0], peak()); time.sleep(0.005)
before = peak()
thread = threading.Thread(target=watch, daemon=True); thread.start()
assert main(["diagnose", sys.argv[1]]) == 0
stop.append(1); thread.join()
print("grew", top[0] - before)
"""


@pytest.fixture(scope="module")
def half_a_gigabyte(tmp_path_factory):
    "A million embeddings, drawn once and on the disk only."
    path = tmp_path_factory.mktemp("large") / "z.npy"
    z = np.lib.format.open_memmap(path, "w+", np.float32, (1_000_000, 128))
    for start in range(0, len(z), 50_000):
        z[start : start + 50_000] = np.random.default_rng(start).standard_normal((50_000, 128), dtype=np.float32)
    yield z
    path.unlink()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory that Linux tells of a process")
@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".pt"])
def test_memory_does_not_grow_with_the_file(half_a_gigabyte, tmp_path, ending):
    "Half a gigabyte of embeddings: a copy would show."
    z, at = half_a_gigabyte, half_a_gigabyte.filename if ending == ".npy" else tmp_path / f"z{ending}"
    if ending != ".npy":
        whole = torch.from_numpy(z)
        torch.save({"z": whole}, at) if ending == ".pt" else save_file({"z": whole}, at)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY, str(at)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("grew")[1]) < 250, done.stdout[-300:]


def test_a_mapped_file_is_not_written_to(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    z = load_embeddings(tmp_path / "z.npy")
    z.mul_(2)
    assert np.array_equal(np.load(tmp_path / "z.npy"), Z)


def test_the_same_numbers_from_a_mapped_file_as_from_memory(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    mapped, memory = diagnose(load_embeddings(tmp_path / "z.npy")), diagnose(torch.from_numpy(Z))
    assert mapped.to_dict() == memory.to_dict()
