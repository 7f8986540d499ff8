"""Alignment, uniformity, moments, spectra: what embeddings look like, in numbers."""

from wssl.metrics.moments import Moments
from wssl.metrics.wasserstein import wasserstein_uniformity
