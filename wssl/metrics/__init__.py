"""Alignment, uniformity, Wasserstein uniformity, moments, spectra, clusters, neighbours, and the diagnosis that reads them."""

from typing import TYPE_CHECKING

import wssl.core.moved as moved
from wssl.metrics.alignment_uniformity import alignment, uniformity
from wssl.metrics.class_ranks import ClassRank, class_ranks, collapsed_share
from wssl.metrics.clustering import (
    ClusterScores,
    cluster_scores,
    partition_scores,
    relative_cluster_sizes,
    silhouettes,
    size_summary,
)
from wssl.metrics.diagnosis import diagnose, follow
from wssl.metrics.intrinsic_dimension import isotropic_dimension, mle_dimension, two_nn
from wssl.metrics.lidar import discriminant_spectrum, lidar
from wssl.metrics.moments import Moments
from wssl.metrics.neighbours import Hubness, Neighbours, hubness, nearest_rows
from wssl.metrics.reference_values import Reference, reference_values
from wssl.metrics.report import Diagnosis
from wssl.metrics.spectrum import (
    alpha_req,
    embedding_std,
    participation_ratio,
    rankme,
    singular_spectrum,
    stable_rank,
)
from wssl.metrics.verdict import rows_needed
from wssl.metrics.wasserstein import W2Moments, uniformity_zscore, w2_moments, wasserstein_uniformity
from wssl.theory.gaussians import bhattacharyya, gaussian_kl, gaussian_w2
from wssl.theory.null_distribution import live_fraction, null_distribution, null_law, uniformity_floor

if TYPE_CHECKING:
    from wssl.metrics.torchmetrics_classes import Alignment, RankMe, Uniformity, WassersteinUniformity

__all__ = [
    "Alignment", "ClassRank", "ClusterScores", "Diagnosis", "Hubness", "Moments", "Neighbours", "RankMe", "Reference",
    "Uniformity", "W2Moments", "WassersteinUniformity",
    "alignment", "alpha_req", "bhattacharyya", "class_ranks", "cluster_scores", "collapsed_share", "diagnose",
    "discriminant_spectrum", "embedding_std", "follow", "gaussian_kl", "gaussian_w2", "hubness", "isotropic_dimension",
    "lidar", "live_fraction", "mle_dimension", "nearest_rows", "null_distribution", "null_law", "participation_ratio",
    "partition_scores", "rankme", "reference_values", "relative_cluster_sizes", "rows_needed", "silhouettes", "singular_spectrum",
    "size_summary", "stable_rank", "two_nn", "uniformity", "uniformity_floor", "uniformity_zscore", "w2_moments",
    "wasserstein_uniformity",
]

pictures = moved.moved_module("wssl.metrics.pictures", "wssl.metrics.plots")
stateful = moved.moved_module("wssl.metrics.stateful", "wssl.metrics.torchmetrics_classes")


def __getattr__(name):
    "The torchmetrics classes, when first asked for: torchmetrics takes seconds to import, and no loss needs it."
    if name in ("Alignment", "RankMe", "Uniformity", "WassersteinUniformity"):
        from wssl.metrics import torchmetrics_classes

        return getattr(torchmetrics_classes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
