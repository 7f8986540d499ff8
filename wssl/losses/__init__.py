"""Losses, one module a family: contrastive, distillation, distribution."""

from wssl.losses.contrastive import info_nce, nt_xent
from wssl.losses.distillation import byol_loss, simsiam_loss
from wssl.losses.distribution import WassersteinUniformityLoss, lu_of_views, regularize, w2_of_views
