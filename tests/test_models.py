"""Encoders, heads and the momentum network: shapes and sizes as published, the average as its formula says."""

import copy
import sys
import types

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.ops import MLP

from wssl.core.checks import InputError
from wssl.models import MomentumNetwork, SmallResNet, encoder, initialised_from, predictor, projector
from wssl.models.encoders import BasicBlock


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


# ---- encoders


def flops_by_hand(width, blocks, stem_stride, side=32):
    """Two for each multiply-add of each convolution, counted from the architecture's description."""
    side //= stem_stride
    total, width_in = 2 * 9 * 3 * width * side**2, width
    for stage, count in enumerate(blocks):
        out, side = width * 2**stage, side if stage == 0 else side // 2
        for _ in range(count):
            total += 2 * (9 * width_in * out + 9 * out * out + (width_in * out if width_in != out else 0)) * side**2
            width_in = out
    return total


@pytest.mark.parametrize("width,blocks,stride", [(16, (1, 1, 1, 1), 2), (8, (1, 2, 1), 1), (4, (2,), 2)])
def test_work_of_an_encoder(width, blocks, stride):
    net = SmallResNet(width, blocks, stride).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        h = net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == flops_by_hand(width, blocks, stride)
    assert h.shape == (1, net.out_dim) and net.out_dim == width * 2 ** (len(blocks) - 1)


def test_default_encoder_is_small():
    net = encoder("small")
    assert flops_by_hand(16, (1, 1, 1, 1), 2) <= 10e6 and 128 <= net.out_dim <= 256
    with pytest.raises(
        InputError,
        match="an encoder among small, small-narrow, small-wide, small-patch, resnet18, resnet50, vit-small; received large",
    ):
        encoder("large")
    with pytest.raises(InputError, match="a width and blocks of at least 1"):
        SmallResNet(blocks=())


@pytest.mark.parametrize("width_in,width,stride", [(6, 6, 1), (6, 12, 2), (6, 12, 1), (6, 6, 2)])
def test_block_is_torchvisions(width_in, width, stride):
    """Value and gradient of torchvision's BasicBlock with the same weights, in training mode."""
    ours = BasicBlock(width_in, width, stride).double()
    nn.init.normal_(ours.bn2.weight)
    projection = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    theirs = TorchvisionBlock(width_in, width, stride, projection if stride > 1 or width_in != width else None).double()
    theirs.load_state_dict({name.replace("shortcut", "downsample"): value for name, value in ours.state_dict().items()})
    x = torch.randn(4, width_in, 8, 8, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [block(xi) for block, xi in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_encoder_starts_sane_and_trains():
    with initialised_from(0, "encoder"):
        net = SmallResNet()
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    h = net(x)
    assert torch.isfinite(h).all() and 0.1 < h.std() < 10 and (h >= 0).all()
    h.var(0).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert sum(bool(p.grad.any()) for p in net.parameters()) > len(list(net.parameters())) / 2
    assert net(torch.randn(2, 3, 64, 48)).shape == (2, 128)


def test_encoder_gives_the_same_in_both_memory_formats():
    net = SmallResNet().double()
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x), copy.deepcopy(net)(x.contiguous(memory_format=torch.channels_last)))


def test_weights_are_a_function_of_seed_and_name():
    torch.manual_seed(1)
    expected = torch.rand(3)

    def weights(*key):
        with initialised_from(*key):
            return nn.utils.parameters_to_vector([*SmallResNet(4).parameters(), *projector(8, 8, 4).parameters()])

    torch.manual_seed(1)
    first = weights(0, "net")
    assert torch.equal(torch.rand(3), expected), "building a network moved the global generator"
    assert torch.equal(first, weights(0, "net"))
    assert not torch.equal(first, weights(1, "net")) and not torch.equal(first, weights(0, "other"))


