"""The companion, interrupted: what was started is gone a few seconds later, no notebook of the tree is half one, and the next run is complete."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import nbformat

from tests.checkout import ROOT, make_checkout, notebook
from tests.torture.faults_inject import (
    Died,
    Failed,
    Row,
    at_instant,
    damaged,
    folder,
    in_child,
    instants_of,
    places,
)
from tests.torture.faults_training import follow_with
from wssl.companion.records import read_claims, write_claim
from wssl.companion.report import write_report
from wssl.companion.runner import kept_outcome
from wssl.companion.stored import store_outputs

MARK = "WSSL_TORTURE"  # in the environment of everything that a run starts


def checkout(at):
    """A checkout of two notebooks, each a second of work."""
    source = "import time\ntime.sleep(0.4)\n{}"
    first, second = (notebook(source.format(6 * k), "[k**2 for k in range(9)]") for k in (1, 2))
    return make_checkout(at, **{"1_a__first": first, "2_b__second": second})


def command(root, *words, mark="none"):
    """`wssl companion` in its own session, so that a signal can reach it as Ctrl-C would."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), MARK: mark}
    line = [
        sys.executable,
        "-m",
        "wssl",
        "companion",
        "--project",
        str(root),
        "--workers",
        "2",
        "--store-outputs",
        *words,
    ]
    return subprocess.Popen(
        line, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def alive(mark):
    """Processes that carry the mark and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                if (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(path.name))
    return found


def result(root):
    """What a complete run leaves, times aside: the notebooks of the tree, and what their executed copies show."""
    tree = {path.name: path.read_bytes() for path in sorted((root / "nbs").rglob("*.ipynb"))}
    shown = {}
    for path in sorted((root / "runs/companion/executed").rglob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        shown[path.name] = [[dict(output.get("data", {})) for output in cell.get("outputs", [])] for cell in cells]
    statuses = [
        json.loads(path.read_text())["status"] for path in sorted((root / "runs/companion/outcomes").rglob("*.json"))
    ]
    return tree, shown, statuses, (root / "runs/companion/index.html").is_file()


def whole_or_as_before(root, before, after):
    """Whether every notebook of the tree is the one from before or the one with its outputs."""
    return all(path.read_bytes() in (before[path.name], after[path.name]) for path in (root / "nbs").rglob("*.ipynb"))


def interrupted(at, row, seed, times):
    """SIGINT, SIGTERM or SIGKILL at a drawn time; then who is left, what the tree holds, and the same command again."""
    draw, template = random.Random(seed), checkout(at / "template")
    before = {path.name: path.read_bytes() for path in (template / "nbs").rglob("*.ipynb")}
    whole = at / "whole"
    shutil.copytree(template, whole)
    begin = time.monotonic()
    first = command(whole)
    first.communicate(timeout=120)
    took, truth = time.monotonic() - begin, result(whole)
    assert first.returncode == 0 and truth[2:] == (["ok", "ok"], True)
    for number in range(times):
        root, mark = at / "checkout", uuid.uuid4().hex
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole if number % 4 == 3 else template, root)  # every fourth repeats what is there
        words = ["--fresh"] if number % 4 == 3 else []
        how, after = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[number % 3], draw.uniform(0, took)
        of, process = f"{how.name} after {after:.2f} s {words}", command(root, *words, mark=mark)
        time.sleep(after)
        group = how == signal.SIGINT and number % 2
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how) if group else process.send_signal(how)
        begin = time.monotonic()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            row.add("no sentence", "did not end within 20 s", of)
            continue
        while alive(mark) and time.monotonic() < begin + 20:
            time.sleep(0.1)
        if left := alive(mark):
            row.add("wrong results", f"still there: {left}", of)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            continue
        if not whole_or_as_before(root, before, truth[0]):
            row.add("wrong results", "a notebook of the tree is neither the old nor the new one", of)
            continue
        row.add(*finished(root, truth), of)
    return row


def finished(root, truth):
    """The command once more, and whether it ends as the undisturbed one."""
    process = command(root)
    said = process.communicate(timeout=120)[0]
    if process.returncode:
        return "runs lost", said[-600:]
    pairs = zip(("tree", "executed copies", "outcomes", "page"), result(root), truth, strict=True)
    other = [f"{name}: {str(found)[:300]} for {str(wanted)[:300]}" for name, found, wanted in pairs if found != wanted]
    return ("wrong results", "; ".join(other)) if other else ("went on", "")


def limited_in_size(at, row):
    """The kernel's limit of file size: one sentence, exit 1, and with room the same command goes on."""
    template, whole = at / "template", at / "whole"
    truth = result(whole)
    for size in (0, 1500, 20_000):
        root = at / "checkout"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "wssl", "companion", "--project", str(root), "--workers", "1", "--store-outputs"]
        done = subprocess.run(
            line,
            cwd=root,
            env=env,
            capture_output=True,
            text=True,
            timeout=180,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),  # noqa: B023
        )
        said = done.stderr.strip()
        torn = "Traceback" in said or done.returncode not in (0, 1, 2)
        if torn:
            row.add("no sentence", said[-900:], f"limit of {size} bytes, exit {done.returncode}")
            continue
        outcome, more = finished(root, truth)
        row.add(
            "refused" if outcome == "went on" else outcome,
            more or said.removeprefix("wssl: "),
            f"limit of {size} bytes",
        )
    return row


