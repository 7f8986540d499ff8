"""The site: every link leads somewhere, every public name has its entry, and a small site builds without a warning."""

import ast
import re
import shutil

import nbformat
import pytest

from tests.checkout import ROOT
from wssl.companion.ledger import beside_published
from wssl.companion.records import read_claims
from wssl.companion.reference import as_markdown, entries, public_names, reading_order
from wssl.companion.site import (
    broken_links,
    build_site,
    check_pages,
    claims_page,
    linked,
    modules,
    package_page,
    site_link,
    tables_page,
    titles,
    write_sources,
)
from wssl.core.checks import InputError

# myst-parser 5 uses names that Sphinx 11 will drop
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def contents():
    return titles(ROOT)


@pytest.fixture(scope="module")
def sources():
    return modules(ROOT)


def test_relative_links_of_notebooks_lead_somewhere():
    assert broken_links(ROOT) == {}


def test_a_broken_link_is_found(checkout):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Bad\n[x](../4_losses/gone.ipynb#part), [folder](../3_balance/)")]
    )
    nbformat.write(nb, checkout / "nbs/3_balance/bad.ipynb")
    assert broken_links(checkout)["3_balance/bad.ipynb"] == ["../4_losses/gone.ipynb", "../3_balance/"]


def test_every_public_name_has_an_entry(sources):
    "`ast` alone says what is public; the page must have a directive for each."
    for module, source in sources.items():
        page = "\n".join(entries(source).values())
        titles = set(re.findall(r"^:{3,4}\{py:(?:function|class|data)\} (\w+)", page, re.M))
        assert titles == set(public_names(source)), module
    exporting = {
        re.search(r"^#\| default_exp (\S+)", cell.source)[1]
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
        for cell in nbformat.read(path, 4).cells
        if cell.source.startswith("#| default_exp")
    }
    assert {f"wssl.{name}" for name in exporting} == set(sources)


def test_every_reexported_name_is_on_its_package_page(sources):
    for package in {name.rpartition(".")[0] for name in sources}:
        text = package_page(ROOT, package, sources)
        tree = ast.walk(ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text()))
        ours = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module.count(".") == 2]
        for node in ours:
            for alias in node.names:
                assert f"{{py:obj}}`{alias.name} <{node.module}.{alias.name}>`" in text, (package, alias.name)
                assert alias.name in public_names(sources[node.module]), (node.module, alias.name)


def test_every_parameter_and_result_is_there(sources):
    "Against `inspect`, which reads the imported function and not its text."
    import inspect

    from wssl.companion.records import write_claim

    entry = entries(sources["wssl.companion.records"])["write_claim"]
    for name, parameter in inspect.signature(write_claim).parameters.items():
        assert re.search(rf"^:param {name}: \S", entry, re.M), name
        if parameter.default is not inspect.Parameter.empty:
            assert f"{name}={parameter.default!r}" in entry.splitlines()[0]
    entry = entries(sources["wssl.metrics.wasserstein"])["wasserstein_uniformity"]
    assert ":returns: *Tensor* -- Scalar" in entry and "Fang et al. 2024, Eq. 8" in entry


def test_all_claims_and_their_notebooks_are_on_the_page(contents):
    text, ledger = claims_page(ROOT, contents), read_claims(ROOT)
    for claim in ledger.itertuples():
        row = next(line for line in text.splitlines() if line.startswith(f"| **{claim.id}** "))
        assert f"[{claim.verdict}]" in row
        assert not claim.notebook or f"](/{claim.notebook})" in row


def test_tables_have_a_row_for_each_published_line_and_no_empty_run(contents):
    text = tables_page(ROOT, contents)
    assert all(text.count(f"\n| {name}") for name in ("SimCLR", "BYOL + W2", "Barlow Twins"))
    beside = beside_published(ROOT)
    measured = beside[beside["seeds"] > 0]
    assert not (measured[["kNN %", "linear %", "W2", "L\\_U".replace("\\", ""), "L_A"]] == "–").all(axis=1).any()


def test_a_notebook_comes_after_those_it_builds_on(contents, sources):
    order = reading_order(ROOT / "wssl/metrics")
    assert order.index("wasserstein") < order.index("diagnosis") and order.index("moments") < order.index("wasserstein")
    names = list(contents)
    assert names[0] == "index.ipynb" and names.index("0_core/seeds.ipynb") < names.index("1_theory/sphere.ipynb")
    assert set(names) == {
        str(path.relative_to(ROOT / "nbs"))
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }


