"""ExCB's presets: the published numbers, and a few steps on generated images."""

import math
from dataclasses import replace

import pytest
from PIL import Image

from wssl.companion.cli import build_parser, train_config
from wssl.training import train
from wssl.training.presets import PRESETS, excb_paper

NUMBERS = {  # encoder, K, batch, rate, decay at the start and end, epochs, local crops
    "cifar10": ("resnet18", 2560, 256, 0.3, 1e-4, None, 200, "solo-asymmetric"),
    "imagenet": ("resnet50", 65_536, 1024, 0.6, 1e-4, None, 400, "excb-imagenet"),
    "imagenet-vit": ("vit-small", 65_536, 1024, 2e-3, 0.04, 0.4, 800, "excb-imagenet"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_preset_has_the_published_numbers(name):
    c = PRESETS[f"excb-{name}"]()
    found = c.encoder, c.method.prototypes, c.batch, c.lr, c.weight_decay, c.weight_decay_end, c.epochs, c.augmentation
    assert found == NUMBERS[name]
    assert (c.warmup * c.epochs, c.lr_end, c.method.centroid_decay) == (pytest.approx(10), 1e-4, 10.0)
    assert (c.method.temperature, c.method.teacher_temperature) == (0.1, 0.04)
    assert c.method.momentum_end == 1.0 and (name == "cifar10" or c.method.momentum == 0.996)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_preset_trains(tmp_path, name):
    """Two steps on generated images; 48 pixels for ImageNet's ResNet, since 224 would take a minute, fewer prototypes, and no k-means, which wants as many images as those."""
    if name == "imagenet-vit":
        pytest.importorskip("timm", reason="vit-small needs the extra timm")
    config = PRESETS[f"excb-{name}"]()
    size = {"cifar10": 32, "imagenet": 48, "imagenet-vit": 96}[name]
    little = dict(source="synthetic", size=size, per_class=1, test_per_class=1, batch=5, epochs=1, warmup=0.5)
    little |= dict(probe="none", precision="float32", eval_every=0, knn_k=3, out=str(tmp_path / "run"), device="cpu")
    if name == "imagenet-vit":
        for number in range(6):  # few images: every view is enlarged to 224 pixels
            path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 96), (40 * number, 90, 120)).save(path)
        little |= dict(source=f"folder:{tmp_path / 'photos'}", per_class=None, test_per_class=None)
        little |= dict(augmentation="small", batch=2)
    few = dict(kmeans=0, prototypes=min(2048, config.method.prototypes))
    run = train(replace(config, method=replace(config.method, **few), **little), say=None, events=False)
    assert math.isfinite(run.final["loss"]) and run.history[-1]["step"] == 2
    assert 0 < run.final["confidence"] <= 1 and 0 <= run.final["cluster_empty"] < 1


def test_wrong_presets_are_one_sentence():
    for wrong in (dict(method="byol"), dict(regularizer="w2")):
        with pytest.raises(ValueError, match=r"^expected method excb without a regularizer; received "):
            PRESETS["excb-cifar10"](**wrong)
    with pytest.raises(ValueError, match=r"^expected a setting \(cifar10, .*; received 'mnist'"):
        excb_paper("mnist")


def test_the_command_line_takes_the_method_of_a_preset():
    words = ["train", "--preset", "excb-cifar10", "--epochs", "20"]
    config = train_config(build_parser(words).parse_args(words))
    assert config == replace(PRESETS["excb-cifar10"](epochs=20), out=config.out)
