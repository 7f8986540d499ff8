"""A fault at one instant of one process, and what became of it.

The parent imports torch and wssl once; each injection is a forked child (tens of milliseconds), so that a kill, a full disk or a poisoned file hurts nobody else.
"""

import builtins
import contextlib
import errno
import gc
import io
import os
import pickle
import random
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

OUTCOMES = ("went on", "refused", "runs lost", "wrong results", "code executed", "no sentence")


class Died(Exception):
    """The child was ended by a signal, or ran out of time."""


class Failed(Exception):
    """The child raised: `kind` is the name of the exception, `text` its message, `trace` where."""

    def __init__(self, kind, text, trace=""):
        super().__init__(f"{kind}: {text}")
        self.kind, self.text, self.trace = kind, text, trace


def in_child(work, *args, seconds=60):
    """What `work(*args)` returned in a forked child. Raises `Failed` with what it raised, `Died` where it was killed."""
    gc.freeze()  # what is there is not looked through, hence not copied, by the child's collector
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _as_child(writing, work, args)
    gc.unfreeze()
    os.close(writing)
    try:
        content = _all_of(reading, time.monotonic() + seconds)
        if content is None:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    if content is None:
        raise Died(f"nothing within {seconds} s")
    if not content:
        raise Died(f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}")
    fine, value = pickle.loads(content)
    if not fine:
        raise Failed(*value)
    return value


def _as_child(writing, work, args):
    """The life of a child: quiet, and without the parent's exit handlers."""
    real = os.write, os._exit
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        try:
            content = pickle.dumps((True, work(*args)))
        except BaseException as error:
            content = pickle.dumps((False, (type(error).__name__, str(error), traceback.format_exc())))
        while content:
            content = content[real[0](writing, content) :]
    finally:
        real[1](0)


def _all_of(handle, end):
    """Everything that comes out of a pipe; None where that takes too long."""
    parts = []
    while (left := end - time.monotonic()) > 0:
        if select.select([handle], [], [], left)[0]:
            part = os.read(handle, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


# ---- instants


class Instants:
    """Every operation that changes a file in this process, counted; at number `at` (from 1) something happens.

    `how` is "count", "kill" (SIGKILL before the operation, in the middle of it for a write) or "full" (from then on everything that needs room is refused).
    """

    NEED_ROOM = ("write", "mkdir", "create", "replace", "rename", "fsync")

    def __init__(self, at=0, how="count", needs_room=False):
        self.at, self.how, self.needs_room, self.seen, self.over = at, how, needs_room, [], False

    def meets(self, name, path="", half=None):
        """Called ahead of an operation; `half` writes half of what a write would."""
        if self.needs_room and name not in self.NEED_ROOM:
            return
        self.seen.append((name, Path(str(path)).name))
        if len(self.seen) == self.at:
            if half:
                half()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.over = self.how == "full"
        if self.over:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def __enter__(self):
        for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "remove", "fsync", "chmod"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        opened, os.open = os.open, self._os_open(os.open)
        self.opened = opened
        io.open = builtins.open = self._open(io.open)
        return self

    def __exit__(self, *_):
        pass  # the child ends with it

    def _wrapped(self, name, real):
        def operation(path, *args, **kwargs):
            self.meets({"remove": "unlink"}.get(name, name), args[0] if name in ("replace", "rename") else path)
            return real(path, *args, **kwargs)

        return operation

    def _os_open(self, real):
        def opening(path, flags, *args, **kwargs):
            if flags & os.O_CREAT:
                self.meets("create", path)
            return real(path, flags, *args, **kwargs)

        return opening

    def _open(self, real):
        def opening(file, mode="r", *args, **kwargs):
            if not set(mode) & set("wax+"):
                return real(file, mode, *args, **kwargs)
            if not isinstance(file, int):
                self.meets("create", file)
            return _Watched(real(file, mode, *args, **kwargs), self, file)

        return opening


class _Watched:
    """A file whose writes are instants."""

    def __init__(self, file, instants, path):
        self.__dict__.update(file=file, instants=instants, path=path)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *args):
        return self.file.__exit__(*args)

    def __iter__(self):
        return iter(self.file)

    def write(self, content):
        def half():
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        self.instants.meets("write", self.path, half)
        return self.file.write(content)


def instants_of(work, *args, needs_room=False):
    """Operations on files that `work` does, in their order."""

    def counted():
        with Instants(needs_room=needs_room) as instants:
            work(*args)
        return instants.seen

    return in_child(counted)


def at_instant(work, *args, at, how):
    """`work` with a fault at its instant number `at`: its result, or `Failed`, or `Died`."""

    def disturbed():
        with Instants(at, how, needs_room=how == "full"):
            return work(*args)

    return in_child(disturbed)


# ---- damage


def damaged(content, kind, at=0):
    """`content` with one fault: a bit flipped in byte `at` (negative: from the end), cut at byte `at`, or all zeros."""
    at = at % len(content) if kind == "flip" else at
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << (at % 8))]) + content[at + 1 :]
    return content[:at] if kind == "cut" else bytes(len(content))


def places(size, seed, most, ends=64):
    """Bytes of a file to damage: all of a small one; of a large one both ends and drawn ones."""
    if size <= most:
        return list(range(size))
    draw = random.Random(seed)
    ends = min(ends, most // 4)
    return sorted({*range(ends), *range(size - ends, size), *draw.sample(range(size), most - 2 * ends)})


# ---- what came of it


class Row:
    """A kind of fault: how many were injected, what became of them, and a sentence that somebody read."""

    def __init__(self, fault, where):
        self.fault, self.where, self.counts, self.example, self.trouble = fault, where, Counter(), "", []

    def add(self, outcome, said="", of=""):
        """One injection; what failed is shown at once, with the instant or byte that it was."""
        self.counts[outcome] += 1
        if outcome == "refused" and not self.example:
            self.example = said
        if outcome not in ("went on", "refused"):
            self.trouble.append(
                f"{outcome}: {self.fault} in {self.where}, {of}: {' | '.join(said.strip().splitlines()[-5:])}"
            )
            if len(self.trouble) <= 5:
                print(f"    {self.trouble[-1][:900]}", flush=True)

    def refusal(self, said, of="", kinds=("InputError", "TrainingError")):
        """An exception that somebody would see: refused where it is one sentence of ours."""
        fine = isinstance(said, Failed) and said.kind in kinds and is_sentence(said.text)
        self.add("refused" if fine else "no sentence", said.text if fine else getattr(said, "trace", str(said)), of)
        return fine

    def done(self):
        """The row as it is recorded."""
        words = " ".join(self.example.split())
        row = {"fault": self.fault, "where": self.where, "injected": sum(self.counts.values())}
        return row | {name: self.counts[name] for name in OUTCOMES} | {"a sentence": without_places(words)[:300]}


def is_sentence(text):
    """Whether a message is one line that says what was expected and what came, or where a training stopped."""
    told = text.startswith("expected ") and "; received " in text
    return "\n" not in text.strip() and (told or text.startswith("training stopped "))


def without_places(text):
    """A message without this machine's folders."""
    return re.sub(r"\S*/torture-[^/\s]+/", "", text).replace(str(Path.home()), "~")


@contextlib.contextmanager
def folder():
    """A place for one injection."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a thousand checkpoints, flushed to a disk, are minutes
    with tempfile.TemporaryDirectory(prefix="torture-", dir=memory, ignore_cleanup_errors=True) as at:
        yield Path(at)


def fresh(at, name="work"):
    """An empty folder of that name, whatever was there."""
    import shutil

    place = at / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place
