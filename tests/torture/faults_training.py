"""Training, disturbed: killed, without room, with damaged files, raced. Every run has to end in the numbers and weights of the one that nobody disturbed."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import time
import zlib
from dataclasses import replace

import pytest
import torch

import wssl.training.loop as loop
from tests.torture.faults_inject import (
    Died,
    Failed,
    Row,
    at_instant,
    damaged,
    folder,
    fresh,
    in_child,
    instants_of,
    places,
)
from wssl.methods import BYOL
from wssl.models import SmallResNet
from wssl.training import Run, TrainConfig, train
from wssl.training.checkpoints import checkpoints
from wssl.training.evaluation import load_data

CONFIG = TrainConfig(
    method=BYOL(momentum=0.9, hidden=8, out=4),
    regularizer="w2",
    weight=0.5,
    per_class=2,
    test_per_class=1,
    size=8,
    epochs=3,
    batch=20,
    lr=2e-3,
    eval_every=1,
    knn_k=3,
    online_probe=True,
    threads=1,
    device="cpu",
)


@contextlib.contextmanager
def small_runs():
    """An encoder of a thousand weights in place of half a million, images and the machine's description read once: the same files, in a tenth of a second."""
    data, about = load_data(CONFIG), loop.environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wssl.training.step.encoder", lambda *_: SmallResNet(width=4, blocks=(1,)))
        patch.setattr(loop, "load_data", lambda *_: data)
        patch.setattr(loop, "environment", lambda: about)
        yield


def run_in(out, epochs=CONFIG.epochs, **changes):
    """Train in `out`: lines and final values without wall time, a checksum of all weights and of the optimizer's state, what was said."""
    said = []
    run = train(replace(CONFIG, out=str(out), epochs=epochs, **changes), said.append, events=False)
    return numbers(run), said


def numbers(run):
    """All that a run came to, wall time aside."""
    lines = lines_of(run)
    copy = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    copy = [{name: value for name, value in line.items() if "seconds" not in name} for line in copy]
    summary = {key: run.summary[key] for key in ("final", "images", "parameters", "processes")}
    return {"lines": lines, "copy": copy, "summary": summary, "weights": weights_sum(checkpoints(run.path)[0])}


def lines_of(run):
    """The history, wall time aside."""
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in run.history]


def weights_sum(checkpoint):
    """One number for the weights and the optimizer's state of a checkpoint."""
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    total = zlib.crc32((checkpoint / "model.safetensors").read_bytes())

    def add(value):
        nonlocal total
        if isinstance(value, torch.Tensor):
            total = zlib.crc32(value.numpy().tobytes(), total)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            total = zlib.crc32(repr(value).encode(), total)

    add(state)
    return total


def judge(row, out, truth, of, hint=None):
    """Go on with the run in `out`. A refusal must be a sentence, and following it (`hint`) must lead to the same end."""
    try:
        found, _ = in_child(run_in, out)
    except (Failed, Died) as error:
        if row.refusal(error, of) and hint:
            hint(out)
            follow(row, out, truth, of)
        return
    row.add("went on" if found == truth else "wrong results", difference(found, truth), of)


def difference(found, truth):
    """Where two results differ, in a few words."""
    return "; ".join(
        f"{key} {str(found.get(key))[:300]} for {str(truth[key])[:300]}"
        for key in truth
        if found.get(key) != truth[key]
    )


# ---- killed, no room


def killed_at_every_instant(truth, at, row):
    """SIGKILL ahead of each operation on a file, in the middle of each write; then the same command."""
    instants = instants_of(run_in, fresh(at))
    for k, instant in enumerate(instants, 1):
        out = fresh(at)
        try:
            at_instant(run_in, out, at=k, how="kill")
            row.add("no sentence", "was not killed", f"instant {k} {instant}")
        except Died:
            judge(row, out, truth, f"instant {k} {instant}")
    return row


def killed_twice(truth, at, row, seed, times):
    """SIGKILL at a drawn instant, and while it goes on from there again."""
    draw, count = random.Random(seed), len(instants_of(run_in, fresh(at)))
    for _ in range(times):
        out, moments = fresh(at), []
        for _ in range(3):
            moments.append(draw.randint(1, count))
            with contextlib.suppress(Died, Failed):
                at_instant(run_in, out, at=moments[-1], how="kill")
        judge(row, out, truth, f"instants {moments}")
    return row


