"""Two views of 256 images of CIFAR's size beside torchvision, kornia and lightly, all in one process with the same threads.

The draws differ, so only their law can agree: what is compared is the deviation of all pixels. (The topic `augmentation` gives
torchvision its worker processes.)
"""

from dataclasses import replace

import torch
from PIL import Image

from tests.bench.augmentation import torchvision_pipeline
from tests.bench.compare import Case, Peer, table
from wssl.core.seeds import generator
from wssl.data.images import synthetic
from wssl.data.views import W2_PAPER, TwoViews

SIMCLR = replace(W2_PAPER, interpolation="bilinear", saturation=0.4, p_blur=0.0, p_solarize=0.0)
RECIPES = {"SimCLR for CIFAR": SIMCLR, "SimCLR with blur": replace(SIMCLR, p_blur=0.5)}
LAW = "other random numbers: the deviation of all pixels is compared, to a tenth"
# per value of a view: resampling 2 x 2 x 4, three mixtures of channels and grey 4 x 6, hue 20, scaling 4
FLOP_OF_A_VALUE = 64


def spread(views):
    return (torch.cat([view.flatten() for view in views]).std(),)


def of_kornia(a, x):
    import kornia.augmentation as K

    blur = [K.RandomGaussianBlur((a.blur_kernel, a.blur_kernel), a.sigma, p=a.p_blur)] if a.p_blur else []
    view = K.AugmentationSequential(
        K.RandomResizedCrop((a.size, a.size), a.scale, a.ratio, resample="BILINEAR"),
        K.RandomHorizontalFlip(p=a.p_flip),
        K.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue, p=a.p_jitter),
        K.RandomGrayscale(p=a.p_gray),
        *blur,
        K.Normalize(torch.tensor(a.mean), torch.tensor(a.std)),
        data_keys=["input"],
    )

    @torch.no_grad()
    def run():
        images = x.float() / 255
        return view(images), view(images)

    return run


def of_torchvision(a, x, batched):
    view = torchvision_pipeline(a)

    @torch.no_grad()
    def run():
        if batched:
            return view(x), view(x)
        return [torch.stack([view(image) for image in x]) for _ in range(2)]

    return run


def of_lightly(a, x):
    from lightly.transforms import SimCLRTransform

    views = SimCLRTransform(
        input_size=a.size,
        cj_strength=0.5,
        gaussian_blur=a.p_blur,
        sigmas=a.sigma,
        normalize={"mean": list(a.mean), "std": list(a.std)},
    )
    pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in x]
    return lambda: [torch.stack(each) for each in zip(*[views(image) for image in pils], strict=True)]


def two_views(n, name):
    a, x = RECIPES[name], synthetic("train", per_class=-(-n // 10)).x[:n]
    views, random = TwoViews(a), generator(0, "bench", "views")
    values = 2 * x.numel()
    peers = [
        Peer("torchvision v2, image by image", "torchvision", lambda: of_torchvision(a, x, False), LAW),
        Peer(
            "torchvision v2, one draw for the batch",
            "torchvision",
            lambda: of_torchvision(a, x, True),
            "one crop, one flip and one colour for all images of the batch",
            "the peer draws once for the whole batch: every image gets the same crop, flip and colours",
        ),
        Peer("kornia AugmentationSequential", "kornia", lambda: of_kornia(a, x), f"{LAW}; no antialiasing"),
        Peer("lightly SimCLRTransform, PIL", "lightly", lambda: of_lightly(a, x), LAW),
    ]
    yield Case(
        f"two views: {name}",
        f"{n} images of 32 x 32",
        lambda: views(x, random),
        peers,
        FLOP_OF_A_VALUE * values,
        x.numel() + 4 * values,
        tolerance=0.1,
        read=spread,
    )


SIZES = {two_views: [(256, name) for name in RECIPES]}


def measure(ceiling, repeats=9, budget=2.0):
    """Rows: one a recipe and a peer."""
    cases = (case for family, sizes in SIZES.items() for size in sizes for case in family(*size))
    yield from table(cases, ceiling, repeats, budget)
