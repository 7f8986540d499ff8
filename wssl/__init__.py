"""Self-supervised learning, its collapse, and the Wasserstein uniformity that measures it."""

__version__ = "0.1.0"

from wssl.core import WORLD

__all__ = ["WORLD", "__version__"]