def killed_from_outside(truth, at, row, seed, times):
    """SIGKILL at a drawn time, wherever the process is."""
    draw = random.Random(seed)
    begin = time.monotonic()
    in_child(run_in, fresh(at))
    took = time.monotonic() - begin
    for _ in range(times):
        out, after = fresh(at), draw.uniform(0, took)
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                run_in(out)
            os._exit(0)
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        judge(row, out, truth, f"after {after:.3f} s")
    return row


def full_at_every_instant(truth, at, row):
    """No space from each operation on; one sentence; with room again the same command goes on."""
    instants = instants_of(run_in, fresh(at), needs_room=True)
    for k, instant in enumerate(instants, 1):
        out, of = fresh(at), f"instant {k} {instant}"
        try:
            at_instant(run_in, out, at=k, how="full")
            row.add("no sentence", "nothing was said of the full disk", of)
        except (Failed, Died) as error:
            if row.refusal(error, of):
                follow(row, out, truth, of)
    return row


def follow(row, out, truth, of):
    """After a refusal whose cause is gone: the same command ends in the same numbers."""
    follow_with(row, lambda: run_in(out)[0], truth, of)


def follow_with(row, work, truth, of):
    """After a refusal whose cause is gone `work` gives `truth`; else the refusal is counted as what became of it."""
    try:
        found = in_child(work)
        outcome, said = ("refused", "") if found == truth else ("wrong results", str(found)[:500])
    except (Failed, Died) as error:
        outcome, said = "runs lost", getattr(error, "trace", str(error))
    if outcome != "refused":
        row.counts["refused"] -= 1
        row.add(outcome, said, of)


def limited(work, size, *args):
    """`work` where the system writes no file beyond `size` bytes."""

    def inside():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return work(*args)

    return in_child(inside)


def limits_of_size(truth, at, row, events=False):
    """The kernel's own limit, at sizes around those of the files."""
    sizes = {0, 1, 2, 7, 100, 500, 10**3, 2 * 10**3, 5 * 10**3, 10**4, 2 * 10**4, 5 * 10**4, 10**5}
    for size in sorted(sizes):
        out, of = fresh(at), f"limit of {size} bytes"
        try:
            found = limited(with_events if events else run_in, size, out)[0]
            row.add("went on" if found == truth else "wrong results", "", of)
        except (Failed, Died) as error:
            if row.refusal(error, of):
                follow(row, out, truth, of)
    return row


def with_events(out):
    """`run_in`, with TensorBoard's events."""
    run = train(replace(CONFIG, out=str(out)), None, events=True)
    return numbers(run), []


# ---- damage


def stopped(at, truth):
    """A run that was killed in its last epoch: two checkpoints, no summary."""
    out = fresh(at, "stopped")
    count = [name for name, _ in instants_of(run_in, fresh(at))].count
    instants = instants_of(run_in, fresh(at))
    last = max(k for k, (name, of) in enumerate(instants, 1) if name == "create" and of == "metrics.jsonl")
    with contextlib.suppress(Died):
        at_instant(run_in, out, at=last, how="kill")
    assert count("mkdir") and len(checkpoints(out)) == 2 and not (out / "summary.json").exists()
    return out


def damage_to(path, kept, row, truth, at, seed, most, hint=None):
    """One file of a run: a bit of a byte, cut, zeros, missing; and the run continued."""
    content = (kept / path).read_bytes()
    faults = [("flip", k) for k in places(len(content), seed, most)]
    faults += [("cut", k) for k in places(len(content), seed + 1, most // 4)] + [("zeros", 0), ("missing", 0)]
    for kind, k in faults:
        out = at / "work"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, out)
        if kind == "missing":
            (out / path).unlink()
        else:
            (out / path).write_bytes(damaged(content, kind, k))
        judge(row, out, truth, f"{kind} at byte {k} of {path}", hint)
    return row


def swapped(kept, row, truth, at):
    """Files of one checkpoint in the place of the other's, and lines in another order."""
    new, old = (folder.name for folder in checkpoints(kept))
    pairs = [(f"{new}/{name}", f"{old}/{name}") for name in ("model.safetensors", "state.pt", "manifest.json")]
    pairs += [(new, old)]
    for first, second in pairs:
        for both in (False, True):
            out = at / "work"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(kept, out)
            if both:
                (out / first).rename(out / "aside")
                (out / second).rename(out / first)
                (out / "aside").rename(out / second)
            elif (out / second).is_file():
                shutil.copy(out / second, out / first)
            else:
                shutil.rmtree(out / first)
                shutil.copytree(out / second, out / first)
            judge(row, out, truth, f"{second} in the place of {first}")
    lines = (kept / "metrics.jsonl").read_text().splitlines(keepends=True)
    for other in (lines[::-1], lines[:1] * len(lines), lines + lines, lines[:-1], lines[1:], []):
        out = at / "work"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, out)
        (out / "metrics.jsonl").write_text("".join(other))
        judge(row, out, truth, "other lines in metrics.jsonl")
    return row


