"""Streamed images: the pixels of the folder in any order, nothing left behind, and one sentence for a broken one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wssl.core.checks import InputError
from wssl.data import StreamedImages, load_images
from wssl.data import stream as module
from wssl.data.images import Images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs of two classes and several sizes; sizes and contents all differ."""
    root, rng = tmp_path_factory.mktemp("stream"), np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(40):
            path = root / "photos" / split / ("dög", "cat")[number % 2] / f"{number}.{('png', 'jpg')[number % 3 == 0]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            low = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            low.resize((30 + number, 50 - number // 2)).save(path)
    return root


@pytest.fixture(scope="module")
def both(root):
    return [load_images(f"{kind}:photos", size=24, root=root) for kind in ("folder", "stream")]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not multiprocessing.active_children()


def equal(batches, others):
    batches, others = list(batches), list(others)
    assert [x.shape for x in batches] == [x.shape for x in others]
    return all(torch.equal(x, other) and x.dtype == torch.uint8 for x, other in zip(batches, others, strict=True))


# ---- the same images


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_is_the_folder_in_the_order_of_the_rows(both, workers):
    folder, stream = both[0], replace(both[1], workers=workers)
    assert isinstance(stream, StreamedImages) and isinstance(folder, Images)
    assert len(stream) == 40 and torch.equal(stream.y, folder.y) and stream.classes == folder.classes == ("cat", "dög")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for steps in (order.split(16), order.split(1)[:3], [order, order[:0], order[:5].repeat(9)], []):
        assert equal(stream.batches(steps, part=3), folder.batches(steps))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.lists(st.integers(0, 39), max_size=20), max_size=6), part=st.integers(1, 9))
def test_whatever_the_steps_and_the_parts(both, steps, part):
    steps = [torch.tensor(rows, dtype=torch.long) for rows in steps]
    assert equal(replace(both[1], workers=0).batches(steps, part=part), both[0].batches(steps))


def test_images_in_memory_give_the_rows_themselves():
    x = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    images = Images(x, torch.zeros(5).long())
    assert [batch[:, 0, 0, 0].tolist() for batch in images.batches(iter(torch.tensor([3, 1, 1, 4]).split(3)))] == [
        [3, 1, 1],
        [4],
    ]


def test_take_and_subset_choose_the_same_images(both):
    rows, mask = torch.tensor([7, 3, 3, 39]), torch.arange(40) % 5 == 0
    everything = [torch.arange(40)]
    for choose in (
        lambda i: i.take(rows),
        lambda i: i.take(mask),
        lambda i: i.subset(4, seed=1),
        lambda i: i.take([2, 5]),
    ):
        folder, stream = (choose(images) for images in both)
        steps = [everything[0][: len(folder)]]
        assert len(stream) == len(folder) and torch.equal(stream.y, folder.y)
        assert equal(replace(stream, workers=0).batches(steps), folder.batches(steps))
    with pytest.raises(InputError, match="at least 21 images of class cat; received 20"):
        both[1].subset(21)


def test_splits_and_refusals_are_those_of_a_folder(root, tmp_path):
    assert len(load_images("stream:photos", "test", root=root)) == 40
    with pytest.raises(InputError, match=r"one of the splits of .*photos \(test, train\); received val"):
        load_images("stream:photos", "val", root=root)
    with pytest.raises(InputError, match="path of a folder with images; received nowhere, which does not exist"):
        load_images("stream:nowhere", root=root)
    with pytest.raises(InputError, match="a folder with images"):
        load_images(f"stream:{tmp_path}", root=root)
    assert not (tmp_path / "decoded").exists()


def test_no_picture_is_kept_on_the_disk(root, tmp_path):
    stream = load_images(f"stream:{root}/photos", size=16, root=tmp_path)
    list(stream.batches(torch.arange(40).split(10)))
    (kept,) = tmp_path.glob("decoded/*/pixels.u8")
    assert kept.parent.name.startswith("photos-seen-") and kept.stat().st_size == 80 * 3, "that each was looked at"


