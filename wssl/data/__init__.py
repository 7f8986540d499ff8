"""Images in memory and their augmented views."""

from wssl.data.images import Images, load_images, show_images