def reading(kept, row, truth, at, seed, most):
    """A complete run is read (`Run.read`, its weights): a damaged file gives the same or a sentence."""

    def look(out):
        run = Run.read(out)
        return lines_of(run), run.summary["final"], weights_of(run.load())

    def weights_of(method):
        return zlib.crc32(b"".join(value.numpy().tobytes() for value in method.state_dict().values()))

    expected = in_child(look, kept)
    newest = checkpoints(kept)[0].name
    for path in (
        "config.json",
        "metrics.jsonl",
        "summary.json",
        f"{newest}/manifest.json",
        f"{newest}/model.safetensors",
    ):
        content = (kept / path).read_bytes()
        for k in places(len(content), seed, most):
            (kept / path).write_bytes(damaged(content, "flip", k))
            try:
                found = in_child(look, kept)
                row.add("went on" if found == expected else "wrong results", str(found)[:300], f"byte {k} of {path}")
            except (Failed, Died) as error:
                row.refusal(error, f"byte {k} of {path}")
        (kept / path).write_bytes(content)
    return row


# ---- races


def raced(truth, at, row, seed, times):
    """Two, three or four runs start at once in one directory: one trains, each other says a sentence, and the end is the same."""
    draw = random.Random(seed)
    for number in range(times):
        out, many = fresh(at), 2 + number % 3
        pids, told = [], at / "told"
        shutil.rmtree(told, ignore_errors=True)
        told.mkdir()
        for rank in range(many):
            pid = os.fork()
            if not pid:
                race(out, told / str(rank), draw.uniform(0, 0.02) if rank else 0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        said = [path.read_text() for path in sorted(told.iterdir())]
        finished = sum(text == "done" for text in said)
        others = [text for text in said if text != "done"]
        sentences = all("that nobody trains in; received" in text for text in others)
        if not finished or not sentences:
            row.add("runs lost", f"{said}", f"race {number}")
        else:
            judge(row, out, truth, f"race {number}")
    return row


def race(out, told, wait):
    """One of the racers, a child that never returns."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    time.sleep(wait)
    try:
        run_in(out)
        told.write_text("done")
    except BaseException as error:
        told.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def refuse_all(out):
    """What a person does whom a sentence tells that a file is not as it was written: take it away."""
    for name in ("config.json", "summary.json"):
        (out / name).unlink(missing_ok=True)


def measure(seed, share=1.0):
    """Rows of all kinds; `share` of the drawn injections."""
    many = lambda count: max(2, round(share * count))  # noqa: E731
    with small_runs(), folder() as at:
        run_in(fresh(at))  # what torch imports at the first step is there for all children
        truth, _ = in_child(run_in, fresh(at, "whole"))
        whole = at / "whole"
        yield killed_at_every_instant(truth, at, Row("SIGKILL", "training, at every operation on a file"))
        yield killed_twice(truth, at, Row("SIGKILL three times over", "training, at drawn operations"), seed, many(30))
        yield killed_from_outside(truth, at, Row("SIGKILL", "training, at drawn times"), seed, many(30))
        yield full_at_every_instant(truth, at, Row("no space", "training, from every operation on"))
        yield limits_of_size(truth, at, Row("limit of file size", "training"))
        with_events(fresh(at))
        yield limits_of_size(truth, at, Row("limit of file size", "training, with TensorBoard's events"), events=True)
        kept = stopped(at, truth)
        newest = checkpoints(kept)[0].name
        for name, most in (("model.safetensors", 80), ("state.pt", 80), ("manifest.json", 100)):
            row = Row("damaged", f"a checkpoint's {name}")
            yield damage_to(f"{newest}/{name}", kept, row, truth, at, seed, many(most))
        for name, most in (("config.json", 70), ("metrics.jsonl", 80)):
            yield damage_to(name, kept, Row("damaged", name), truth, at, seed, many(most))
        yield swapped(kept, Row("exchanged", "files of two checkpoints, lines of metrics.jsonl"), truth, at)
        row = damage_to(
            "summary.json", whole, Row("damaged", "summary.json of a complete run"), truth, at, seed, many(60)
        )
        yield row
        yield reading(whole, Row("damaged", "a complete run that is read"), truth, at, seed, many(60))
        yield raced(truth, at, Row("race", "two to four runs in one directory"), seed, many(12))
