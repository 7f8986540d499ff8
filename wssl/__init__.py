"""Self-supervised learning, its collapse, and the Wasserstein uniformity that measures it."""

__version__ = "0.1.0"

__all__ = ["WORLD", "__version__"]


def __getattr__(name):
    "PyTorch is imported when `WORLD` is asked for, not before a command can be interrupted (`wssl/__main__.py`)."
    if name == "WORLD":
        from wssl.core import WORLD

        return WORLD
    raise AttributeError(f"module 'wssl' has no attribute {name!r}")