def test_small_encoder_of_a_seed_stays_what_it_was():
    """Weights from a seed belong to runs that are recorded: the numbers were written down before the ResNets came in."""
    with initialised_from(0, "encoder"):
        net = encoder("small").eval()
    x = torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        h = net(x)[0]
    torch.testing.assert_close(h[:4], torch.tensor([0.204158, 0.151607, 0.102297, 0.0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h.sum().item(), 11.1326, rtol=1e-4, atol=1e-3)


def resnet_by_hand(depth, stem, side):
    """Operations (two a multiply-add) and parameters, counted from He et al.'s table of layers."""
    blocks, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]
    kernel, padding, stride = {"32": (3, 1, 1), "34": (3, 2, 1), "imagenet": (7, 3, 2)}[stem]
    macs = parameters = 0

    def conv(cin, cout, k, side):
        nonlocal macs, parameters
        macs += cin * cout * k * k * side * side
        parameters += cin * cout * k * k + 2 * cout  # with the scale and shift of its BatchNorm

    side = (side + 2 * padding - kernel) // stride + 1
    conv(3, 64, kernel, side)
    side, cin = (side + 1) // 2 if stem == "imagenet" else side, 64
    for stage, count in enumerate(blocks):
        width, out = 64 * 2**stage, 64 * 2**stage * expansion
        for k in range(count):
            before, side = side, -(-side // 2) if stage and not k else side
            if expansion == 1:
                conv(cin, width, 3, side), conv(width, width, 3, side)
            else:  # torchvision's stride stands in the 3 by 3 convolution
                conv(cin, width, 1, before), conv(width, width, 3, side), conv(width, out, 1, side)
            if cin != out or before != side:
                conv(cin, out, 1, side)
            cin = out
    return 2 * macs, parameters


@pytest.mark.parametrize("depth,out_dim", [(18, 512), (50, 2048)])
@pytest.mark.parametrize("stem,side", [("32", 32), ("34", 32), ("imagenet", 224)])
def test_work_and_parameters_of_the_resnets(depth, out_dim, stem, side):
    with torch.device("meta"):
        net = encoder(f"resnet{depth}", stem=stem).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        h = net(torch.empty(2, 3, side, side, device="meta"))
    work, parameters = resnet_by_hand(depth, stem, side)
    assert counter.get_total_flops() == 2 * work and n_parameters(net) == parameters
    assert h.shape == (2, out_dim) and net.out_dim == out_dim


def test_published_work_of_a_resnet18():
    """1.1108 and 1.4071 GFLOP a view of 32 pixels, and 1.8 multiply-adds of 224 pixels (He et al. 2016, Table 1)."""
    assert round(resnet_by_hand(18, "32", 32)[0] / 1e9, 4) == 1.1108
    assert round(resnet_by_hand(18, "34", 32)[0] / 1e9, 4) == 1.4071
    assert round(resnet_by_hand(18, "imagenet", 224)[0] / 2e9, 1) == 1.8
    assert n_parameters(encoder("resnet18")) == n_parameters(encoder("resnet18", stem="34"))


def test_the_default_stem_is_32():
    conv, default = (encoder("resnet18", stem=stem).conv1 for stem in ("32", None))
    assert conv.padding == default.padding == (1, 1) and conv.kernel_size == (3, 3)


def test_resnet_is_torchvisions():
    """The imagenet stem with torchvision's weights gives torchvision's features; each block starts as its shortcut."""
    theirs, ours = torchvision.models.resnet18(weights=None).eval(), encoder("resnet18", stem="imagenet").eval()
    assert all(not block.bn2.weight.any() for stage in (ours.layer1, ours.layer4) for block in stage)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name,stem", [("resnet18", "32"), ("resnet18", "34"), ("resnet50", "32")])
def test_resnets_give_the_same_in_both_memory_formats(name, stem):
    with initialised_from(0, name):
        net = encoder(name, stem=stem).double()
    fast, x = copy.deepcopy(net).to(memory_format=torch.channels_last), torch.randn(4, 3, 16, 16).double()
    kept = []
    fast.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    torch.testing.assert_close(fast(x), net(x))
    assert kept[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "name,stem", [("small", None), ("resnet18", "32"), ("resnet18", "imagenet"), ("resnet50", "34")]
)
def test_an_encoder_is_one_graph(name, stem):
    torch._dynamo.reset()
    net, x = encoder(name, stem=stem), torch.randn(4, 3, 32, 32)
    reference = copy.deepcopy(net)
    traced = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x), reference(x), rtol=1e-4, atol=1e-4)


