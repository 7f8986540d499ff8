"""The runner: what it keeps, what it repeats, and how it tells of a failure."""

import json
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from tests.checkout import ROOT, make_checkout, notebook
from wssl.companion.cli import main
from wssl.companion.records import RESULT
from wssl.companion.runner import declared, execute, keys, plan, run_all, warnings_in
from wssl.companion.stored import compact_png, stale_outputs, store_outputs

SHOW = f"""
from IPython.display import display
display({{"{RESULT}": {{"name": "axioms", "caption": "", "columns": ["a", "b"], "rows": [[1, "x,y"]]}}, "text/plain": "table"}}, raw=True)
"""


def rewrite(path, source):
    nb = nbformat.read(path, 4)
    nb.cells[-1].source = source
    nbformat.write(nb, path)


def to_run(root, **options):
    return plan(root, root / "runs/companion", **options)[1]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A checkout that has been run once: one notebook shows a table, one fails in its third cell, one warns, one takes a parameter."
    root = make_checkout(
        tmp_path_factory.mktemp("checkout"),
        **{
            "1_a__shows": notebook("1 + 1", SHOW),
            "1_a__fails": notebook("n = 0", "# a remark\nshare = 1 / n", "never = 1", parameters="quick = True"),
            "2_b__warns": notebook("import warnings\nwarnings.warn('careful', RuntimeWarning)"),
            "2_b__takes": notebook(
                "#| eval: false\nraise SystemError",
                "import os\nassert os.environ.get('MPLBACKEND') != 'Agg'\nquick",
                parameters="quick = True\nn = 3",
            ),
        },
    )
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")  # a backend named outside must not reach the kernels
        outcomes = run_all(root, workers=2, say=lines.append)
    return root, {outcome["notebook"]: outcome for outcome in outcomes}, lines


def test_a_failure_is_named_and_the_rest_goes_on(done):
    _, outcomes, lines = done
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == {
        "1_a/fails.ipynb": "failed",
        "1_a/shows.ipynb": "ok",
        "2_b/takes.ipynb": "ok",
        "2_b/warns.ipynb": "ok",
    }
    (line,) = [line for line in lines if "FAILED" in line]
    assert "1_a/fails" in line and "cell 3 of 4 (share = 1 / n): ZeroDivisionError: division by zero" in line
    assert all(re.match(r"\[\d/4\] ", line) for line in lines) and len(lines) == 4


def test_a_warning_is_seen(done):
    assert "RuntimeWarning: careful" in done[1]["2_b/warns.ipynb"]["warnings"][0]


def test_the_second_run_keeps_what_succeeded(done):
    assert to_run(done[0]) == ["1_a/fails.ipynb"]
    assert len(to_run(done[0], fresh=True)) == 4


def test_full_mode_repeats_what_reads_quick(done):
    assert set(to_run(done[0], full=True)) == {"1_a/fails.ipynb", "2_b/takes.ipynb"}


@pytest.mark.parametrize(("file", "text"), [
    ("wssl/metrics.py", "x = 1"), ("requirements.lock", "numpy==2.1\n"), ("data/published/claims.csv", "id\n"), ("data/published/new.csv", "a\n"),
])  # fmt: skip
def test_code_lock_and_published_data_count(done, file, text):
    root = done[0]
    path = root / file
    before = path.read_bytes() if path.exists() else None
    path.write_text(text)
    try:
        assert len(to_run(root)) == 4
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    assert len(to_run(root)) == 1


def test_a_record_counts_for_those_who_read_records(tmp_path):
    root = make_checkout(
        tmp_path, **{"1_a__plain": notebook("1"), "1_a__reads": notebook("from wssl.companion import read_claims")}
    )
    names = ["1_a/plain.ipynb", "1_a/reads.ipynb"]
    before = keys(root, names, dict.fromkeys(names, {}))
    (root / "data/measured/claims").mkdir()
    (root / "data/measured/claims/W2-06.json").write_text("{}")
    after = keys(root, names, dict.fromkeys(names, {}))
    assert [before[name] == after[name] for name in names] == [True, False]


