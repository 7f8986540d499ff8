"""The uniform distribution on the sphere, the null distribution of W2, Gaussians under collapse, and the axioms a uniformity metric should obey."""

from wssl.theory.gaussians import bhattacharyya, gaussian_kl, gaussian_w2
from wssl.theory.null_distribution import live_fraction, null_distribution, uniformity_floor
from wssl.theory.properties import Properties, check_properties, property_batches
from wssl.theory.sphere import (
    coordinate_kl,
    coordinate_kl_bound,
    coordinate_pdf,
    coordinate_w2,
    sample_sphere,
    sphere_gaussian_w2,
    uniformity_of_sphere,
)

__all__ = [
    "Properties", "bhattacharyya", "check_properties", "coordinate_kl", "coordinate_kl_bound", "coordinate_pdf",
    "coordinate_w2", "gaussian_kl", "gaussian_w2", "live_fraction", "null_distribution", "property_batches", "sample_sphere",
    "sphere_gaussian_w2", "uniformity_floor", "uniformity_of_sphere",
]
