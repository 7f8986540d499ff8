"""Images in memory, their augmented views, and embeddings whose collapse is known."""

from wssl.data.crops import CROP_FLIP, VIEWS, MultiCrop, local_size, views_named
from wssl.data.files import unreadable
from wssl.data.images import Images, load_evaluation, load_images, show_images
from wssl.data.stream import StreamedImages
from wssl.data.synthetic import (
    LAWS,
    append_zeros,
    clone_features,
    clone_rows,
    clusters,
    collapsed_gaussian,
    cone,
    constant_collapse,
    cross_polytope,
    isotropic_gaussian,
    law,
    live_dimensions,
    one_hot,
    power_law,
    power_spectrum,
    sphere_mixture,
)
from wssl.data.views import DIGITS, PRESETS, SMALL, W2_PAPER, Augmentation, TwoViews, plain_view

__all__ = [
    "Augmentation", "CROP_FLIP", "DIGITS", "Images", "LAWS", "MultiCrop", "PRESETS", "SMALL", "StreamedImages",
    "TwoViews", "VIEWS", "W2_PAPER", "append_zeros", "clone_features", "clone_rows", "clusters",
    "collapsed_gaussian", "cone", "constant_collapse", "cross_polytope", "isotropic_gaussian", "law",
    "live_dimensions", "load_evaluation", "load_images", "local_size", "one_hot", "plain_view", "power_law",
    "power_spectrum", "show_images", "sphere_mixture", "unreadable", "views_named",
]