def test_changed_sources_and_torn_state_are_repeated(done):
    root = done[0]
    path, outcome = root / "nbs/1_a/shows.ipynb", root / "runs/companion/outcomes/2_b/takes.json"
    kept = path.read_text(), outcome.read_text()
    rewrite(path, "2 + 2")
    outcome.write_text("{torn")
    try:
        assert set(to_run(root)) == {"1_a/fails.ipynb", "1_a/shows.ipynb", "2_b/takes.ipynb"}
    finally:
        path.write_text(kept[0]), outcome.write_text(kept[1])


def test_outputs_in_the_source_do_not_count(done):
    root = done[0]
    path = root / "nbs/1_a/shows.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(nb, path)
    assert to_run(root) == ["1_a/fails.ipynb"]


def test_the_command_repeats_the_failure_and_exits_with_1(done, capsys):
    root = done[0]
    assert main(["companion", "--project", str(root), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("kept") == 3 and "1 of 4 notebooks failed: 1_a/fails.ipynb." in out and "slowest:" in out
    index = (root / "runs/companion/index.html").read_text()
    assert "1 failed" in index and "ZeroDivisionError: division by zero" in index and "1 with warnings" in index
    assert (root / "runs/companion/tables/axioms.csv").read_text() == 'a,b\n1,"x,y"\n'
    page = (root / "runs/companion/pages/1_a/fails.html").read_text()
    assert "ZeroDivisionError" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', index + page), "the folder asks the network for something"


def test_links_of_the_report_lead_somewhere(done):
    out = done[0] / "runs/companion"
    main(["companion", "--project", str(done[0]), "--only", "shows"])
    for page in (out / "index.html", *out.glob("pages/**/*.html")):
        for link in re.findall(r'(?:src|href)="([^"#]+)"', page.read_text()):
            if not link.startswith("data:"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_an_undeclared_parameter_fails_before_anything_runs(done, tmp_path):
    outcome = execute(done[0] / "nbs/1_a/shows.ipynb", tmp_path / "x.ipynb", {"quick": True}, root=done[0])
    assert (
        outcome["status"] == "failed" and "received quick" in outcome["message"] and not (tmp_path / "x.ipynb").exists()
    )


def test_parameters_arrive(done, tmp_path):
    outcome = execute(done[0] / "nbs/2_b/takes.ipynb", tmp_path / "x.ipynb", {"quick": False}, root=done[0])
    assert outcome["status"] == "ok"
    assert nbformat.read(tmp_path / "x.ipynb", 4).cells[-1].outputs[0].data["text/plain"] == "False"


def test_a_dead_kernel_and_a_slow_cell_are_failures_of_their_notebook(tmp_path):
    root = make_checkout(
        tmp_path,
        **{"1_a__dies": notebook("import os\nos._exit(9)"), "1_a__sleeps": notebook("import time\ntime.sleep(60)")},
    )
    died = execute(root / "nbs/1_a/dies.ipynb", tmp_path / "out/dies.ipynb", root=root)
    slow = execute(root / "nbs/1_a/sleeps.ipynb", tmp_path / "out/sleeps.ipynb", root=root, timeout=2)
    assert died["status"] == "failed" and "Dead" in died["message"]
    assert slow["status"] == "failed" and "Timeout" in slow["message"] and slow["seconds"] < 30


def test_declared_reads_only_the_tagged_cell():
    assert declared(notebook("epochs = 3", parameters="quick = True  # seconds\nn: int = 4")) == ["quick", "n"]
    assert warnings_in(notebook("x")) == []


def test_outputs_are_stored_and_told_from_stale_ones(done):
    root = done[0]
    before = {path: [cell.id for cell in nbformat.read(path, 4).cells] for path in (root / "nbs").rglob("*.ipynb")}
    written = store_outputs(root, root / "runs/companion", [outcome for outcome in done[1].values()])
    assert sorted(written) == ["1_a/shows.ipynb", "2_b/takes.ipynb", "2_b/warns.ipynb"], (
        "a failed notebook has nothing to store"
    )
    assert stale_outputs(root) == {}
    assert {path: [cell.id for cell in nbformat.read(path, 4).cells] for path in before} == before
    nb = nbformat.read(root / "nbs/1_a/shows.ipynb", 4)
    assert nb.cells[0].outputs[0].data["text/plain"] == "2" and nb.cells[0].execution_count is None
    assert RESULT not in json.dumps(nb) or RESULT not in json.dumps([cell.get("outputs") for cell in nb.cells])
    assert nbformat.read(root / "nbs/2_b/warns.ipynb", 4).cells[0].outputs == []
    assert to_run(root) == ["1_a/fails.ipynb"], "storing outputs must not repeat notebooks"
    rewrite(root / "nbs/1_a/shows.ipynb", "3 + 3")
    assert list(stale_outputs(root)) == ["1_a/shows.ipynb"]


def test_figures_lose_bytes_and_not_their_look():
    import base64
    import io

    import matplotlib.pyplot as plt
    import numpy as np
    from PIL import Image

    fig, ax = plt.subplots(figsize=(3, 2), dpi=90)
    ax.plot(np.sin(np.arange(50)))
    file = io.BytesIO()
    fig.savefig(file, format="png")
    plt.close(fig)
    data = base64.b64encode(file.getvalue()).decode()
    small = compact_png(data)
    a, b = [np.asarray(Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB")).astype(int) for x in (data, small)]
    assert len(small) < 0.8 * len(data) and abs(a - b).max() <= 40 and abs(a - b).mean() < 0.5


def test_grid_lines_of_a_stored_figure_stay_grey():
    "A figure with more colours than a palette holds: its grid lines are the neutral grey of the theme, and no grey is tinted."
    import base64
    import io

    import matplotlib.pyplot as plt
    import numpy as np
    from PIL import Image

    from wssl.core.theme import PALETTE, figure

    fig, ax = figure(width=8, height=4)
    for number, shade in enumerate(PALETTE):
        wave = np.sin(np.arange(30) / 3 + number)
        ax.fill_between(range(30), wave - 0.2, wave + 0.2, color=shade, alpha=0.15)
        ax.plot(wave, color=shade)
    file = io.BytesIO()
    fig.savefig(file, format="png")
    plt.close(fig)
    a = np.asarray(Image.open(file).convert("RGB")).astype(int)
    small = compact_png(base64.b64encode(file.getvalue()).decode())
    picture = Image.open(io.BytesIO(base64.b64decode(small)))
    b = np.asarray(picture.convert("RGB")).astype(int)
    grid, grey = (a == 204).all(-1), (a == a[..., :1]).all(-1)
    assert picture.mode == "P" and grid.sum() > 1000
    assert (b[grid] == 204).all() and (b[grey] == b[grey][:, :1]).all()
    assert abs(a - b).max() <= 40 and abs(a - b).mean() < 2


def test_every_notebook_of_the_project_is_found():
    from wssl.companion.runner import find_notebooks

    tracked = {
        str(path.relative_to(ROOT / "nbs"))
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert set(find_notebooks(ROOT)) == tracked


def test_a_run_of_one_keeps_the_others_on_the_index(tmp_path, capsys):
    names = ("0_core__one", "0_core__two", "1_theory__three")
    root = make_checkout(tmp_path, **{name: notebook("1") for name in names})
    assert main(["companion", "--project", str(root), "--workers", "1"]) == 0
    index = root / "runs/companion/index.html"
    before = set(re.findall(r'href="(pages/[^"]+)"', index.read_text()))
    assert len(before) == 3
    (root / "nbs/1_theory/three.ipynb").unlink()
    assert main(["companion", "--project", str(root), "--workers", "1", "--only", "one"]) == 0
    after = set(re.findall(r'href="(pages/[^"]+)"', index.read_text()))
    assert after == {page for page in before if "three" not in page}
    assert all((index.parent / page).exists() for page in after)
    assert "All 1 notebooks ran." in capsys.readouterr().out


def test_nothing_is_left_of_a_companion_that_was_killed(tmp_path):
    "Worker and kernel of a run whose process was ended are gone a few seconds later."
    source = f"import os, time\nopen({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')\ntime.sleep(120)"
    root = make_checkout(tmp_path / "checkout", **{"1_a__long": notebook(source)})
    command = [sys.executable, "-m", "wssl", "companion", "--project", str(root), "--workers", "1"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 2:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
    assert all(map(alive, pids)) and pids[1] != run.pid
    run.terminate()
    assert run.wait(20) == -signal.SIGTERM
    deadline = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.2)


def alive(pid):
    "Is there a process of this id that has not ended (a zombie has)?"
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
