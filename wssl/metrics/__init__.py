"""Alignment, uniformity, Wasserstein uniformity, moments, spectra, clusters, and the diagnosis that reads them."""

from wssl.metrics.alignment_uniformity import Alignment, Uniformity, alignment, uniformity
from wssl.metrics.clustering import (
    ClusterScores,
    cluster_scores,
    partition_scores,
    relative_cluster_sizes,
    silhouettes,
    size_summary,
)
from wssl.metrics.diagnosis import Diagnosis, diagnose, follow
from wssl.metrics.lidar import discriminant_spectrum, lidar
from wssl.metrics.moments import Moments
from wssl.metrics.spectrum import (
    RankMe,
    alpha_req,
    embedding_std,
    participation_ratio,
    rankme,
    singular_spectrum,
    stable_rank,
)
from wssl.metrics.wasserstein import (
    WassersteinUniformity,
    live_fraction,
    null_law,
    uniformity_floor,
    uniformity_zscore,
    wasserstein_uniformity,
)
from wssl.theory.gaussians import bhattacharyya, gaussian_kl, gaussian_w2
