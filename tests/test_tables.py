"""Text tables, labels, columns and containers as numpy, pandas, polars, R, Excel, TensorBoard and lightly write them: read as meant, or one sentence."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from wssl.companion.cli import main
from wssl.core.checks import InputError
from wssl.evaluation.sources import load_embeddings, load_labels
from wssl.metrics import diagnose

Z = np.random.default_rng(0).standard_normal((300, 8))
Y = np.arange(300) % 5
WORDS = np.array(["cat", "dog", "golden retriever", "NA", "None"])[Y]
FRAME = pd.DataFrame(Z)


def text(content, encoding="utf-8"):
    return lambda p: p.write_bytes(content.encode(encoding))


def lines(rows, mark=",", end="\n"):
    return "".join(mark.join(map(str, row)) + end for row in rows)


def comma(rows):
    "Numbers with a decimal comma, as a German Excel writes them."
    return [[str(x).replace(".", ",") for x in row] for row in rows]


def lightly(p):
    "As `lightly.utils.io.save_embeddings`: filenames, embedding_0, ..., labels."
    named = FRAME.add_prefix("embedding_").assign(labels=Y)
    named.insert(0, "filenames", [f"{i}.png" for i in range(300)])
    named.to_csv(p, index=False)


EMB = FRAME.add_prefix("emb_")

# name -> (write, key, what the notes say)
READ = {
    "pandas-noindex.csv": (lambda p: FRAME.to_csv(p, index=False), None, "names the columns (0, 1"),
    "pandas.csv": (lambda p: FRAME.to_csv(p), None, "without a name left out"),
    "pandas-twice.csv": (lambda p: (FRAME.to_csv(p), pd.read_csv(p).to_csv(p)), None, "2 columns without a name"),
    "pandas-index-of-words.csv": (lambda p: FRAME.set_index(WORDS).to_csv(p), None, "without a name left out"),
    "pandas-bom.csv": (lambda p: FRAME.to_csv(p, index=False, header=False, encoding="utf-8-sig"), None, ""),
    "pandas-bom-header.csv": (lambda p: FRAME.to_csv(p, encoding="utf-8-sig"), None, "without a name left out"),
    "pandas-utf16.csv": (lambda p: FRAME.to_csv(p, index=False, sep="\t", encoding="utf-16"), None, "names"),
    "pandas-german.csv": (lambda p: FRAME.to_csv(p, index=False, sep=";", decimal=","), None, "names"),
    "pandas-some.csv": (lambda p: FRAME.rename(columns=lambda k: k + 128).to_csv(p, index=False), None, "128, 129"),
    "pandas-float-names.csv": (lambda p: FRAME.rename(columns=float).to_csv(p, index=False), None, "names the columns (0.0"),
    "pandas-lists.csv": (lambda p: pd.DataFrame({"id": WORDS, "z": Z.tolist()}).to_csv(p), None, "lists in column 'z'"),
    "pandas-one-list.csv": (lambda p: pd.DataFrame({"z": Z.tolist()}).to_csv(p, index=False), None, "names"),
    "pandas-prefix.csv": (lambda p: EMB.assign(emb_id=Y, lat=0.5).to_csv(p, index=False), "emb_", "emb_id left out"),
    "pandas-places.csv": (lambda p: EMB.assign(lat=0.5).to_csv(p, header=False), "1:9", ""),
    "pandas-crlf.csv": (lambda p: FRAME.to_csv(p, index=False, lineterminator="\r\n"), None, "names"),
    "numpy.csv": (lambda p: np.savetxt(p, Z), None, ""),
    "numpy.tsv": (lambda p: np.savetxt(p, Z, delimiter="\t"), None, ""),
    "numpy-comments.csv": (lambda p: np.savetxt(p, Z, header="mine\nof today", footer="end"), None, "3 lines of comment"),
    "numpy-names.csv": (lambda p: np.savetxt(p, Z, delimiter=",", header=",".join("abcdefgh")), None, "1 line of comment"),
    "numpy-commaspace.csv": (lambda p: np.savetxt(p, Z, delimiter=", ", fmt="%.17g"), None, ""),
    "polars.csv": (text(lines([[f"column_{k}" for k in range(8)], *Z.tolist()])), None, "column_0"),
    "polars-quoted.csv": (text(lines([[f'"{x}"' for x in row] for row in [list("abcdefgh"), *Z.tolist()]])), None, "names"),
    "R-table.csv": (text(lines([[f'"V{k}"' for k in range(8)], *([f'"{i}"', *row] for i, row in enumerate(Z.tolist(), 1))], " ")), None, "without a name"),
    "R-csv.csv": (text(lines([['""', *(f'"V{k}"' for k in range(8))], *([f'"{i}"', *row] for i, row in enumerate(Z.tolist(), 1))])), None, "without a name"),
    "R-csv2.csv": (text(lines([['""', *(f'"V{k}"' for k in range(8))], *([f'"{i}"', *row] for i, row in enumerate(comma(Z.tolist()), 1))], ";")), None, "without a name"),
    "excel.csv": (text("\ufeffsep=;\r\n" + lines(comma(Z.tolist()), ";", "\r\n")), None, ""),
    "excel-tab.tsv": (text(lines(comma(Z.tolist()), "\t", "\r\n"), "utf-16"), None, ""),
    "projector.tsv": (text(lines(Z.tolist(), "\t")), None, ""),
    "lightly.csv": (lightly, None, "as lightly writes them"),
    "blank-end.csv": (text(lines(Z.tolist()) + "\n"), None, ""),
    "no-end.csv": (text(lines(Z.tolist())[:-1]), None, ""),
    "mark-at-the-end.csv": (text(lines(Z.tolist(), ",", ",\n")), None, "opens no column"),
    "json-lines.csv": (text("".join(f"{row}\n" for row in Z.tolist())), None, ""),
    "pipes.csv": (text(lines(Z.tolist(), "|")), None, ""),
}  # fmt: skip


def said(at, capsys, *words):
    "What the command finds: its JSON."
    code = main(["diagnose", *map(str, words), "--json", str(at / "out.json")])
    assert code == 0, capsys.readouterr().err
    return json.loads((at / "out.json").read_text())


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read_as_its_writer_meant_it(name, tmp_path, capsys):
    write, key, note = READ[name]
    write(tmp_path / name)
    notes = []
    back = load_embeddings(tmp_path / name, key, notes)
    assert back.dtype == torch.float64 and torch.equal(back, torch.from_numpy(Z)), name
    assert note in " ".join(notes)
    found = said(tmp_path, capsys, tmp_path / name, *(["--key", key] if key else []))
    assert found["values"]["rows"] == 300 and found["values"]["dimensions"] == 8
    assert all(one in found["notes"] for one in notes), "what was decided is on the page"


REFUSED = {
    "few-names.csv": (text("a,b\n0.5,1.5,2.5\n3.5,4.5,5.5\n"), "2 names above 3 fields"),
    "many-names.csv": (text("a,b,c,d\n0.5,1.5,2.5\n3.5,4.5,5.5\n"), "4 names above 3 fields"),
    "R-without-quotes.tsv": (text("V1\tV2\n1\t0.5\t1.5\n2\t2.5\t3.5\n"), "2 names above 3 fields"),
    "no-header-index.csv": (lambda p: FRAME.to_csv(p, header=False), "integers in column '0' (--key 1: for all behind it)"),
    "shuffled-numbers.csv": (lambda p: FRAME[[3, 1, 5]].to_csv(p, index=False), "names or a row"),
    "whole.csv": (text("0,1,2\n3,4,5\n6,7,8\n"), "3 whole numbers: names or a row"),
    "excel-error.csv": (text("#N/A,0.5\n0.25,1.5\n1.5,2.5\n"), "a row behind a #"),
    "twice.csv": (text("a,a,b\n0.5,1.5,2.5\n"), "'a' twice"),
    "two-levels.csv": (lambda p: pd.DataFrame(Z, columns=pd.MultiIndex.from_product([["a", "b"], range(4)])).to_csv(p, index=False), "'a' twice"),
    "id-without-names.csv": (text("a.png,0.5,1.5\nb.png,2.5,3.5\n"), "text in column '0' (--key 1:"),
    "lat.csv": (lambda p: EMB.assign(lat=0.5, lon=1.5).to_csv(p, index=False), "numbers in column 'lat' beside emb_0, ... (--key emb_)"),
    "emb-id.csv": (lambda p: EMB.assign(emb_id=Y).to_csv(p, index=False), "integers in column 'emb_id' beside emb_0, ... (--key emb_)"),
    "score.csv": (lambda p: FRAME.assign(score=0.5).to_csv(p, index=False), "'score' beside 0, ... (--key 0:8)"),
    "two-kinds.csv": (lambda p: FRAME.add_prefix("h_").join(FRAME.add_prefix("z_")).to_csv(p, index=False), "2 kinds of columns (h_0, z_0)"),
    "shortened.csv": (lambda p: pd.DataFrame({"z": [np.arange(2000) + 0.5] * 3}).to_csv(p), "a shortened one, as numpy prints it"),
    "ragged-lists.csv": (text('"[0.5, 1.5]"\n"[0.5]"\n'), "lists of one length"),
    "thousands.csv": (text("1.234,5;2.345,5\n3.456,5;4.567,5\n"), "text in column"),
    "blank-between.csv": (text("0.5,1.5\n\n2.5,3.5\n"), "data row 2"),
    "words-later.csv": (text(lines(Z.tolist() * 80) + "0.5,1,2,3,oops,5,6,7\n"), "text in column '4' behind data row 20000"),
    "long-words.csv": (text("x" * 5000 + ",0.5\n" + "y" * 5000 + ",1.5\n"), "text in column"),
    "latin1.csv": (text("größe,b\n0.5,1.5\n", "latin-1"), "UTF-8"),
}  # fmt: skip


def sentence(capsys, folder, *words):
    "What a command says that exits with 2; nothing else may be said or written."
    before = sorted(os.listdir(folder))
    code = main(["diagnose", *map(str, words), "--html", str(folder / "out.html"), "--json", str(folder / "out.json")])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err, (code, out, err)
    assert err.startswith("wssl: expected ") and "; received " in err and len(err) <= len("wssl: ") + 201, len(err)
    assert sorted(os.listdir(folder)) == before
    return err


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_open_is_refused_and_no_row_is_quoted(name, tmp_path, capsys):
    write, says = REFUSED[name]
    write(tmp_path / name)
    assert says in sentence(capsys, tmp_path, tmp_path / name)


def test_numbers_keep_the_precision_they_were_written_in(tmp_path):
    fine = 1 + 1e-8 * Z.repeat(4, 0) + 1e-9 * np.arange(1200)[:, None]
    pd.DataFrame(fine).to_csv(tmp_path / "fine.csv", index=False)
    found = diagnose(load_embeddings(tmp_path / "fine.csv"))
    assert (
        found.values["effective rows"].value == diagnose(torch.from_numpy(fine)).values["effective rows"].value > 1100
    )
    single = Z.astype(np.float32)
    for name, write in (
        ("nine.csv", lambda p: np.savetxt(p, single, fmt="%.9g")),
        ("all.csv", lambda p: np.savetxt(p, single)),
        ("shortest.csv", lambda p: pd.DataFrame(single).to_csv(p, index=False)),
    ):
        write(tmp_path / name)
        assert torch.equal(load_embeddings(tmp_path / name), torch.from_numpy(single)), name
    late = np.concatenate([single.astype(np.float64).repeat(90, 0), Z])  # 64 bits behind the first batch
    np.savetxt(tmp_path / "late.csv", late, delimiter=",", fmt="%.17g")
    assert torch.equal(load_embeddings(tmp_path / "late.csv"), torch.from_numpy(late))


# name -> (write, key, classes)
LABELS = {
    "series.csv": (lambda p: pd.Series(Y).to_csv(p, index=False), None, Y),
    "series-index.csv": (lambda p: pd.Series(Y).to_csv(p), None, Y),
    "series-name.csv": (lambda p: pd.Series(Y, name="y").to_csv(p, index=False), None, Y),
    "series-no-header.csv": (lambda p: pd.Series(Y).to_csv(p, index=False, header=False), None, Y),
    "series-floats.csv": (lambda p: pd.Series(Y).astype(float).to_csv(p, index=False), None, Y),
    "savetxt.csv": (lambda p: np.savetxt(p, Y), None, Y),
    "savetxt-whole.csv": (lambda p: np.savetxt(p, Y, fmt="%d"), None, Y),
    "savetxt-blank-end.csv": (text(lines(Y[:, None].tolist()) + "\n"), None, Y),
    "bom.csv": (text("\ufeff" + lines(Y[:, None].tolist())), None, Y),
    "metadata.tsv": (text(lines(WORDS[:, None].tolist())), None, "words"),
    "unique.tsv": (text(lines([[f"class {k:03}"] for k in range(300)])), None, np.arange(300)),
    "unique-name.csv": (text("kind\n" + lines([[f"class {k:03}"] for k in range(300)])), None, np.arange(300)),
    "two.csv": (lambda p: pd.DataFrame({"filename": WORDS, "label": Y}).to_csv(p, index=False), "label", Y),
    "two-words.tsv": (lambda p: pd.DataFrame({"name": range(300), "label": WORDS}).to_csv(p, sep="\t", index=False), "label", "words"),
    "lightly.csv": (lightly, None, Y),
    "words.npy": (lambda p: np.save(p, WORDS), None, "words"),
    "bytes.npy": (lambda p: np.save(p, WORDS.astype("S")), None, "words"),
    "floats.npy": (lambda p: np.save(p, Y.astype(np.float32)), None, Y),
    "column.npy": (lambda p: np.save(p, Y[:, None]), None, Y),
    "bools.npy": (lambda p: np.save(p, Y > 2), None, (Y > 2).astype(int)),
    "y.npz": (lambda p: np.savez(p, z=Z, y=WORDS), "y", "words"),
    "list.pt": (lambda p: torch.save(WORDS.tolist(), p), None, "words"),
    "whole.pt": (lambda p: torch.save(Y.tolist(), p), None, Y),
    "batches.pt": (lambda p: torch.save(list(torch.from_numpy(Y).split(64)), p), None, Y),
    "named.pt": (lambda p: torch.save({"z": torch.from_numpy(Z), "y": WORDS.tolist()}, p), "y", "words"),
    "words.parquet": (lambda p: pd.DataFrame({"y": WORDS}).to_parquet(p), None, "words"),
    "dictionary.parquet": (lambda p: pd.DataFrame({"y": pd.Categorical(WORDS)}).to_parquet(p), None, "words"),
    "floats.parquet": (lambda p: pd.DataFrame({"x": WORDS, "y": Y.astype(float)}).to_parquet(p), "y", Y),
    "bools.parquet": (lambda p: pd.DataFrame({"y": Y > 2}).to_parquet(p), None, (Y > 2).astype(int)),
    "sorted-index.parquet": (lambda p: pd.DataFrame({"y": Y}, index=Y + 0.5).to_parquet(p), None, Y),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_what_their_writer_meant(name, tmp_path, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra parquet")
    write, key, truth = LABELS[name]
    truth = np.unique(WORDS, return_inverse=True)[1] if isinstance(truth, str) else truth
    write(tmp_path / name)
    assert load_labels(tmp_path / name, key, 300).tolist() == truth.tolist()
    np.save(tmp_path / "z.npy", Z)
    words = [tmp_path / "z.npy", "--labels", tmp_path / name, *(["--labels-key", key] if key else [])]
    share = diagnose(torch.from_numpy(Z), labels=truth).values["class share"].value
    assert said(tmp_path, capsys, *words)["values"]["class share"] == pytest.approx(share, abs=1e-12)


MISSING = {
    "numbers.csv": (lambda p, y: p.write_text("y\n" + lines([[k if k >= 0 else ""] for k in y])), None),
    "NA.csv": (lambda p, y: p.write_text('"y"\n' + lines([[k if k >= 0 else "NA"] for k in y])), None),
    "words.csv": (lambda p, y: p.write_text("y\n" + lines([[f"c{k}" if k >= 0 else ""] for k in y])), None),
    "two.csv": (lambda p, y: p.write_text("n,y\n" + lines([["x", f"c{k}" if k >= 0 else ""] for k in y])), "y"),
    "whole.npy": (lambda p, y: np.save(p, y), None),
    "floats.npy": (lambda p, y: np.save(p, np.where(y < 0, np.nan, y)), None),
    "words.npy": (lambda p, y: np.save(p, np.where(y < 0, "", y.astype(str))), None),
    "nullable.parquet": (lambda p, y: pd.DataFrame({"y": pd.array(y, "Int64")}).where(y[:, None] >= 0).to_parquet(p), None),
    "words.parquet": (lambda p, y: pd.DataFrame({"y": [f"c{k}" if k >= 0 else None for k in y]}).to_parquet(p), None),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_row_without_a_label_is_left_out_and_counted(name, tmp_path, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra parquet")
    write, key = MISSING[name]
    y = np.where(np.arange(300) % 7 == 0, -1, Y)
    write(tmp_path / name, y)
    assert load_labels(tmp_path / name, key, 300).tolist() == y.tolist()
    np.save(tmp_path / "z.npy", Z + y[:, None])
    found = said(
        tmp_path, capsys, tmp_path / "z.npy", "--labels", tmp_path / name, *(["--labels-key", key] if key else [])
    )
    assert "43 rows without a label are left out of what needs labels" in found["notes"]
    known = diagnose(torch.from_numpy((Z + y[:, None])[y >= 0]), labels=y[y >= 0])
    for name in ("class share", "silhouette"):
        assert found["values"][name] == pytest.approx(known.values[name].value, abs=1e-9)
    assert [line["class"] for line in found["classes"]] == [0, 1, 2, 3, 4]


WRONG_LABELS = {
    "two.csv": (lambda p: pd.DataFrame({"filename": WORDS, "label": Y}).to_csv(p, index=False), "2 (filename, label)"),
    "two-words.csv": (lambda p: pd.DataFrame({"a": WORDS, "b": WORDS}).to_csv(p, index=False), "2 (a, b)"),
    "points.npy": (lambda p: np.save(p, Z[:, 0]), "as integers or words; received numbers such as"),
    "points.csv": (lambda p: np.savetxt(p, Z[:, 0]), "as integers or words"),
    "below.npy": (lambda p: np.save(p, Y - 3), "from 0 on, or -1 for a row without one; received -3"),
    "one-hot.npy": (lambda p: np.save(p, np.eye(5, dtype=int)[Y]), "labels in one-hot.npy of shape (n,)"),
    "complex.npy": (lambda p: np.save(p, Y.astype(complex)), "labels in complex.npy as integers or words"),
    "one-too-many.tsv": (text(lines(np.append(WORDS, "dog")[:, None])), "shape (301,)"),
    "long-row.csv": (text("y\n" + "1\n" * 298 + "2,3\n4\n"), "rows of different lengths"),
    "short.csv": (lambda p: np.savetxt(p, Y[:200], fmt="%d"), "labels"),
    "two.parquet": (lambda p: pd.DataFrame({"a": WORDS, "b": WORDS}).to_parquet(p), "2 (a, b)"),
    "lists.parquet": (lambda p: pd.DataFrame({"y": Z.tolist()}).to_parquet(p), "labels as integers or words"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_wrong_labels(name, tmp_path, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra parquet")
    write, says = WRONG_LABELS[name]
    write(tmp_path / name)
    np.save(tmp_path / "z.npy", Z)
    assert says in sentence(capsys, tmp_path, tmp_path / "z.npy", "--labels", tmp_path / name)


def test_what_only_the_number_of_rows_can_tell_is_not_guessed_without_it(tmp_path):
    pd.Series(Y).to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(InputError, match="0 in the first line: a name or a label"):
        load_labels(tmp_path / "y.csv")
    notes = []
    assert load_labels(tmp_path / "y.csv", rows=300, notes=notes).tolist() == Y.tolist()
    assert "its first line is a name" in notes[-1]
    assert load_labels(tmp_path / "y.csv", rows=301).tolist() == [0, *Y]
