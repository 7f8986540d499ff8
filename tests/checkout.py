"""A checkout in miniature, so that tests of the companion never touch the real one."""

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = "id,work,claim,where,test,scale\nW2-06,W2,closed form,Lemma 1,series,exact\nW2-20,W2,gain,Table 2,seeds,cpu\n"


def notebook(*sources, parameters=None):
    "A notebook of code cells, the parameters cell first."
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    if parameters:
        cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nb


def make_checkout(root, **notebooks):
    "A checkout with these notebooks; `1_a__one` goes to nbs/1_a/one.ipynb."
    root = Path(root)
    for folder in ("nbs", "wssl", "data/published", "data/measured"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    (root / "requirements.lock").write_text("numpy==2.0\n")
    (root / "data/published/claims.csv").write_text(CLAIMS)
    (root / "data/published/w2_table2.csv").write_text((ROOT / "data/published/w2_table2.csv").read_text())
    for name, nb in notebooks.items():
        path = root / "nbs" / (name.replace("__", "/") + ".ipynb")
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nb, path)
    return root
