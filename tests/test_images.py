"""Images from generated folders and archives: what is read, what is refused, and what is kept."""

import errno
import io
import multiprocessing
import os
import shutil
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as TF

import wssl.data.images as module
from wssl import data
from wssl.core.checks import InputError
from wssl.data.decoded import alone, progress_line, room_for
from wssl.data.files import LINKED, OUTSIDE, decode, decode_all, tar_members
from wssl.data.images import SHAPES, Images, load_images, split_of_names


def encoded(number, size=(32, 32), suffix="png", mode="RGB"):
    """A random image of its own, as the bytes of a file."""
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    return buffer.getvalue()


def write_folder(root, names, **kwargs):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, suffix=name.rsplit(".")[-1].lower(), **kwargs))
    return root


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


SPLIT_NAMES = [f"{split}/{label}/{k}.png" for split in ("train", "test") for label in ("cat", "dog") for k in range(3)]


# ---- the sources that need no file


def test_digits_are_the_bundled_ones():
    train, test = load_images("digits"), load_images("digits", "test")
    assert len(train) + len(test) == 1797 and train.classes == tuple("0123456789")
    small = load_images("digits", size=8)
    originals = {
        np.minimum(image * 16, 255).astype(np.uint8).tobytes(): label
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert all(originals[row[0].numpy().tobytes()] == int(label) for row, label in zip(small.x, small.y, strict=True))
    assert not {row.numpy().tobytes() for row in train.x} & {row.numpy().tobytes() for row in test.x}
    for label, count in Counter(load_digits().target.tolist()).items():
        assert int((test.y == label).sum()) == round(count / 5)


def test_digits_where_scikit_learn_keeps_its_file_elsewhere(tmp_path, monkeypatch):
    "A later release may: then it is asked, and says the same."
    bundled = load_images("digits", size=8)
    monkeypatch.setattr(module, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    asked = load_images("digits", size=8)
    assert torch.equal(asked.x, bundled.x) and torch.equal(asked.y, bundled.y)


def test_digits_are_enlarged_bilinearly():
    small, large = load_images("digits", "test", size=8), load_images("digits", "test")
    for old, new in list(zip(small.x, large.x, strict=True))[:20]:
        pil = Image.fromarray(old[0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(pil).astype(int) - new[0].numpy()).max() <= 1
        assert torch.equal(new[0], new[1]) and torch.equal(new[0], new[2])


def test_synthetic_shapes_are_mirror_images_and_distinct():
    axis = torch.linspace(-1, 1, 33)
    masks = [shape(axis.view(1, -1), axis.view(-1, 1)).expand(33, 33) for shape in SHAPES.values()]
    assert all(torch.equal(mask, mask.flip(1)) for mask in masks)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 10
    train = load_images("synthetic")
    assert train.y.bincount().tolist() == [200] * 10 and len(load_images("synthetic", "test", size=16)) == 500
    assert torch.equal(train.x, load_images("synthetic").x)
    means = train.x.float().mean((2, 3))  # colour says nothing about the class
    between = torch.stack([means[train.y == k].mean(0) for k in range(10)]).std(0)
    assert (between < 4 * means.std(0) / 200**0.5).all()


# ---- folders and archives


@pytest.mark.parametrize("mode,suffix", [("w", "tar"), ("w:gz", "tar.gz"), ("w:bz2", "tgz"), ("w:xz", "tar.xz")])
def test_archive_and_folder_give_the_same_images(tmp_path, mode, suffix):
    folder = write_folder(tmp_path / "pets", SPLIT_NAMES)
    shuffled = sorted(SPLIT_NAMES, key=lambda name: name[::-1])
    write_tar(tmp_path / f"pets.{suffix}", [(f"./{name}", (folder / name).read_bytes()) for name in shuffled], mode)
    for split in ("train", "test"):
        a = load_images(f"folder:{folder}", split, root=tmp_path)
        b = load_images(f"tar:pets.{suffix}", split, root=tmp_path)
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.classes == b.classes == ("cat", "dog")
        assert a.y.tolist() == [0, 0, 0, 1, 1, 1]
        original = [np.asarray(Image.open(folder / name)) for name in SPLIT_NAMES if name.startswith(split)]
        assert np.array_equal(a.x.permute(0, 2, 3, 1).numpy(), np.stack(original))


def test_no_split_means_a_stratified_fifth(tmp_path):
    write_folder(tmp_path / "pets", [f"{label}/{k}.png" for label in ("cat", "dog") for k in range(20)])
    train, test = (load_images("folder:pets", split, root=tmp_path) for split in ("train", "test"))
    assert train.y.bincount().tolist() == [16, 16] and test.y.bincount().tolist() == [4, 4]
    assert not {row.numpy().tobytes() for row in train.x} & {row.numpy().tobytes() for row in test.x}
    with pytest.raises(InputError, match="expected split train or test; received val"):
        load_images("folder:pets", "val", root=tmp_path)


def test_no_class_folders_means_unlabelled(tmp_path):
    write_folder(tmp_path / "flat", [f"{k}.jpg" for k in range(10)])
    write_folder(tmp_path / "split", [f"{split}/{k}.jpg" for split in ("train", "unlabeled") for k in range(4)])
    flat, split = load_images("folder:flat", root=tmp_path), load_images("folder:split", "unlabeled", root=tmp_path)
    assert flat.y.tolist() == [-1] * 8 and split.y.tolist() == [-1] * 4 and flat.classes == ()
    with pytest.raises(InputError, match="labelled images"):
        flat.subset(1)


def test_labels_mean_the_same_in_every_split(tmp_path):
    write_folder(tmp_path / "pets", ["train/cat/0.png", "train/emu/1.png", "test/dog/2.png", "test/emu/3.png"])
    test = load_images("folder:pets", "test", root=tmp_path)
    assert test.classes == ("cat", "dog", "emu") and test.y.tolist() == [1, 2]
    with pytest.raises(InputError, match=r"one of the splits of .*pets \(test, train\); received val"):
        load_images("folder:pets", "val", root=tmp_path)


@pytest.mark.parametrize(
    "names,split,expected",
    [
        (["data/train/cat/1.png", "data/test/cat/1.png"], "train", (["train", "test"], ["cat", "cat"])),
        (["a/b/cat/1.png", "a/b/dog/2.png"], "train", ([None] * 2, ["cat", "dog"])),
        (["fold1/cat/1.png", "fold2/dog/1.png"], "fold1", (["fold1", "fold2"], ["cat", "dog"])),
        (["train/1.png", "car/1.png"], "train", ([None] * 2, ["train", "car"])),
        (["cat/1.png", "2.png"], "train", ([None] * 2, ["cat", None])),
        (["train/cat/deep/1.png"], "train", (["train"], ["cat"])),
    ],
)
def test_split_and_class_from_names(names, split, expected):
    assert split_of_names(names, split) == expected


def test_sizes_and_modes(tmp_path):
    for k, (size, mode) in enumerate([((64, 48), "RGB"), ((20, 50), "RGBA"), ((32, 32), "L"), ((100, 32), "RGB")]):
        write_folder(tmp_path / "mixed" / str(k), [f"{k}.png", f"{k}b.png"], size=size, mode=mode)
    for size in (8, 32, 40):
        images = load_images("folder:mixed", size=size, root=tmp_path)
        assert images.x.shape == (8, 3, size, size) and images.x.dtype == torch.uint8


def test_resize_is_torchvisions_resize_and_centre_crop(tmp_path):
    for size in ((96, 64), (64, 96), (48, 48)):
        ramp = np.add.outer(np.linspace(0, 120, size[1]), np.linspace(0, 120, size[0]))
        content = io.BytesIO()
        image = Image.fromarray(np.stack([ramp, 240 - ramp, 120 + 60 * np.sin(ramp / 9)], -1).astype(np.uint8))
        image.save(content, "png")
        theirs = TF.center_crop(TF.resize(image, 32, TF.InterpolationMode.BICUBIC, antialias=True), [32, 32])
        difference = np.abs(decode("x", content.getvalue(), 32).astype(int) - np.asarray(theirs).transpose(2, 0, 1))
        assert difference[:, 2:-2, 2:-2].max() <= 1 and difference.max() <= 6  # a crop's edge does not see beyond it


# ---- what is refused, in one sentence


def fails(source, match, root, split="train"):
    with pytest.raises(InputError, match=match) as caught:
        load_images(source, split, root=root)
    assert "\n" not in str(caught.value)
    leftovers = [path for path in (root / "decoded").glob("*")] if (root / "decoded").exists() else []
    assert not leftovers, "a failed decoding left something in the cache"


def test_unknown_sources_splits_and_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "one", ["1.png"])
    fails(
        "imagenet",
        "a source among digits, synthetic, cifar10, cifar100, stl10, folder:PATH, tar:PATH, stream:PATH; received imagenet",
        tmp_path,
    )
    fails("folder", "a source among", tmp_path)
    fails("digits", "split train or test of digits; received val", tmp_path, "val")
    fails("synthetic", "split train or test of synthetic; received val", tmp_path, "val")
    fails("folder:nowhere", "path of a folder with images; received nowhere, which does not exist", tmp_path)
    fails("tar:", "path of a tar with images; received nothing", tmp_path)
    fails("folder:empty", r"a folder with images \(.jpg, .*; received .*empty with none", tmp_path)
    fails("tar:one", "expected a tar of images; received a folder: one", tmp_path)
    fails("folder:one/1.png", "expected a folder of images; received a file: one/1.png", tmp_path)
    with pytest.raises(InputError, match="enough images in .*one for a split test; received 1"):
        load_images("folder:one", "test", root=tmp_path)


@pytest.mark.parametrize("broken", [b"", b"not an image", encoded(0)[:200], encoded(0, suffix="jpg")[:300]])
def test_a_broken_image_is_named(tmp_path, broken):
    write_folder(tmp_path / "pets", [f"cat/{k}.png" for k in range(5)])
    (tmp_path / "pets/cat/bad.png").write_bytes(broken)
    fails("folder:pets", "images that can be decoded; received .*cat/bad.png", tmp_path)
    write_tar(tmp_path / "pets.tar", [("cat/1.png", encoded(1)), ("cat/bad.png", broken)])
    fails("tar:pets.tar", "images that can be decoded; received .*cat/bad.png", tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, mode):
    whole = write_tar(tmp_path / "whole.tar", [(f"cat/{k}.png", encoded(k)) for k in range(4)], mode).read_bytes()
    end = len(whole) if mode != "w" else 4 * (512 + 512 * -(-len(encoded(0)) // 512))  # then come only zeros
    cuts = {1, 100, 512, 1024, end // 3, end // 2, end - 600, end - 1} | ({end} if mode == "w" else {len(whole) - 3})
    for cut in sorted(cuts):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        fails(
            "tar:cut.tar",
            "(a whole tar archive|images that can be decoded|an archive with images); received .*",
            tmp_path,
        )
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512] if mode == "w" else whole)
    assert len(load_images("tar:cut.tar", root=tmp_path)) == 3


def test_noise_is_not_an_archive(tmp_path):
    (tmp_path / "noise.tar").write_bytes(os.urandom(5000))
    fails("tar:noise.tar", "a whole tar archive; received .*noise.tar", tmp_path)
    write_tar(tmp_path / "text.tar", [("a.txt", b"hello")])
    fails("tar:text.tar", "an archive with images; received .*text.tar with none", tmp_path)


def test_odd_members_are_passed_over(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(99))
    link, hard, device = (tarfile.TarInfo(f"train/cat/{name}.png") for name in ("link", "hard", "device"))
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "train/cat/1.png"
    device.type = tarfile.CHRTYPE
    names = [
        "../escape.png",
        "/absolute.png",
        "train/../../up.png",
        "train/cat/._1.png",
        ".hidden/1.png",
        "__MACOSX/1.png",
    ]
    members = [
        ("train/cat/1.png", encoded(1)),
        *[(name, encoded(2)) for name in names],
        *[(info, b"") for info in (link, hard, device)],
    ]
    archive = write_tar(tmp_path / "odd.tar", members)
    before = sorted(tmp_path.parent.rglob("*"))
    notes = Counter()
    assert [name for name, _ in tar_members(archive, notes)] == ["train/cat/1.png", "train/cat/hard.png"]
    assert notes == {OUTSIDE: 1, LINKED: 1} and len(load_images("tar:odd.tar", root=tmp_path)) == 2
    written = [path for path in sorted(tmp_path.parent.rglob("*")) if path not in before]
    assert {path.name for path in written if path.is_file()} == {"pixels.u8", "listing.json"}


# ---- the cache


def test_decoded_once_and_again_when_changed(tmp_path, monkeypatch):
    folder, calls = write_folder(tmp_path / "pets", SPLIT_NAMES), []
    monkeypatch.setattr("wssl.data.files.decode", lambda *args: calls.append(args[0]) or decode(*args))
    first = load_images("folder:pets", root=tmp_path)
    assert len(calls) == 12 and len(load_images("folder:pets", "test", root=tmp_path)) == 6 and len(calls) == 12
    load_images("folder:pets", size=16, root=tmp_path)
    assert len(calls) == 24
    (folder / SPLIT_NAMES[0]).write_bytes(encoded(77))
    os.utime(folder / SPLIT_NAMES[0], ns=(1, 1))
    changed = load_images("folder:pets", root=tmp_path)
    assert len(calls) == 36 and not torch.equal(first.x[0], changed.x[0]) and torch.equal(first.x[1:], changed.x[1:])
    changed.x[0] = 0  # the caller's memory, not the cache
    assert load_images("folder:pets", root=tmp_path).x[0].any()


def test_a_renamed_class_is_seen(tmp_path):
    write_folder(tmp_path / "pets", SPLIT_NAMES)
    load_images("folder:pets", root=tmp_path)
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").rename(
            tmp_path / "pets" / split / "ape"
        )  # same files, sizes, times and order
    assert load_images("folder:pets", root=tmp_path).classes == ("ape", "dog")


def test_a_killed_decoding_leaves_no_half_cache(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", SPLIT_NAMES)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("wssl.data.files.decode", killed)
    with pytest.raises(KeyboardInterrupt):
        load_images("folder:pets", root=tmp_path)
    monkeypatch.undo()
    assert not list((tmp_path / "decoded").iterdir()) and len(load_images("folder:pets", root=tmp_path)) == 6
    (kept,) = (tmp_path / "decoded").iterdir()
    shutil.copytree(kept, tmp_path / "decoded" / ".decoding-of-a-killed-process")
    assert len(load_images("folder:pets", root=tmp_path)) == 6


def test_a_damaged_cache_is_decoded_again(tmp_path):
    write_folder(tmp_path / "pets", SPLIT_NAMES)
    whole = load_images("folder:pets", root=tmp_path)
    (pixels,) = (tmp_path / "decoded").glob("*/pixels.u8")
    pixels.write_bytes(pixels.read_bytes()[:1000])
    assert torch.equal(load_images("folder:pets", root=tmp_path).x, whole.x)


def hold(path):
    with alone(path):
        time.sleep(600)


def worker_of_a_lock(path, log, times):
    for _ in range(times):
        with alone(path):
            with open(log, "a") as file:
                file.write("in ")
                file.flush()
                time.sleep(0.001)
                file.write("out\n")


def test_a_lock_lets_one_process_in_and_goes_with_its_holder(tmp_path):
    fork, lock, log = multiprocessing.get_context("fork"), tmp_path / "at" / ".lock", tmp_path / "log"
    processes = [fork.Process(target=worker_of_a_lock, args=(lock, log, 40)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text() == "in out\n" * 160 and not lock.exists()
    holder = fork.Process(target=hold, args=(lock,))
    holder.start()
    while not lock.exists():
        time.sleep(0.01)
    holder.kill()
    holder.join()
    worker_of_a_lock(lock, log, 1)  # would wait for ever
    assert not lock.exists()


def test_two_that_start_at_once_decode_once(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", SPLIT_NAMES)
    calls = []
    monkeypatch.setattr("wssl.data.files.decode", lambda *args: calls.append(time.sleep(0.02)) or decode(*args))
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda split: load_images("folder:pets", split, root=tmp_path), ("train", "test", "train"))
        )
    assert len(calls) == 12 and [len(images) for images in found] == [6, 6, 6]
    assert torch.equal(found[0].x, found[2].x)


def test_a_cache_on_a_disk_that_changes_what_is_written_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", SPLIT_NAMES)
    monkeypatch.setattr("wssl.data.decoded.open_decoded", lambda *args: None)
    with pytest.raises(InputError, match="to read from .* what was just written there; received something else"):
        load_images("folder:pets", root=tmp_path)


def test_only_a_full_disk_is_called_a_full_disk(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(InputError, match="room for digits in .*; received a full disk"):
            with room_for("digits", tmp_path):
                raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), room_for("digits", tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_many_blocks_stay_in_order():
    files = [(str(k), encoded(k, (4, 4))) for k in range(50)]
    names, pixels = zip(*decode_all(files, 4, threads=4, block=3), strict=True)
    assert sum(names, []) == [name for name, _ in files]
    assert np.array_equal(np.concatenate(pixels), np.stack([decode(*file, 4) for file in files]))


def test_progress_is_silent_at_first_and_plain_off_a_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("wssl.data.decoded.time.monotonic", lambda: now[0])
    update = progress_line("decoding x")
    for seconds in range(12):
        now[0] = 100.0 + seconds
        update(1000 * seconds)
    update(12_000, done=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "decoding x: 5,000 images, 1,000 a second" and lines[-1].startswith("decoding x: 12,000 images")
    assert len(lines) == 3


# ---- Images


def test_images_say_what_they_are_and_refuse_what_they_are_not():
    x, y = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, -1])
    images = Images(x, y, ("a", "b"), "mine")
    assert repr(images) == "Images(mine: 4 x 3 x 8 x 8 uint8 on cpu; 2 classes: a, b; 1 unlabelled)"
    assert len(images) == 4 and images.to("meta").x.device.type == "meta"
    assert images.subset(1, seed=3).y.tolist() == [0, 1] and data.Images is Images
    for bad in (x.float(), x[:, :1], x[0]):
        with pytest.raises(InputError, match="images as a uint8 tensor"):
            Images(bad, y)
    with pytest.raises(InputError, match=r"labels of the images of shape \(4,\)"):
        Images(x, y[:3])
    with pytest.raises(InputError, match="at least 2 images of class a; received 1"):
        images.subset(2)
    with pytest.raises(InputError, match="at least 1 image per class; received 0"):
        images.subset(0)


def test_subsets_are_seeded_nested_and_balanced():
    digits = load_images("digits")
    draws = {seed: {row.numpy().tobytes() for row in digits.subset(10, seed).x} for seed in (0, 1)}
    larger = {row.numpy().tobytes() for row in digits.subset(30, 0).x}
    assert draws[0] < larger and draws[0] != draws[1]
    assert digits.subset(10, 0).y.bincount().tolist() == [10] * 10
    assert torch.equal(digits.subset(10, 0).x, digits.subset(10, 0).x)