def two_at_once(at, row, times):
    """Two commands on one output folder: one works, the other says a sentence, or comes later."""
    template, truth = at / "template", result(at / "whole")
    for number in range(times):
        root = at / "checkout"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        both = [command(root) for _ in range(2)]
        said = [(process.communicate(timeout=180)[0], process.returncode) for process in both]
        refused = [text for text, code in said if code == 2]
        fine = all(
            text.startswith("wssl: expected a folder of the companion that nobody works in; received")
            for text in refused
        )
        codes = sorted(code for _, code in said)
        if not fine or codes not in ([0, 0], [0, 2]):
            row.add("no sentence", str(said)[-900:], f"race {number}")
        else:
            row.add(
                "refused"
                if refused and result(root) == truth
                else "went on"
                if result(root) == truth
                else "wrong results",
                (refused or [""])[0].removeprefix("wssl: "),
                f"race {number}",
            )
    return row


def at_every_instant(at, row, how):
    """Storing outputs and writing the report, killed or without room at every operation on a file."""
    template, whole = at / "template", at / "whole"
    before = {path.name: path.read_bytes() for path in (template / "nbs").rglob("*.ipynb")}
    truth = result(whole)
    outcomes = [json.loads(path.read_text()) for path in sorted((whole / "runs/companion/outcomes").rglob("*.json"))]

    def work(root):
        store_outputs(root, root / "runs/companion", outcomes)
        write_report(root, root / "runs/companion", outcomes)

    def start():
        root = at / "checkout"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        shutil.copytree(whole / "runs", root / "runs")
        return root

    work(start())  # what it imports is there for all children
    instants = instants_of(work, start(), needs_room=how == "full")
    for k, instant in enumerate(instants, 1):
        root, of = start(), f"{how} at instant {k} {instant}"
        try:
            at_instant(work, root, at=k, how=how)
            said = None
        except (Failed, Died) as error:
            said = error
        if not whole_or_as_before(root, before, truth[0]):
            row.add("wrong results", "a notebook of the tree is neither the old nor the new one", of)
            continue
        if how == "full" and not (isinstance(said, Failed) and "No space left" in said.text):
            row.add("no sentence", str(said), of)
            continue
        row.add(
            "refused" if how == "full" else "went on",
            "the command: stopped: no room; with room the same command continues",
            of,
        )
        follow_with(row, lambda: (work(root), result(root))[1], truth, of) if how == "full" else None  # noqa: B023
        if how == "kill" and in_child(lambda: (work(root), result(root))[1]) != truth:  # noqa: B023
            row.add("wrong results", "another end", of)
    return row


def damaged_outcomes(at, row, seed, most):
    """A changed byte in a kept outcome or its executed copy's absence: kept where it still says the same, else repeated."""
    whole = at / "whole" / "runs/companion"
    path = whole / "outcomes/1_a/first.json"
    content = path.read_bytes()
    key = json.loads(content)["key"]
    for k in places(len(content), seed, most):
        path.write_bytes(damaged(content, "flip", k))
        found = kept_outcome(whole, "1_a/first.ipynb", key)
        fine = found is None or (found["status"], found["key"]) == ("ok", key)
        row.add("went on" if fine else "wrong results", str(found), f"byte {k} of an outcome")
        path.write_bytes(damaged(content, "cut", k))
        row.add("wrong results" if kept_outcome(whole, "1_a/first.ipynb", key) else "went on", "", f"cut at {k}")
    path.write_bytes(content)
    return row


def records(at, row):
    """A claim's record, written while the process is killed or the disk fills: the old one, the new one, or none."""
    root = make_checkout(at / "records")
    place = root / "data/measured/claims/W2-06.json"

    def work(value):
        write_claim("W2-06", "reproduced", {"error": value}, "exact", "1_a/first.ipynb", root=root)

    def value_of():
        ledger = read_claims(root)
        return ledger.loc[ledger.id == "W2-06", "figures"].tolist()[0]

    read_claims(root)  # what it imports is there for all children
    for there in (False, True):
        for how in ("kill", "full"):
            place.unlink(missing_ok=True)
            work(1) if there else None
            count = len(instants_of(work, 2, needs_room=how == "full"))
            for k in range(1, count + 1):
                place.unlink(missing_ok=True)
                work(1) if there else None
                with contextlib.suppress(Died, Failed):
                    at_instant(work, 2, at=k, how=how)
                found = json.loads(place.read_text())["figures"] if place.exists() else None
                fine = found in ({"error": 2}, {"error": 1} if there else None)
                row.add("went on" if fine else "wrong results", str(found), f"{how} at instant {k}")
    work(1)
    content = place.read_bytes()
    for k in range(len(content)):
        place.write_bytes(content[:k])
        try:
            row.add("went on" if in_child(value_of) == {"error": 1} else "wrong results", "", f"cut at {k}")
        except (Failed, Died) as error:
            row.refusal(error, f"cut at {k}")
    return row


def measure(seed, share=1.0):
    """Rows of all kinds; `share` of the drawn injections."""
    many = lambda count: max(2, round(share * count))  # noqa: E731
    with folder() as at:
        yield interrupted(at, Row("SIGINT, SIGTERM, SIGKILL", "the companion, at drawn times"), seed, many(9))
        yield at_every_instant(
            at, Row("SIGKILL", "storing outputs and the report, at every operation on a file"), "kill"
        )
        yield at_every_instant(at, Row("no space", "storing outputs and the report, from every operation on"), "full")
        yield limited_in_size(at, Row("limit of file size", "the companion"))
        yield two_at_once(at, Row("race", "two companions on one folder"), many(3))
        yield damaged_outcomes(at, Row("damaged", "a kept outcome of the companion"), seed, many(200))
        yield records(at, Row("SIGKILL, no space, cut", "records of claims"))
