"""Generated situations with a known truth: the verdict may say 'too few rows', never the opposite of the truth."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wssl.metrics.diagnosis import diagnose
from wssl.metrics.wasserstein import uniformity_floor
from wssl.theory.sphere import uniformity_of_sphere


def rows(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def rotated(z, seed=9):
    return z @ torch.linalg.qr(rows(z.shape[1], z.shape[1], seed))[0]


def alive(n, m, r, seed=0, leak=0.0):
    return rotated(torch.cat([rows(n, r, seed), leak * rows(n, m - r, seed + 1)], 1))


def clusters(n, m, k, spread):
    return torch.nn.functional.normalize(rows(k, m), dim=1)[torch.arange(n) % k] + spread * rows(n, m, 1)


SITUATIONS = {
    "uniform, many rows": (lambda: rows(3000, 64), "healthy", 64),
    "uniform, n = m": (lambda: rows(256, 256), "healthy", 256),
    "uniform, n = m / 2": (lambda: rows(128, 256), "healthy", None),
    "uniform, n = m / 8": (lambda: rows(64, 512), "too few rows", None),
    "uniform, 20 rows": (lambda: rows(20, 4), "too few rows", None),
    "mildly uneven": (lambda: rows(2000, 128) * torch.arange(1, 129) ** -0.15, "healthy", None),
    "half of the dimensions": (lambda: alive(2000, 128, 64), "dimensional collapse", 64),
    "half, n = m": (lambda: alive(128, 128, 64), "dimensional collapse", 64),
    "half, n = m / 2": (lambda: alive(128, 256, 128), "too few rows", None),
    "few dimensions, n = m / 4": (lambda: alive(64, 256, 16), "dimensional collapse", 16),
    "half, n = m / 16": (lambda: alive(64, 1024, 512), "too few rows", None),
    "one dimension of 128 dead": (lambda: alive(2000, 128, 127), "healthy", 127),
    "a leaky half": (lambda: alive(2000, 128, 64, leak=0.05), "dimensional collapse", None),
    "steep spectrum": (lambda: rows(2000, 128) / torch.arange(1, 129), "anisotropic", None),
    "ten clusters": (lambda: clusters(2000, 128, 10, 0.02), "cluster collapse", None),
    "common direction": (lambda: rows(2000, 64) + 0.6, "anisotropic", None),
    "a line": (lambda: rows(500, 1) @ rows(1, 32), "dimensional collapse", 1),
    "half of the rows zero": (lambda: torch.cat([rows(1000, 32), torch.zeros(1000, 32)]), "cluster collapse", None),
    "each row eight times": (lambda: rows(128, 128).repeat(8, 1), "healthy", None),
    "each row 100 times, of 10": (lambda: rows(10, 64).repeat(100, 1), "too few rows", None),
    "equal rows": (lambda: torch.ones(100, 16), "constant collapse", 0),
    "equal rows, five of them": (lambda: torch.ones(5, 16), "constant collapse", 0),
    "nearly equal rows": (lambda: 1 + 1e-3 * rows(500, 64), "constant collapse", 0),
    "zero rows": (lambda: torch.zeros(100, 16), "constant collapse", 0),
    "bfloat16": (lambda: rows(1000, 32).bfloat16(), "healthy", 32),
    "one dimension": (lambda: rows(100, 1), "healthy", 1),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name):
    make, status, dimensions = SITUATIONS[name]
    found = diagnose(make())
    assert found.status == status, found.sentence
    assert found.sentence.startswith("too few rows to tell" if status == "too few rows" else status)
    k = found.values["effective dimensions"][0]
    if dimensions is not None:
        assert abs(k - dimensions) <= max(0.05 * dimensions, 0.02 * found.values["dimensions"][0]), found.sentence
    if status == "too few rows":
        assert k is None


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 400), st.sampled_from([8, 32, 100]), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 2**16))
def test_never_the_opposite_of_the_truth(n, m, share, seed):
    status = diagnose(alive(n, m, round(share * m), seed)).status
    assert status in ({"healthy", "too few rows"} if share == 1 else {"dimensional collapse", "too few rows"})


def test_references_stand_beside_the_numbers():
    found = diagnose(rows(500, 32))
    assert found.values["W2"][1] == pytest.approx(uniformity_floor(500, 32))
    assert found.values["L_U"][1] == pytest.approx(uniformity_of_sphere(32))
    assert found.values["std"][1] == pytest.approx(32**-0.5)
    assert abs(found.values["z-score"][0]) < 4
    assert found.values["W2 corrected"][0] < 0.4 * found.values["W2"][0]
    assert (
        list(found.table.columns) == ["value", "low", "high", "reference", "range", "meaning"]
        and "RankMe" in found.table.index
    )
    assert diagnose(rows(40, 32)).values["W2 corrected"][0] is None


def test_second_view_and_labels():
    z, labels = clusters(300, 16, 3, 0.01), torch.arange(300) % 3
    found = diagnose(z, z + 0.01 * rows(300, 16, 5), labels)
    assert 0 < found.values["alignment"][0] < 0.01
    assert found.values["class share"][0] > 0.97
    assert diagnose(z, labels=labels.roll(100)).values["class share"][0] > 0.97
    assert diagnose(rows(300, 16), labels=labels).values["class share"][0] < 0.05
    assert "alignment" not in diagnose(z).values


def test_many_rows_use_a_subsample_for_pairs_and_say_so():
    z = rows(12_000, 6)
    found = diagnose(z, labels=torch.zeros(12_000, dtype=torch.int64))
    assert any("10,000 of 12,000" in note for note in found.notes)
    assert found.values["rows"][0] == 12_000
    assert found.to_dict() == diagnose(z, labels=torch.zeros(12_000, dtype=torch.int64)).to_dict()


@pytest.mark.parametrize("name", ["uniform, many rows", "uniform, 20 rows", "zero rows", "a line", "one dimension"])
def test_every_form_of_the_report(name):
    found = diagnose(SITUATIONS[name][0]())
    assert found.sentence == str(found).splitlines()[0]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["status"] == found.status
    assert "nan" not in str(found)
    page = found.to_html()
    assert found.sentence in page and "data:image/png;base64," in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page) and "</body></html>" in page
    assert float(found.cosines.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: diagnose(torch.zeros(1, 4)),
        lambda: diagnose(torch.zeros(8)),
        lambda: diagnose(torch.full((8, 4), float("nan"))),
        lambda: diagnose(rows(8, 4), rows(9, 4)),
        lambda: diagnose(rows(8, 4), labels=torch.zeros(7, dtype=torch.int64)),
        lambda: diagnose(rows(8, 4), labels=torch.zeros(8)),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises(ValueError, match="^expected .*; received "):
        call()


def test_notes_may_hold_names_from_files_and_are_shown_as_text():
    found = replace(diagnose(torch.randn(50, 4, generator=torch.Generator().manual_seed(0))), notes=("<b>column</b>",))
    assert "&lt;b&gt;column&lt;/b&gt;" in found._repr_html_() and "<b>column" not in found._repr_html_()


def test_old_paths_can_be_imported_and_warn():
    import wssl.metrics.pictures  # noqa: F401

    from wssl.metrics import plots, report, torchmetrics_classes

    with pytest.warns(DeprecationWarning, match="wssl.metrics.pictures is now wssl.metrics.plots"):
        from wssl.metrics.pictures import png
    with pytest.warns(DeprecationWarning, match="wssl.metrics.stateful is now wssl.metrics.torchmetrics_classes"):
        from wssl.metrics.stateful import RankMe
    with pytest.warns(DeprecationWarning, match="Number is now wssl.metrics.report.Estimate"):
        from wssl.metrics.diagnosis import Number
    assert (png, RankMe, Number) == (plots.png, torchmetrics_classes.RankMe, report.Estimate)
    with pytest.raises(ImportError):
        from wssl.metrics.diagnosis import nothing  # noqa: F401


def test_rows_are_checked_and_drawn_once(monkeypatch):
    "What looks at the embeddings themselves: shape and type once, a draw of each size once."
    import sys

    from wssl.core import checks
    from wssl.metrics import pairs

    seen = []

    def counted(function, *keys):
        def call(*args, **options):
            seen.append((function.__name__, *(args[key] for key in keys if key < len(args))))
            return function(*args, **options)

        return call

    wanted = {name: counted(getattr(checks, name)) for name in ("as_embeddings", "check_finite", "as_views")}
    wanted["sample_rows"] = counted(pairs.sample_rows, 0, 1)
    originals = {name: getattr(pairs if name == "sample_rows" else checks, name) for name in wanted}
    for module in [value for key, value in sys.modules.items() if key.startswith("wssl.")]:
        for name, original in originals.items():
            if vars(module).get(name) is original:
                monkeypatch.setattr(module, name, wanted[name])
    diagnose(torch.randn(600, 16, generator=torch.Generator().manual_seed(0)), labels=torch.arange(600) % 3)
    assert [one[0] for one in seen].count("as_embeddings") == 1
    assert not {"check_finite", "as_views"} & {one[0] for one in seen}
    drawn = [one for one in seen if one[:2] == ("sample_rows", 600)]
    assert sorted(drawn) == sorted({*drawn}) and len(drawn) == 3


def test_no_private_name_crosses_a_file_of_the_chapter():
    import ast

    import wssl.metrics

    for path in Path(wssl.metrics.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not [one.name for one in node.names if one.name.startswith("_")], path.name