def test_it_says_what_it_is(both):
    stream = both[1]
    assert repr(stream) == "StreamedImages(stream:photos train: 40 x 3 x 24 x 24 uint8 to cpu; 2 classes)"
    assert "to meta" in repr(stream.to("meta")) and stream.to("meta").y.device.type == "meta"
    with pytest.raises(InputError, match=r"labels of the images of shape \(40,\)"):
        replace(stream, y=stream.y[:3])


# ---- what a training needs


def test_it_draws_nothing_from_the_generator_of_the_training(both):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(replace(both[1], workers=workers).batches(torch.arange(40).split(20)))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_reads_ahead_but_not_without_bound(both):
    asked = []

    def steps():
        for step in range(500):
            asked.append(step)
            yield torch.arange(40)[:4]

    batches = replace(both[1], workers=2).batches(steps())
    next(batches)
    assert 1 < len(asked) <= 8
    for _ in range(9):
        next(batches)
    assert 10 < len(asked) <= 18
    batches.close()


@pytest.mark.parametrize("how", ["close", "break", "exception"])
def test_a_loop_that_ends_early_leaves_no_process(both, how):
    stream = replace(both[1], workers=2)
    batches = stream.batches(torch.arange(40).split(4))
    if how == "exception":
        with pytest.raises(KeyError):
            for _ in stream.batches(torch.arange(40).split(4)):
                raise KeyError
    elif how == "break":
        for _ in batches:
            break
    else:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [b"", b"not an image", None])
def test_a_broken_image_is_one_sentence_with_its_name(tmp_path, workers, broken):
    for number in range(12):
        path = tmp_path / "photos" / "cat" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    stream = replace(load_images("stream:photos", size=8, root=tmp_path), workers=workers)
    row = [os.fsdecode(name) for name in stream.names].index("cat/07.png") if b"cat/07.png" in stream.names else 0
    path = tmp_path / "photos" / os.fsdecode(stream.names[row])
    path.unlink() if broken is None else path.write_bytes(broken)
    seen = []
    with pytest.raises(InputError, match=rf"expected images that can be decoded; received cat/{path.name} \(\w+\)$"):
        for x in stream.batches(torch.arange(len(stream)).split(2)):
            seen.append(x)
    assert len(seen) == row // 2, "the steps before it are whole"
    assert not multiprocessing.active_children()


def test_an_error_in_the_callers_rows_is_the_callers(both):
    def steps():
        yield torch.arange(4)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(replace(both[1], workers=1).batches(steps()))


def loop_for_ever(stream, pids, first):
    batches = iter(stream.loader([[0, 1]] * 10_000))
    if first:
        next(batches)
    pids.put([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="asks the Linux kernel who is alive")
@pytest.mark.parametrize("first", [True, False], ids=["after a batch", "while they start"])
def test_the_workers_of_a_killed_training_end_by_themselves(both, first):
    fork = multiprocessing.get_context("fork")
    pids = fork.Queue()
    training = fork.Process(target=loop_for_ever, args=(replace(both[1], workers=8), pids, first))
    training.start()
    workers = pids.get(timeout=30)
    assert len(workers) == 8 and any(map(alive, workers))
    os.kill(training.pid, signal.SIGKILL)
    training.join()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_cores_are_shared_among_the_processes_of_torchrun(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    for processes, cores in (("1", 12), ("8", 1), ("4", 3), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert module.own_cores() == cores


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_live_as_long_as_their_training_however_they_are_started(tmp_path, method):
    for k in range(12):
        (tmp_path / "photos" / "train" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * k, 1, 2)).save(tmp_path / "photos" / "train" / "cat" / f"{k}.png")
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, sys, time
from dataclasses import replace
import torch
from wssl.data.images import load_images

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    images = replace(load_images("stream:{tmp_path}/photos", "train", 16, "{tmp_path}/cache"), workers=1)
    plan = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
    shapes = []
    for x in images.batches(plan):
        shapes.append(tuple(x.shape))
        time.sleep(1.5)  # longer than a worker takes to look for its parent
    print(shapes)
""")
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.strip() == str([(4, 3, 16, 16)] * 3)
