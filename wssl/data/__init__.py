"""Images in memory and their augmented views."""

from wssl.data.images import Images, load_images, show_images
from wssl.data.views import DIGITS, PRESETS, SMALL, W2_PAPER, Augmentation, TwoViews, plain_view
