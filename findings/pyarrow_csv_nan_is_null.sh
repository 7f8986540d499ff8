#!/bin/sh
# pyarrow 26.0.1. Guess: pyarrow.csv.read_csv reads the text nan in a column of numbers as the number NaN, as it reads inf as
# infinity. Seen: nan, NaN and -nan become nulls, so a column has fewer numbers and no NaN, and pyarrow.compute.is_nan finds none;
# inf, -inf and Infinity stay numbers. ConvertOptions(null_values=[]) keeps NaN.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io

import pyarrow.compute as compute
from pyarrow import csv

text = b"a\n1.0\nnan\nNaN\n-nan\ninf\n-inf\nInfinity\n"
column = csv.read_csv(io.BytesIO(text))["a"]
kept = csv.read_csv(io.BytesIO(text), convert_options=csv.ConvertOptions(null_values=[]))["a"]
print("as it is:", column.to_pylist())
print("null_values=[]:", kept.to_pylist())
assert column.null_count == 3 and not compute.any(compute.is_nan(column)).as_py()
assert kept.null_count == 0 and compute.sum(compute.is_nan(kept)).as_py() == 3
PYTHON