def test_refused_stems():
    with pytest.raises(InputError, match="a stem among 32, 34, imagenet; received 36"):
        encoder("resnet50", stem="36")
    for name in ("small", "vit-small"):
        with pytest.raises(InputError, match=f"a stem for a ResNet only; received stem 32 for {name}"):
            encoder(name, stem="32")


def test_vision_transformer_is_asked_of_timm(monkeypatch):
    """A stand-in that records what it is asked for: timm is an extra."""
    asked = {}

    def create_model(name, **options):
        asked.update(name=name, **options)
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(384))
        net.num_features = 384
        return net

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    net = encoder("vit-small")
    assert net.out_dim == 384 and net(torch.rand(2, 3, 32, 32)).shape == (2, 384)
    at_32 = dict(img_size=32, patch_size=4, num_classes=0, dynamic_img_size=True, pretrained=False)
    assert asked == dict(name="vit_small_patch16_224", **at_32)
    encoder("vit-small", img_size=224, patch_size=16)
    assert asked["img_size"] == 224 and asked["patch_size"] == 16


def test_without_timm_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import of a missing package looks like
    with pytest.raises(InputError, match=r"expected timm for vit-small \(pip install timm\)"):
        encoder("vit-small")


# ---- heads


@pytest.mark.parametrize(
    "kwargs,expected",
    [
        # hand-counted from the papers: weights, BatchNorm's scale and shift, biases
        (dict(in_dim=512, hidden=2048, out=256, layers=3), 512 * 2048 + 2048**2 + 2048 * 256 + 4 * 2048 + 256),
        (dict(in_dim=512, hidden=4096, out=256), 512 * 4096 + 4096 * 256 + 2 * 4096 + 256),
        (dict(in_dim=512, hidden=2048, out=256, bn=False), 513 * 2048 + 2049 * 256),
        (
            dict(in_dim=512, hidden=2048, out=2048, layers=3, last_bn=True, last_affine=False),
            512 * 2048 + 2 * 2048**2 + 4 * 2048,
        ),
        (
            dict(in_dim=512, hidden=2048, out=256, layers=3, last_bn=True),
            512 * 2048 + 2048**2 + 2048 * 256 + 4 * 2048 + 512,
        ),
        (dict(in_dim=128, out=64, layers=1), 129 * 64),
    ],
    ids=["W2", "BYOL", "SimCLR", "SimSiam", "NNCLR", "linear"],
)
def test_published_projectors(kwargs, expected):
    net = projector(**kwargs)
    assert n_parameters(net) == expected
    assert net(torch.randn(3, kwargs["in_dim"])).shape == (3, kwargs["out"])
    assert not any(isinstance(layer, nn.ReLU) for layer in list(net)[-1:])


def test_projector_is_torchvisions_mlp():
    ours = projector(6, 10, 4, layers=3)
    theirs = MLP(6, [10, 10, 4], norm_layer=nn.BatchNorm1d, bias=True)
    copied, linear = ours.state_dict(), [layer for layer in theirs if isinstance(layer, nn.Linear)]
    weights = [layer for layer in ours if isinstance(layer, nn.Linear)]
    for mine, other in zip(weights, linear, strict=True):
        other.weight.data, other.bias.data = (
            mine.weight.data.clone(),
            torch.zeros_like(other.bias) if mine.bias is None else mine.bias.data.clone(),
        )
    x = torch.randn(16, 6)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert len(copied) == 3 + 1 + 2 * 5


def test_predictor_and_refused_heads():
    q = predictor(256, 2048)
    assert n_parameters(q) == 2 * 256 * 2048 + 2 * 2048 + 256 and q(torch.randn(3, 256)).shape == (3, 256)
    for wrong in (dict(layers=-1), dict(out=0), dict(hidden=0)):
        with pytest.raises(InputError, match="sizes of at least 1 and layers of at least 0"):
            projector(4, **wrong)


def test_no_projector_is_the_representation_itself():
    h = torch.randn(5, 4)
    assert projector(4, out=4, layers=0)(h) is h
    with pytest.raises(InputError, match="4 dimensions, as the representation, without a projector; received 3"):
        projector(4, out=3, layers=0)


