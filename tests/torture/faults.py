"""Faults, injected one at a time: no run lost, nothing executed, nothing silently wrong, one sentence."""

FAILURES = ["runs lost", "wrong results", "code executed"]


def measure(seed):
    """Rows: one a kind of fault."""
    yield from ()
