"""Numbers at the ends of what a float holds, and shapes at the ends of what a batch has.

A failure prints the call that repeats it: `python -m tests.torture.numerics "value('nt_xent', Case(...))"`.
"""

import os
import sys
import warnings
from zlib import crc32

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.torture import numerics_check as check
from tests.torture.numerics_table import ANY, DTYPES, KINDS, LAYOUTS, SUBJECTS, Case
from tests.torture.numerics_threads import thread_rows
from tests.torture.numerics_transforms import transform_rows

FAILURES = ["failed"]

PROPERTIES = {
    "value": (check.value, 40, "finite, in its range, the formula in float64"),
    "gradient": (check.gradient, 20, "finite; where well posed the slope of the formula"),
    "invariance": (check.invariance, 10, "the order of rows, and the scale where promised"),
    "beyond": (check.value, 12, "past the promised exponents right, refused or not finite"),
    "NaN": (check.not_a_number, 4, "NaN and infinities refused or passed on"),
    "misfit": (check.misfit, 2, "wrong shapes and types refused in one sentence"),
    "second": (check.second, 2, "the second derivative right, or refused"),
}


@st.composite
def cases(draw, subject, label):
    """Sizes log-uniform in 1..4096 within what the subject may cost; the ends of the exponents as often as all between."""
    sizes = st.floats(0, 12).map(lambda power: int(2**power))
    n, m = min(draw(sizes), subject.most), min(draw(sizes), subject.columns)
    while n * m > subject.cells or n * m * min(n, m) > subject.work:
        n, m = (max(1, n // 2), m) if n > m else (n, max(1, m // 2))
    beyond = label == "beyond"
    often = label == "gradient"  # a slope is compared where it is well posed
    types = [name for name in DTYPES if not beyond or name != "float16"]
    dtype = draw(st.sampled_from([*types, *["float64", "float32"] * (3 if often else 0)]))
    low, high = (subject.reach or ANY)[dtype]
    if beyond:
        low, high = high + (high < 37), 300 if dtype == "float64" else 37
    middle = low if beyond else 0
    exponent = draw(
        st.one_of(st.just(middle), st.just(middle if often else low), st.just(high), st.integers(low, high))
    )
    kind = draw(st.sampled_from([*KINDS, *["plain"] * (20 if often else 0)]))
    layout = draw(st.sampled_from(LAYOUTS)) if draw(st.integers(0, 2)) == 0 else "contiguous"
    kind = "constant" if layout == "expanded" else kind
    return Case(n, m, kind, exponent, dtype, layout, draw(st.integers(0, 999)))


def measure_property(name, label, seed):
    """A row for one function and one property."""
    subject, (function, usual, note) = SUBJECTS[name], PROPERTIES[label]
    row = {"function": name, "property": label, "examples": 0, "failed": 0, "worst": "", "note": note}
    share, compared, failures = 0.0, 0, []

    @seeded(crc32(f"{seed} {name} {label}".encode()))  # other cases for each
    @settings(
        max_examples=usual,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(subject, label))
    def run(case):
        nonlocal share, compared
        row["examples"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error, tolerance = function(name, case)
        except check.Broken as broken:
            failures.append(f"{function.__name__}({name!r}, {case}): {broken}")
            return
        compared += tolerance > 0
        if tolerance and error / tolerance >= share:
            share, row["worst"] = error / tolerance, f"{error:.1e} of {tolerance:.1e}"

    run()
    row["failed"] = len(failures)
    row["note"] += f"; {compared} compared" if label in ("value", "gradient", "invariance", "beyond") else ""
    for failure in failures[:5]:
        print(f"  to repeat: {failure}", flush=True)
    return row


def wanted(subject, label):
    """Has this subject anything to say on the property?"""
    if label in ("gradient", "second"):
        return bool(subject.free) and (label == "gradient" or subject.twice is not None)
    if label in ("NaN", "misfit"):
        return subject.nan
    if label == "invariance":
        return subject.rows or subject.scale
    return label != "beyond" or (subject.reach or ANY)["float32"][1] != 0


def measure(seed):
    """Rows: one a function and a property."""
    for label in PROPERTIES:
        for name, subject in SUBJECTS.items():
            if wanted(subject, label):
                yield measure_property(name, label, seed)
    yield from transform_rows()
    yield from thread_rows()


if __name__ == "__main__":  # repeat what a failure printed
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    functions = {function.__name__: function for function, _, _ in PROPERTIES.values()}
    print("(error, tolerance):", eval(sys.argv[1], functions | {"Case": Case}))