# ---- momentum


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), projector(4 * 36, 8, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_momentum_is_the_formula(seed, momenta):
    """The weighted sum over all past weights, in numpy's float64."""
    g = torch.Generator().manual_seed(seed)
    net = network()
    teacher = MomentumNetwork(net)
    expected = [p.detach().double().numpy() for p in net.parameters()]
    for tau in momenta:
        for p in net.parameters():
            p.data.copy_(torch.randn(p.shape, generator=g))
        teacher.update(net, tau)
        expected = [
            tau * e + (1 - tau) * p.detach().double().numpy() for e, p in zip(expected, net.parameters(), strict=True)
        ]
    for p, e in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(p.double(), torch.from_numpy(e), atol=1e-5, rtol=1e-5)


def moved(net):
    net = copy.deepcopy(net)
    for p in net.parameters():
        p.data.add_(torch.randn_like(p))
    return net


def test_momentum_at_its_ends_is_exact():
    net = network()
    teacher, other = MomentumNetwork(net), moved(net)
    teacher.update(other, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), net.parameters(), strict=True))
    teacher.update(other, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), other.parameters(), strict=True))


def test_only_parameters_follow_and_in_place():
    net, x = network(), torch.randn(8, 3, 8, 8)
    teacher = MomentumNetwork(net)
    net(3 * x + 1)
    buffers = {name: value.clone() for name, value in teacher.named_buffers()}
    addresses = [p.data_ptr() for p in teacher.parameters()]
    teacher.update(moved(net), 0.5)
    assert all(torch.equal(value, buffers[name]) for name, value in teacher.named_buffers())
    assert addresses == [p.data_ptr() for p in teacher.parameters()]
    teacher(x)
    assert teacher.net[1].num_batches_tracked == 1
    torch.testing.assert_close(teacher.net[1].running_mean, 0.1 * teacher.net[0](x).mean((0, 2, 3)))


def test_no_gradient_reaches_the_teacher():
    net = network()
    teacher, x = MomentumNetwork(net), torch.randn(8, 3, 8, 8, requires_grad=True)
    target = teacher(x)
    assert not target.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    (net(x) - target).square().sum().backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(p.grad is not None for p in net.parameters())
    teacher.update(net, 0.9)  # while the online network has gradients
    assert all(p.requires_grad for p in net.parameters())


def test_state_survives_a_checkpoint(tmp_path):
    net = network()
    teacher = MomentumNetwork(net)
    teacher.update(moved(net), 0.3)
    teacher(torch.randn(8, 3, 8, 8))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    other = MomentumNetwork(network())
    other.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), teacher.state_dict().values(), strict=True)
    )
    assert not any(p.requires_grad for p in other.parameters())


def test_refused_updates():
    teacher = MomentumNetwork(network())
    for momentum in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"a momentum in \[0, 1\]"):
            teacher.update(network(), momentum)
    with pytest.raises(InputError, match="a network with the parameters of the copied one"):
        teacher.update(projector(8, 8, 5), 0.9)


@pytest.mark.parametrize("size", [16, 24, 32])
def test_the_short_ways_of_bfloat16_are_as_near_to_float32_as_the_library_is(size, monkeypatch):
    net = encoder("small").train()
    x = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(size))
    direction = torch.randn(64, net.out_dim, generator=torch.Generator().manual_seed(1))
    for block in net.stages:  # as after some training: the shortcuts are not alone
        torch.nn.init.ones_(block.bn2.weight)

    def value_and_gradient(narrow):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            h = net(x)
        (h.float() * direction).sum().backward()
        return h.detach().float(), torch.cat([p.grad.flatten() for p in net.parameters()])

    def errors(narrow):
        return [(a - b).norm() / b.norm() for a, b in zip(narrow, exact, strict=True)]

    exact = value_and_gradient(False)
    ours = errors(value_and_gradient(True))
    monkeypatch.setattr("wssl.models.blocks.SMALL_MAP", 0)
    monkeypatch.setattr("wssl.models.blocks.relu", torch.relu)
    library = errors(value_and_gradient(True))
    assert 0 < library[0] < 0.02 and 0 < library[1] < 0.3
    assert ours[0] < 1.2 * library[0] and ours[1] < 1.2 * library[1]


def test_a_diverged_training_is_not_taken_for_a_dead_one():
    from wssl.models.blocks import relu

    nan = torch.tensor([float("nan"), -float("nan"), 1.0, -1.0]).bfloat16()
    assert relu(nan).isnan().tolist() == [True, True, False, False]