def test_links_and_text_as_the_site_needs_them():
    assert site_link("../2_metrics/", "nbs/3_balance") == "/2_metrics/index.md"
    assert site_link("moments.ipynb", "nbs/2_metrics") == "/2_metrics/moments.ipynb"
    assert site_link("https://x.org/a", "nbs") == "https://x.org/a"
    assert linked("`[a](b.ipynb)` and [a](b.ipynb)", "nbs/5_data", {}) == "`[a](b.ipynb)` and [a](/5_data/b.ipynb)"
    assert as_markdown("a_b * c, `d_e`, $f_g$") == r"a\_b \* c, `d_e`, $f_g$"


@pytest.fixture
def checkout(tmp_path):
    "A checkout with one chapter, its modules, and the claims of one work."
    for name in ("nbs/3_balance", "nbs/_site", "wssl/balance", "data/published"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc", "__pycache__", ".ipynb_checkpoints")
        )
    shutil.copy(ROOT / "settings.ini", tmp_path)
    text = "# Tour\n\n> A sentence with $\\mathcal{W}_2$.\n\n[Balance](3_balance/), [`balanced`](3_balance/excb.ipynb), [data](../data/published/claims.csv), `ClusterBalancer`\n\n$$\\sum_i x_i$$"
    table = nbformat.v4.new_output(
        "display_data", {"text/html": "<table><caption>Of $m$</caption><tr><td>1</td></tr></table>"}
    )
    cells = [
        nbformat.v4.new_markdown_cell(text),
        nbformat.v4.new_code_cell("#| hide\nsecret = 1"),
        nbformat.v4.new_code_cell("#| export\nshown = 1", outputs=[table]),
    ]
    nb = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    )
    nbformat.write(nb, tmp_path / "nbs/index.ipynb")
    return tmp_path


def test_a_small_site_builds_without_a_warning(checkout, tmp_path):
    followed = build_site(checkout, tmp_path / "out")
    site = tmp_path / "out/html"
    assert followed > 500 and check_pages(site) == (followed, [])
    page = (site / "index.html").read_text()
    assert page.count("<math") == 3 and "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "secret" not in page and "shown" in page and "default_exp" not in (site / "3_balance/excb.html").read_text()
    assert 'href="api/wssl.balance.excb.html#wssl.balance.excb.ClusterBalancer"' in page
    entry = (site / "api/wssl.balance.excb.html").read_text()
    cell = re.search(r'href="(\.\./3_balance/excb\.html#cell-\w+)"', entry)[1]
    assert f'id="{cell.partition("#")[2]}"' in (site / "3_balance/excb.html").read_text()
    assert "excb" in (site / "searchindex.js").read_text()
    assert not (tmp_path / "jupyter_execute").exists()


def test_a_warning_stops_the_build(checkout, tmp_path, capfd):
    path = checkout / "nbs/3_balance/excb.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.append(nbformat.v4.new_markdown_cell("[nowhere](#no-such-mark)"))
    nbformat.write(nb, path)
    with pytest.raises(InputError, match="without a warning"):
        build_site(checkout, tmp_path / "out")
    assert "no-such-mark" in capfd.readouterr().err


def test_pages_may_not_fetch_anything(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="//cdn.x.org/y.css"><a href="https://x.org">fine</a><img src="gone.png">'
    )
    assert check_pages(tmp_path)[1] == ["a.html loads //cdn.x.org/y.css", "a.html links to gone.png"]


def test_files_beside_the_notebooks_come_along(checkout, tmp_path):
    "What notebooks link to outside nbs is copied, and so is what those texts link to."
    (checkout / "data/README.md").write_text("# Data\n\n[how](../HOW.md) and [tour](../nbs/index.ipynb)")
    (checkout / "HOW.md").write_text("# How\n\nWith `balanced`.")
    path = checkout / "nbs/3_balance/excb.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.append(nbformat.v4.new_markdown_cell("[data](../../data/README.md)"))
    nbformat.write(nb, path)
    write_sources(checkout, tmp_path / "sources")
    assert "[how](/HOW.md) and [tour](/index.ipynb)" in (tmp_path / "sources/data/README.md").read_text()
    assert "{py:obj}`balanced <wssl.balance.excb.balanced>`" in (tmp_path / "sources/HOW.md").read_text()
