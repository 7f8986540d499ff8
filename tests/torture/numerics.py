"""Numbers at the ends of what a float holds, and shapes at the ends of what a batch has."""

FAILURES = ["failed"]


def measure(seed):
    """Rows: one a function and a family of inputs."""
    yield from ()
