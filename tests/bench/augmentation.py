"""Batched views against torchvision's transforms on one image after the other: the same operations, the same interpolation.

Each side gets its best. Torchvision: images that are already decoded, as PIL images or as tensors, worker processes that stay alive,
one a core. Ours: one batch at a time with one thread a core, as inside a training loop, or one batch on each core. Two threads inside
an operation want a quiet machine: where other work holds a core, every one of them waits for it.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from wssl.core.seeds import generator
from wssl.data.images import synthetic
from wssl.data.views import SMALL, W2_PAPER, augment, draw

BATCH = 256


def torchvision_pipeline(a):
    """`Augmentation` as a pipeline of torchvision's transforms over single images; takes PIL images and uint8 tensors."""
    optional = [
        v2.RandomApply([v2.GaussianBlur(a.blur_kernel, a.sigma)], a.p_blur) if a.p_blur else None,
        v2.RandomSolarize(128, a.p_solarize) if a.p_solarize else None,
    ]
    return v2.Compose(
        [
            v2.RandomResizedCrop(a.size, a.scale, interpolation=InterpolationMode[a.interpolation.upper()]),
            v2.RandomApply([v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], a.p_jitter),
            v2.RandomGrayscale(a.p_gray),
            *[transform for transform in optional if transform],
            v2.RandomHorizontalFlip(a.p_flip),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(a.mean, a.std),
        ]
    )


class Transformed(Dataset):
    """Decoded images in memory, each transformed when it is asked for."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


def per_image(images, augmentation, cores):
    """A function that makes one view of every image by torchvision in `cores` worker processes."""
    data = Transformed(images, torchvision_pipeline(augmentation))
    loader = DataLoader(data, BATCH, num_workers=cores, persistent_workers=True, prefetch_factor=4)

    def run():
        for _ in loader:
            pass

    return run


def batched(x, augmentation, cores, at_once=1):
    """A function that makes one view of every image by `augment`: `at_once` batches at a time, `cores` threads in all."""
    pool = ThreadPoolExecutor(at_once)

    @torch.no_grad()
    def one(step, batch):
        augment(batch, draw(len(batch), generator(0, "bench", step)), augmentation)

    def run():
        torch.set_num_threads(cores // at_once)
        for _ in pool.map(one, *zip(*enumerate(x.split(BATCH)), strict=True)):
            pass

    return run


def rates(functions, n, repeats):
    """Images a second of each function: the median of `repeats` rounds that take turns, after one round to warm up."""
    seconds = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name] += [time.perf_counter() - start] if repeat else []
    return {name: n / statistics.median(values) for name, values in seconds.items()}


def measure(n=1024, repeats=5):
    """Rows of: preset, cores, images a second of both sides in their better form, ours per core, and the ratio."""
    x = synthetic("train", per_class=-(-n // 10)).x[:n]
    pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in x]
    threads, rows = torch.get_num_threads(), []
    for preset, augmentation in {"w2": W2_PAPER, "small": SMALL}.items():
        for cores in (1, 2):
            theirs = {
                "PIL images": per_image(pils, augmentation, cores),
                "tensors": per_image(list(x), augmentation, cores),
            }
            ours = {
                f"{k} batch{'es' * (k > 1)} at once": batched(x, augmentation, cores, k) for k in range(1, cores + 1)
            }
            rate = rates(theirs | ours, n, repeats)
            best = [max(side, key=rate.get) for side in (theirs, ours)]
            rows.append(
                {
                    "preset": preset,
                    "cores": cores,
                    "torchvision": best[0],
                    "torchvision images/s": round(rate[best[0]]),
                    "wssl": best[1],
                    "wssl images/s": round(rate[best[1]]),
                    "wssl images/s per core": round(rate[best[1]] / cores),
                    "ratio": round(rate[best[1]] / rate[best[0]], 2),
                }
            )
    torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(measure()).to_string(index=False))
