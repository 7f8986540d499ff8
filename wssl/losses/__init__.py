"""Losses, one module a family: clustering, contrastive, distillation, distribution, local, pretext, redundancy, stuck, whitening."""

from wssl.losses.clustering import dino_loss, excb_loss, resa_loss, soft_cross_entropy, swav_loss
from wssl.losses.contrastive import info_nce, nt_xent
from wssl.losses.distillation import byol_loss, coding_rate, simdino_loss, simsiam_loss
from wssl.losses.distribution import (
    WassersteinUniformityLoss,
    lu_of_views,
    regularize,
    sigreg_loss,
    sliced_w2_loss,
    visreg_loss,
    w2_of_views,
)
from wssl.losses.local import local_vicreg
from wssl.losses.pretext import cut_tiles, permutation_set, rotations, standardize_tiles, task_loss
from wssl.losses.redundancy import barlow_twins_loss, vicreg_loss, vicreg_terms, zero_fcl_loss, zero_icl_loss
from wssl.losses.stuck import collapse_values, explain_loss
from wssl.losses.whitening import cholesky_whiten, intl_loss, iter_norm, w_mse_loss

__all__ = [
    "WassersteinUniformityLoss",
    "barlow_twins_loss",
    "byol_loss",
    "cholesky_whiten",
    "coding_rate",
    "collapse_values",
    "cut_tiles",
    "dino_loss",
    "excb_loss",
    "explain_loss",
    "info_nce",
    "intl_loss",
    "iter_norm",
    "local_vicreg",
    "lu_of_views",
    "nt_xent",
    "permutation_set",
    "regularize",
    "resa_loss",
    "rotations",
    "sigreg_loss",
    "simdino_loss",
    "simsiam_loss",
    "sliced_w2_loss",
    "soft_cross_entropy",
    "standardize_tiles",
    "swav_loss",
    "task_loss",
    "vicreg_loss",
    "vicreg_terms",
    "visreg_loss",
    "w2_of_views",
    "w_mse_loss",
    "zero_fcl_loss",
    "zero_icl_loss",
]
