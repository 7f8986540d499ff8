"""CIFAR-10, CIFAR-100 and STL-10 from generated archives of the same format: downloaded, checked, decoded, and what is refused."""

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from wssl.core.checks import InputError
from wssl.data import archives
from wssl.data.files import decode
from wssl.data.images import Images, load_images

ORIGINAL = {"cifar10": CIFAR10, "cifar100": CIFAR100, "stl10": STL10}


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2Pickler(pickle.Pickler):
    """Writes numpy's types with whole numbers for flags, as the batches of 2009 do; numpy 2.4 warns when it reads them."""

    def reducer_override(self, value):
        if isinstance(value, np.dtype):
            return np.dtype, (value.str[1:], 0, 1), value.__reduce__()[2]
        return NotImplemented


def pickled(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def packed(files, folder):
    """A compressed tar of `files` in `folder`, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def smooth(n, size, seed):
    """Images whose rows, columns and channels all differ: uint8 (n, 3, size, size)."""
    low = torch.rand(n, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(low, size=(size, size), mode="bilinear")
    return (x * 255).byte().numpy()


class Made:
    """A generated archive: its bytes, the class attributes that describe it, and what it holds."""

    def __init__(self, source):
        self.source, self.original = source, ORIGINAL[source]
        self.truth, files = getattr(self, source)()
        self.content = packed(files, self.original.base_folder)
        self.attributes = {"tgz_md5": md5(self.content)}
        for key in ("train_list", "test_list"):
            named = [name for name, _ in getattr(self.original, key) if name in files]
            self.attributes[key] = [[name, md5(files[name])] for name in named]
        if source != "stl10":
            self.attributes["meta"] = self.original.meta | {"md5": md5(files[self.original.meta["filename"]])}

    def cifar10(self):
        names = [f"class {k}" for k in range(9, -1, -1)]  # not in the order of the alphabet
        x, y = smooth(60, 32, 1), np.arange(60) % 10
        parts = {f"data_batch_{k + 1}": slice(10 * k, 10 * k + 10) for k in range(5)} | {"test_batch": slice(50, 60)}
        files = {
            name: pickled({"data": x[part].reshape(-1, 3072), "labels": y[part].tolist()})
            for name, part in parts.items()
        }
        truth = {"train": (x[:50], y[:50], names), "test": (x[50:], y[50:], names)}
        return truth, files | {"batches.meta": pickled({"label_names": names})}

    def cifar100(self):
        names = [f"class {k:02}" for k in range(100)]
        truth, files = {}, {"meta": pickled({"fine_label_names": names, "coarse_label_names": ["all"]})}
        for seed, split in enumerate(("train", "test")):
            x, y = smooth(20, 32, seed), (7 * np.arange(20) + seed) % 100
            batch = {"data": x.reshape(-1, 3072), "fine_labels": y.tolist(), "coarse_labels": [0] * 20}
            truth[split], files[split] = (x, y, names), pickled(batch)
        return truth, files

    def stl10(self):
        names = [f"thing {k}" for k in range(10)]
        truth, files = {}, {"class_names.txt": "\n".join(names).encode() + b"\n"}
        for seed, split in enumerate(("train", "test", "unlabeled")):
            x, y = smooth(12, 96, seed), (3 * np.arange(12) + seed) % 10
            files[f"{split}_X.bin"] = np.ascontiguousarray(x.transpose(0, 1, 3, 2)).tobytes()  # column by column
            files[f"{split}_y.bin"] = (y + 1).astype(np.uint8).tobytes()  # from 1
            truth[split] = (x, y if split != "unlabeled" else np.full(12, -1), names)
        del files["unlabeled_y.bin"]
        both = [np.concatenate(pair) for pair in zip(truth["train"][:2], truth["unlabeled"][:2], strict=True)]
        return truth | {"train+unlabeled": (*both, names)}, files


@pytest.fixture(scope="module")
def made():
    return {source: Made(source) for source in ORIGINAL}


class Server:
    """A server on loopback: `content` is what it sends, `promised` the length it names, `asked` the requests it saw."""

    def __init__(self):
        self.content, self.promised, self.asked, self.pause, self.status = b"", None, [], 0.0, 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                self.send_response(server.status)
                self.send_header("Content-Length", str(server.promised or len(server.content)))
                self.end_headers()
                half = len(server.content) // 2
                try:
                    self.wfile.write(server.content[:half])
                    self.wfile.flush()
                    time.sleep(server.pause)
                    self.wfile.write(server.content[half:])
                except ConnectionError:
                    pass  # the other side was killed, as it should be

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def publish(monkeypatch, made, server):
    """`publish(source, url)` puts the generated archive in the place of the public one."""

    def publish(source="cifar10", url=None):
        server.content = made[source].content
        url = url or server.url
        described = type(source, (made[source].original,), made[source].attributes | {"url": url})
        monkeypatch.setitem(archives.ARCHIVES, source, described)
        return made[source]

    return publish


NOWHERE = "http://127.0.0.1:9/archive.tar.gz"  # the port for discarding: nobody listens


def equal(images, truth):
    x, y, names = truth
    assert torch.equal(images.x, torch.from_numpy(x)) and images.y.tolist() == y.tolist()
    assert images.classes == tuple(names) and images.y.dtype == torch.int64
    return True


def left(root):
    """Files below `root` that a failure must not leave: all but folders."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


# ---- what is read


def test_the_addresses_and_checksums_are_torchvisions():
    assert archives.ARCHIVES == ORIGINAL


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_is_what_the_archive_holds(tmp_path, publish, server, source):
    truth = publish(source).truth
    for split in ("train", "test"):
        images = load_images(source, split, root=tmp_path)
        assert isinstance(images, Images) and equal(images, truth[split])
        assert images.source == f"{source} {split}"
    assert server.asked == ["/archive.tar.gz"], "both splits come from one download"


def test_stl10_is_what_the_archive_holds(tmp_path, publish, server):
    truth = publish("stl10").truth
    for split in ("train", "test", "unlabeled", "train+unlabeled"):
        assert equal(load_images("stl10", split, size=96, root=tmp_path), truth[split])
    assert (load_images("stl10", "unlabeled", size=96, root=tmp_path).y == -1).all() and len(server.asked) == 1


@pytest.mark.parametrize(
    "source,size", [("stl10", 32), ("stl10", 64), ("stl10", 128), ("cifar10", 16), ("cifar10", 48)]
)
def test_another_size_is_made_as_from_files(tmp_path, publish, source, size):
    truth = publish(source).truth["test"]
    images = load_images(source, "test", size=size, root=tmp_path)
    assert images.x.shape[1:] == (3, size, size) and images.y.tolist() == truth[1].tolist()
    for original, row in zip(truth[0], images.x, strict=True):
        file = io.BytesIO()
        Image.fromarray(original.transpose(1, 2, 0)).save(file, "png")
        assert np.abs(decode("x", file.getvalue(), size).astype(int) - row.numpy()).max() <= 1 + (
            size > len(original[0])
        )


def test_blocks_do_not_change_the_result(tmp_path, publish):
    publish("stl10")
    images = [
        archives.archive_source("stl10", "train", 40, tmp_path / str(block), block).x for block in (1, 5, 12, 1000)
    ]
    assert all(torch.equal(images[0], x) for x in images)


# ---- without a network


def test_decoded_once_needs_neither_network_nor_archive(tmp_path, publish):
    truth = publish().truth
    load_images("cifar10", root=tmp_path)
    publish(url=NOWHERE)
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    assert equal(load_images("cifar10", root=tmp_path), truth["train"])


@pytest.mark.parametrize("have", ["archive", "unpacked"])
def test_what_the_user_has_already_is_enough(tmp_path, publish, have):
    made = publish("cifar100", url=NOWHERE)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(made.content)
    if have == "unpacked":
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        (tmp_path / "cifar-100-python.tar.gz").unlink()
    assert equal(load_images("cifar100", "test", root=tmp_path), made.truth["test"])


def test_a_damaged_unpacked_file_is_unpacked_again(tmp_path, publish):
    truth = publish().truth
    load_images("cifar10", root=tmp_path)
    publish(url=NOWHERE)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(batch.read_bytes()[:-100])
    assert equal(load_images("cifar10", "test", root=tmp_path), truth["test"])


def fails(match, root, source="cifar10", split="train", leaves=()):
    with pytest.raises(InputError, match=match) as caught:
        load_images(source, split, root=root)
    assert "\n" not in str(caught.value) and "Errno 28" not in str(caught.value)
    assert left(root) == sorted(leaves)


@pytest.mark.parametrize("case", ["refused", "no file", "404", "no such host"])
def test_no_network_is_one_sentence_that_says_what_to_do(tmp_path, publish, server, case):
    urls = {
        "refused": NOWHERE,
        "no file": (tmp_path / "none.tar.gz").as_uri(),
        "no such host": "http://host.invalid/archive.tar.gz",
    }
    made, server.status = publish(url=urls.get(case)), 404
    reason = {"404": "HTTP Error 404: Not Found", "refused": ".*refused", "no file": ".*No such file"}.get(case, ".+")
    sentence = (
        r"expected the archive of cifar10 in .*/cifar-10-python\.tar\.gz, or a network to download it from; "
        rf"received {reason}.*: put the archive there or use the source digits$"
    )
    fails(sentence, tmp_path)
    server.status = 200
    publish()
    assert equal(load_images("cifar10", root=tmp_path), made.truth["train"])


def test_an_unknown_split_is_refused_before_anything_is_downloaded(tmp_path, publish, server):
    publish()
    publish("stl10")
    fails(r"a split of cifar10 \(train, test\); received unlabeled", tmp_path, split="unlabeled")
    fails(r"a split of stl10 \(train, train\+unlabeled, unlabeled, test\); received val", tmp_path, "stl10", "val")
    assert not server.asked


# ---- bad downloads


@pytest.mark.parametrize("kept", [0, 1, 1000])
def test_a_connection_that_ends_early_does_not_poison_the_next_try(tmp_path, publish, server, kept):
    made = publish()
    server.content, server.promised = made.content[:kept], len(made.content)
    fails(rf"received a connection .* ended after {kept:,} of {len(made.content):,} bytes: put", tmp_path)
    server.content, server.promised = made.content, None
    assert equal(load_images("cifar10", root=tmp_path), made.truth["train"])


def test_another_file_at_the_address_is_refused(tmp_path, publish, server):
    made = publish()
    for content in (b"<html>Sign in to the network</html>", made.content[:-1], made.content[:-1] + b"\1"):
        server.content = content
        fails("received a file with another checksum from http://.*: put the archive there", tmp_path)
    server.content = made.content
    assert equal(load_images("cifar10", root=tmp_path), made.truth["train"])


def test_a_cut_archive_in_the_cache_is_named_or_replaced(tmp_path, publish):
    made, path = publish(url=NOWHERE), tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(made.content[:2000])
    fails(r"tar\.gz \(the file there has another checksum\), or a network", tmp_path, leaves=[path.name])
    assert path.stat().st_size == 2000, "a user's file is not removed"
    publish()
    assert equal(load_images("cifar10", root=tmp_path), made.truth["train"]) and path.read_bytes() == made.content


def test_a_full_disk_is_one_sentence(tmp_path, publish, monkeypatch):
    made = publish()
    (tmp_path / ".cifar-10-python.tar.gz.part").symlink_to("/dev/full")
    fails(
        r"expected room for the archive of cifar10 in .*; received a full disk: make room or let WSSL_CACHE", tmp_path
    )
    load_images("cifar10", root=tmp_path)
    before = left(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("wssl.data.decoded.open", lambda path, mode: open("/dev/full", mode), raising=False)
        sentence = "room for the decoded images of cifar10 test in .*; received a full disk"
        fails(sentence, tmp_path, split="test", leaves=before)
    assert equal(load_images("cifar10", "test", root=tmp_path), made.truth["test"])


# ---- several processes


def child(root, go, answers):
    """Loads the training images once `go` is set, and answers with what they are."""
    go.wait()
    images = load_images("cifar10", "train", root=root)
    answers.put((md5(images.x.numpy().tobytes()), images.y.tolist()))


def test_of_two_processes_one_downloads_and_a_killed_one_leaves_nothing(tmp_path, publish, server):
    x, y, _ = publish().truth["train"]
    fork = multiprocessing.get_context("fork")  # a process that has torch already: starts at once
    go, answers = (fork.Event(), fork.Event()), fork.Queue()
    processes = [fork.Process(target=child, args=(tmp_path, go[k > 0], answers)) for k in range(3)]
    for process in processes:
        process.start()
    server.pause = 60  # the first stands in the middle of its download
    go[0].set()
    deadline = time.monotonic() + 30
    while not (server.asked and list(tmp_path.glob(".*.part"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[0].kill()
    processes[0].join()
    assert list(tmp_path.glob(".*.part")), "killed too late to mean something"
    server.pause, server.asked = 0.5, []
    go[1].set()
    assert [answers.get(timeout=60) for _ in range(2)] == [(md5(x.tobytes()), y.tolist())] * 2
    for process in processes[1:]:
        process.join()
    assert len(server.asked) == 1, "the other one waited"
    assert not [name for name in left(tmp_path) if name.endswith((".part", ".lock")) or ".decoding-" in name]


# ---- the decoded cache


def test_the_mapped_pixels_are_the_callers_own(tmp_path, publish):
    truth = publish().truth["train"]
    images = load_images("cifar10", root=tmp_path)
    images.x.fill_(7)
    assert equal(load_images("cifar10", root=tmp_path), truth)


@pytest.mark.parametrize(
    "damage", ["pixel", "last pixel", "cut", "longer", "label", "class", "no checksum", "noise", "gone"]
)
def test_a_damaged_cache_is_decoded_again_without_a_network(tmp_path, publish, damage):
    truth = publish().truth["train"]
    load_images("cifar10", root=tmp_path)
    publish(url=NOWHERE)
    (pixels,), (listing,) = (list((tmp_path / "decoded").glob(f"*/{name}")) for name in ("pixels.u8", "listing.json"))
    content, about = bytearray(pixels.read_bytes()), json.loads(listing.read_text())
    if damage in ("pixel", "last pixel"):
        content[5000 if damage == "pixel" else -1] ^= 1
        pixels.write_bytes(content)
    elif damage in ("cut", "longer"):
        pixels.write_bytes(content[:-1] if damage == "cut" else content + b"\0")
    elif damage == "gone":
        pixels.unlink()
    elif damage == "noise":
        listing.write_bytes(b"\xff\x00 not JSON")
    else:
        if damage == "label":
            about["rows"][3] = (about["rows"][3] + 1) % 10
        elif damage == "class":
            about["classes"][0] = "another"
        else:
            del about["checksum"]
        listing.write_text(json.dumps(about))
    assert equal(load_images("cifar10", root=tmp_path), truth)
    assert pixels.read_bytes() == truth[0].tobytes()


def test_another_archive_is_another_cache(tmp_path, publish, made, monkeypatch):
    first = publish()
    load_images("cifar10", root=tmp_path)
    other = Made.__new__(Made)
    other.__dict__ |= first.__dict__ | {"attributes": first.attributes | {"tgz_md5": "0" * 32}}
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", type("Other", (CIFAR10,), other.attributes))
    load_images("cifar10", root=tmp_path)
    assert len(list((tmp_path / "decoded").iterdir())) == 2
