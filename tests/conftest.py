"""What holds for every test."""

import gc


def pytest_collection_finish():
    """What is imported stays; without this every collection of garbage would look through all of it (a quarter of a second each)."""
    gc.collect()
    gc.freeze()
