"""Every cut against the network run by hand, and probes whose answer is known."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from wssl.data import CROP_FLIP
from wssl.data.images import Images
from wssl.data.views import plain_view
from wssl.evaluation import encoder_layers, knn_accuracy, layer_features, linear_probe, probe_layers
from wssl.evaluation.layers import cuts, standardized
from wssl.models import encoder, projector

VIEW = replace(CROP_FLIP, size=16)


def images(n, seed=0):
    "Two classes that the mean colour tells apart."
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randint(156, (n, 3, 16, 16), generator=draw) + 100 * y.view(-1, 1, 1, 1)
    return Images(x.to(torch.uint8), y, ("dark", "bright"))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = encoder("small", width=4, blocks=(1, 2, 1))
    for module in net.modules():  # at the start every block is its shortcut; here each must change its input
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.2, 0.2)
    return net


def test_cuts_of_the_small_network(net):
    x = torch.randn(5, 3, 16, 16)
    layers = encoder_layers(net, x)
    net.eval()
    expected = {"stem": net.stem(x), "stage1": net.stages[:1](net.stem(x)), "stage2": net.stages[:3](net.stem(x))}
    assert list(layers) == ["stem", "stage1", "stage2", "h"]
    for name, out in expected.items():
        torch.testing.assert_close(layers[name], out.mean((2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layers["h"], net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, stem", [("resnet18", "32"), ("resnet18", "imagenet"), ("resnet50", "32")])
def test_cuts_of_torchvision(name, stem):
    torch.manual_seed(0)
    net, x = encoder(name, stem), torch.randn(2, 3, 32, 32)
    layers = encoder_layers(net, x)
    net.eval()
    with torch.no_grad():
        at = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        torch.testing.assert_close(layers["stem"], at.mean((2, 3)), rtol=1e-5, atol=1e-6)
        for k in (1, 2, 3):
            at = getattr(net, f"layer{k}")(at)
            torch.testing.assert_close(layers[f"stage{k}"], at.mean((2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layers["h"], net.layer4(at).mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_networks_stay_as_they_were(net):
    head = projector(net.out_dim, 8, 4, layers=3)
    net.stages[0].eval()
    state = [{name: value.clone() for name, value in part.state_dict().items()} for part in (net, head)]
    modes = [module.training for module in net.modules()]
    layers = layer_features(net, head, images(20), 7, VIEW)
    assert list(layers) == ["stem", "stage1", "stage2", "h", "p0", "p1", "z"]
    assert modes == [module.training for module in net.modules()] and head.training
    assert all(
        torch.equal(old[name], value)
        for part, old in zip((net, head), state, strict=True)
        for name, value in part.state_dict().items()
    )
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(out.requires_grad for out in layers.values())
    net.stages[-1].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        layer_features(net, head, images(20), 7, VIEW)
    assert not any(module._forward_hooks for module in net.modules())


def test_rows_do_not_depend_on_the_batch(net):
    head = projector(net.out_dim, 8, 4)
    few, all_at_once = (layer_features(net, head, images(23), n, VIEW) for n in (5, 100))
    for name, out in few.items():
        torch.testing.assert_close(out, all_at_once[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(few["h"], net.eval()(plain_view(images(23).x, VIEW)), rtol=1e-4, atol=1e-5)


def test_probes_of_layers_are_the_probes_of_their_rows(net):
    class Forget(nn.Module):
        def forward(self, h):
            return torch.zeros(len(h), 3)

    train, test = images(60), images(31, 1)
    found = probe_layers(net, Forget(), train, test, seed=3, knn_k=5, epochs=20, augmentation=VIEW)
    assert list(found) == ["stem", "stage1", "stage2", "h", "z"]
    a, b = (layer_features(net, Forget(), part, augmentation=VIEW) for part in (train, test))
    for name in ("stem", "h"):
        mean, std = a[name].double().mean(0), a[name].double().std(0, correction=0)
        std[std == 0] = 1  # units that the ReLU keeps shut
        rows = (((part[name].double() - mean) / std).float() for part in (a, b))
        learn, judge = rows
        assert found[name]["linear"] == linear_probe(learn, train.y, judge, test.y, 20, batch=256, seed=3).top1
        assert found[name]["knn"] == knn_accuracy(a[name], train.y, b[name], test.y, 5)
    assert found["stem"]["linear"] == 1 and found["stem"]["knn"] > 0.8
    chance = max((test.y == 0).double().mean(), (test.y == 1).double().mean())
    assert found["z"]["linear"] <= chance and found["z"]["knn"] <= chance
    only = probe_layers(net, Forget(), train, test, kinds=("knn",), knn_k=5, augmentation=VIEW)
    assert only == {name: {"knn": values["knn"]} for name, values in found.items()}


def test_standardized_leaves_dead_features_finite():
    train = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.0, 1e-3]) + torch.tensor([0.0, 5.0, 7.0, 0.0])
    a, b = standardized(train, train[:5] + torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(a.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert torch.equal(b[:, 2], torch.ones(5)) and a.dtype == train.dtype


def test_bad_input_is_one_sentence(net):
    train = images(10)
    unlabelled = Images(train.x, torch.full((10,), -1))
    for call in (
        lambda: cuts(nn.Linear(3, 3)),
        lambda: encoder_layers(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), torch.zeros(1, 3, 1, 1)),
        lambda: probe_layers(net, nn.Identity(), train, train, kinds=()),
        lambda: probe_layers(net, nn.Identity(), train, train, kinds=("svm",)),
        lambda: probe_layers(net, nn.Identity(), unlabelled, train, augmentation=VIEW),
    ):
        with pytest.raises(ValueError, match="^expected .*; received "):
            call()
