"""Checkpoints of other projects: the backbone under any prefix, whole, or one sentence with a missing and an unknown name."""

import argparse
import datetime
import enum
import functools
import io
import pathlib
import pickle
import tarfile
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from wssl.core.checks import InputError
from wssl.evaluation.backbones import backbone
from wssl.evaluation.weights import Unpickler, load_weights, read_checkpoint

torch.set_num_threads(1)


class Narrow(ResNet):
    """A ResNet a sixteenth as wide, with all its names."""

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        return super()._make_layer(block, planes // 16, blocks, stride, dilate)


def resnet18():
    return Narrow(BasicBlock, [2, 2, 2, 2])


def resnet34():
    return Narrow(BasicBlock, [3, 4, 6, 3])


def resnet50():
    return Narrow(Bottleneck, [3, 4, 6, 3])


@pytest.fixture(scope="module")
def trained():
    """A small network with the names of ResNet-18, every weight of its own value; and one that follows it."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = resnet18()
    for k, value in enumerate(network.state_dict().values()):
        value.copy_(value + 0.001 * (k + 1) if value.is_floating_point() else value)
    return network.state_dict()


def shifted(state, by=1.0):
    return {name: value + by if value.is_floating_point() else value for name, value in state.items()}


def under(prefix, state, head=("fc.",)):
    return {prefix + name: value for name, value in state.items() if not name.startswith(head)}


def numbered(state):
    """As `nn.Sequential(*list(resnet.children())[:-1])` names its parts."""
    network = resnet18()
    network.load_state_dict(state)
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


def mlp(prefix, *sizes):
    """A projector: linear layers of any size, with normalisation."""
    found = {}
    for k, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        found |= {f"{prefix}{3 * k}.weight": torch.ones(b, a), f"{prefix}{3 * k}.bias": torch.ones(b)}
        found |= {f"{prefix}{3 * k + 1}.running_mean": torch.ones(b)}
    return found


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def lightning(state):
    return {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x", "current_score": torch.tensor(0.5)}},
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [],
        "hyper_parameters": {
            "lr": np.float64(0.1),
            "path": pathlib.PurePosixPath("x"),
            "args": argparse.Namespace(a=1),
        },
    }


def layouts(a):
    b = shifted(a)  # the copy that is not to be taken
    fc = mlp("fc.", 512, 512, 128)
    return {
        "plain": (a, "no prefix"),
        "plain without a head": (under("", a), "no prefix"),
        "DDP": ({f"module.{k}": v for k, v in a.items()}, "prefix module."),
        "MoCo v2": (
            {
                "epoch": 200,
                "arch": "resnet18",
                "optimizer": OPTIMIZER,
                "state_dict": under("module.encoder_q.", a)
                | {f"module.encoder_q.{k}": v for k, v in fc.items()}
                | under("module.encoder_k.", b)
                | {f"module.encoder_k.{k}": v for k, v in fc.items()}
                | {"module.queue": torch.ones(128, 4), "module.queue_ptr": torch.zeros(1).long()},
            },
            "state_dict, prefix module.encoder_q.",
        ),
        "MoCo v3": (
            {
                "state_dict": under("module.base_encoder.", a)
                | mlp("module.base_encoder.fc.", 512, 4096, 256)
                | under("module.momentum_encoder.", b)
                | mlp("module.predictor.", 256, 4096, 256)
            },
            "state_dict, prefix module.base_encoder.",
        ),
        "DINO": (
            {
                "student": under("module.backbone.", b) | mlp("module.head.mlp.", 512, 2048, 256),
                "teacher": under("backbone.", a)
                | mlp("head.mlp.", 512, 2048, 256)
                | {"head.last_layer.weight_g": torch.ones(9, 1)},
                "optimizer": OPTIMIZER,
                "epoch": 1,
                "args": argparse.Namespace(arch="resnet18", output_dir=pathlib.PurePosixPath("x")),
                "dino_loss": {"center": torch.zeros(1, 9)},
            },
            "teacher, prefix backbone.",
        ),
        "DINO, both behind DDP": (
            {"student": under("module.backbone.", b), "teacher": under("module.backbone.", a)},
            "teacher, prefix module.backbone.",
        ),
        "DINOv2": (
            {
                "model": under("student.backbone.", b)
                | under("teacher.backbone.", a)
                | mlp("teacher.dino_head.mlp.", 512, 9)
            },
            "model, prefix teacher.backbone.",
        ),
        "solo-learn": (
            lightning(
                under("backbone.", a)
                | {"classifier.weight": torch.ones(10, 512), "classifier.bias": torch.ones(10)}
                | mlp("projector.", 512, 2048, 256)
                | under("momentum_backbone.", b)
                | mlp("momentum_projector.", 512, 2048, 256)
            ),
            "state_dict, prefix backbone.",
        ),
        "lightly": (
            lightning(under("backbone.", a) | mlp("projection_head.layers.", 512, 512, 128)),
            "state_dict, prefix backbone.",
        ),
        "lightly, numbered": (
            {f"backbone.{k}": v for k, v in numbered(a).items()}
            | {f"backbone_momentum.{k}": v for k, v in numbered(b).items()}
            | mlp("projection_head.layers.", 512, 512, 128),
            "prefix backbone.",
        ),
        "lightly's DINO": (
            lightning(
                under("teacher_backbone.", a) | under("student_backbone.", b) | mlp("student_head.layers.", 512, 9)
            ),
            "state_dict, prefix teacher_backbone.",
        ),
        "VICReg": (
            {"epoch": 4, "model": under("module.backbone.", a) | mlp("module.projector.", 512, 8192, 8192 // 64)},
            "model, prefix module.backbone.",
        ),
        "SwAV": (
            {"state_dict": under("module.", a) | mlp("module.projection_head.", 512, 2048, 128)}
            | {"rng": torch.zeros(3)},
            "state_dict, prefix module.",
        ),
        "SimSiam": (
            {
                "state_dict": under("module.encoder.", a)
                | mlp("module.encoder.fc.", 512, 512, 512)
                | mlp("module.predictor.", 512, 128, 512)
            },
            "state_dict, prefix module.encoder.",
        ),
        "BYOL with net": (
            under("online_encoder.net.", a)
            | mlp("online_encoder.projector.net.", 512, 4096, 256)
            | under("target_encoder.net.", b)
            | under("net.", a),
            None,
        ),
        "BYOL with encoder": (
            lightning(under("online_network.encoder.", a) | under("target_network.encoder.", b)),
            "state_dict, prefix online_network.encoder.",
        ),
        "BYOL as two states": (
            {
                "online_network_state_dict": {f"encoder.{k}": v for k, v in numbered(a).items()}
                | mlp("projection.net.", 512, 512, 128),
                "target_network_state_dict": {f"encoder.{k}": v for k, v in numbered(b).items()},
                "optimizer_state_dict": OPTIMIZER,
            },
            "online_network_state_dict, prefix encoder.",
        ),
        "SimCLR with backbone": (
            {"epoch": 1, "arch": "resnet18", "state_dict": under("backbone.", a) | mlp("backbone.fc.", 512, 512, 128)},
            "state_dict, prefix backbone.",
        ),
        "SupContrast": (
            {"opt": argparse.Namespace(lr=1), "model": under("encoder.module.", a) | mlp("head.", 512, 512, 128)},
            "model, prefix encoder.module.",
        ),
        "model_state_dict": ({"model_state_dict": a, "loss": 0.1}, "model_state_dict"),
        "net": ({"net": {f"module.{k}": v for k, v in a.items()}, "acc": 93.2}, "net, prefix module."),
        "compiled": ({f"_orig_mod.{k}": v for k, v in a.items()}, "prefix _orig_mod."),
        "compiled behind DDP": ({f"module._orig_mod.{k}": v for k, v in a.items()}, "prefix module._orig_mod."),
        "compiled within": (
            {"model": {f"backbone.{k.replace('layer1.', 'layer1._orig_mod.')}": v for k, v in a.items()}},
            "model, prefix backbone.",
        ),
        "Lightning": (lightning({f"model.{k}": v for k, v in a.items()}), "state_dict, prefix model."),
        "VISSL": (
            {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", a), "heads": {}}}}},
            "classy_state_dict, base_model, model, trunk, prefix _feature_blocks.",
        ),
        "timm with an average": ({"state_dict": a, "state_dict_ema": b, "arch": "x"}, "state_dict"),
        "a head of another width": (a | {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}, "no prefix"),
        "without counts of batches": ({k: v for k, v in a.items() if "num_batches" not in k}, "no prefix"),
        "half precision": ({k: v.half() if v.is_floating_point() else v for k, v in a.items()}, "no prefix"),
        "the same twice": (under("model.", a) | under("backbone.", a), None),
    }


NAMES = list(layouts(OrderedDict(resnet18().state_dict())))


def headless():
    network = resnet18()
    network.fc = nn.Identity()
    return network


def holds(network, state, most=0.0):
    found = network.state_dict()
    return all(
        torch.allclose(value, state[name], atol=most, rtol=0)
        for name, value in found.items()
        if not name.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_is_found(tmp_path, trained, name):
    checkpoint, place = layouts(trained)[name]
    torch.save(checkpoint, tmp_path / "a.pth.tar")
    network = headless()
    said = load_weights(network, tmp_path / "a.pth.tar", "fc")
    assert holds(network, trained, 0.01 if name == "half precision" else 0.0)
    assert place is None or f"({place})" in said, said


def test_what_is_ignored_is_counted(tmp_path, trained):
    torch.save({"state_dict": under("backbone.", trained) | mlp("projector.", 512, 128)}, tmp_path / "a.ckpt")
    said = load_weights(headless(), tmp_path / "a.ckpt", "fc")
    assert (
        said == "weights from a.ckpt (state_dict, prefix backbone.); 3 other entries ignored, like projector.0.weight"
    )


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "pth.tar", "pkl"])
def test_whatever_the_file_is_called_and_in_the_old_format(tmp_path, trained, suffix):
    checkpoint = layouts(trained)["DINO"][0]
    for zipped in (True, False):
        torch.save(checkpoint, tmp_path / f"a.{suffix}", _use_new_zipfile_serialization=zipped)
        network = headless()
        load_weights(network, tmp_path / f"a.{suffix}", "fc")
        assert holds(network, trained)


def test_safetensors_under_a_prefix(tmp_path, trained):
    save_file({k: v.clone() for k, v in under("backbone.", trained).items()}, tmp_path / "model.safetensors")
    network = headless()
    load_weights(network, tmp_path / "model.safetensors", "fc")
    assert holds(network, trained)


# ---- what does not fit


def refused(tmp_path, checkpoint, *words):
    torch.save(checkpoint, tmp_path / "a.pth")
    network = headless()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(network, tmp_path / "a.pth", "fc")
    text = str(error.value)
    assert text.startswith("expected ") and "\n" not in text and len(text) < 400, text
    assert all(word in text for word in words), text
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "nothing was loaded"


def test_one_missing_and_one_unknown_name_are_shown(tmp_path, trained):
    renamed = {name.replace("layer4", "stage4"): value for name, value in trained.items()}
    refused(
        tmp_path, {"model": renamed}, "(model)", "missing, like layer4.0.conv1.weight (32, 16, 3, 3)", "unknown, like"
    )
    some = {name: value for name, value in trained.items() if name != "layer2.1.bn2.running_var"}
    refused(tmp_path, some, "1 missing, like layer2.1.bn2.running_var (8,)")


def test_a_deeper_network_is_not_cut_to_size(tmp_path):
    refused(tmp_path, resnet34().state_dict(), "0 missing", "unknown, like layer1.2.conv1.weight")
    refused(tmp_path, {f"module.{k}": v for k, v in resnet34().state_dict().items()}, "module.layer1.2.conv1.weight")


def test_another_shape_is_shown_with_both(tmp_path):
    refused(tmp_path, resnet50().state_dict(), "layer1.0.conv1.weight (4, 64, 3, 3) (there (4, 64, 1, 1))")


def test_names_of_another_library(tmp_path):
    theirs = {
        "resnet.embedder.embedder.convolution.weight": torch.zeros(64, 3, 7, 7),
        "classifier.1.bias": torch.ones(9),
    }
    refused(tmp_path, theirs, "missing conv1.weight", "unknown resnet.embedder.embedder.convolution.weight")


def test_only_a_projector(tmp_path):
    refused(tmp_path, {"state_dict": mlp("projector.", 512, 128)}, "missing conv1.weight", "unknown projector.0.weight")


def test_two_that_differ_are_not_chosen_from(tmp_path, trained):
    both = under("encoder.", trained) | under("encoder2.", shifted(trained))
    refused(tmp_path, both, "two that differ (prefix encoder.; prefix encoder2.)")


def test_what_diverged_is_refused(tmp_path, trained):
    broken = dict(trained) | {"layer3.0.conv1.weight": trained["layer3.0.conv1.weight"] * float("nan")}
    refused(tmp_path, broken, "finite weights", "layer3.0.conv1.weight")


@pytest.mark.parametrize("kind", ["module", "numpy", "text", "pickle", "list", "script", "nothing"])
def test_what_holds_no_tensors_by_name(tmp_path, kind):
    path = tmp_path / "a.pth"
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    elif kind in ("text", "pickle"):
        path.write_bytes({"text": b"<html>404", "pickle": pickle.dumps({"a": np.ones(3)})}[kind])
    else:
        values = {"module": resnet18(), "numpy": {"a": np.ones(3)}, "list": [torch.ones(2)], "nothing": {}}
        torch.save(values[kind], path)
    says = {"module": "a pickled object Narrow: save its state_dict", "script": "TorchScript"}.get(kind, "received")
    with pytest.raises(InputError, match=says) as error:
        load_weights(headless(), path, "fc")
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


class OwnDict(dict):
    pass


class OwnList(list):
    pass


class Kind(enum.Enum):
    LARGE = 3


OBJECTS = {
    "a dict of its own": OwnDict(a=1, b={"c": OwnDict(d=2)}),
    "a list of its own": OwnList([1, OwnList([2])]),
    "a default dict": defaultdict(OwnList, a=OwnList([1])),
    "an enumeration": Kind.LARGE,
    "a date": datetime.datetime(2020, 1, 1),
    "a function": np.mean,
    "a class": nn.Linear,
    "a partial": functools.partial(torch.optim.SGD, lr=0.1),
    "an array": np.ones((2, 3)),
    "a generator's state": np.random.default_rng(0).bit_generator.state,
    "a module": nn.Linear(2, 2),
    "a number": np.float32(3),
    "a set": {1, 2},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", OBJECTS)
def test_other_objects_beside_the_weights_do_not_matter(tmp_path, trained, name, zipped):
    checkpoint = {"config": OBJECTS[name], "state_dict": trained, "again": [OBJECTS[name]]}
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    network = headless()
    assert "(state_dict)" in load_weights(network, tmp_path / "a.pth", "fc") and holds(network, trained)


def test_a_checkpoint_that_lightning_wrote(tmp_path, trained):
    lightning = pytest.importorskip("pytorch_lightning", reason="writes the checkpoint")

    class Mine(lightning.LightningModule):
        def __init__(self, lr=0.1, path=pathlib.Path("x")):
            super().__init__()
            self.save_hyperparameters()
            self.backbone = resnet18()
            self.projector = nn.Linear(512, 8)

        def training_step(self, batch, _):
            return self.projector.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.projector.parameters(), lr=0.1)

    model = Mine()
    model.backbone.load_state_dict(trained)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, torch.utils.data.DataLoader(torch.ones(2, 1), batch_size=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    network = headless()
    assert "(state_dict, prefix backbone.)" in load_weights(network, tmp_path / "a.ckpt", "fc")
    assert holds(network, trained)


class Canary:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(Canary.path),)


def test_a_tar_archive_is_none(tmp_path):
    with tarfile.open(tmp_path / "a.pth.tar", "w"):
        pass
    with pytest.raises(InputError, match="expected weights in a.pth.tar; received a tar archive"):
        read_checkpoint(tmp_path / "a.pth.tar")


GADGETS = (
    "builtins eval",
    "os system",
    "posix system",
    "torch.hub load",
    "torch._utils _import_dotted_name",
    "torch load",
)


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_is_a_shell(gadget):
    found = Unpickler(io.BytesIO(f"c{gadget.replace(' ', chr(10))}\n(S'x'\ntR.".encode())).load()
    assert type(found).__name__ == gadget.split()[1] and type(found).__mro__[1].__name__ == "_Shell"


def test_nothing_in_a_checkpoint_is_run(tmp_path, trained):
    Canary.path = str(tmp_path / "sang")
    for zipped in (True, False):
        torch.save({"state_dict": trained, "trap": Canary()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert len(read_checkpoint(tmp_path / "a.pth")) == 1
        assert not (tmp_path / "sang").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "sang").exists(), "the trap is one"


# ---- a network by its name


def test_random_weights_have_a_seed_and_say_so(capsys):
    before = torch.get_rng_state()
    (one, _), (same, _), (other, _) = (backbone("resnet18", "random", 32, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, same.conv1.weight) and not torch.equal(one.conv1.weight, other.conv1.weight)
    assert (
        "random weights (as asked; seed 2)" in other.notes[0] and capsys.readouterr().err.count("random weights") == 3
    )


def test_a_vision_transformer_of_dino(tmp_path):
    timm = pytest.importorskip("timm", reason="models of timm need the extra vit")
    name = "vit_tiny_patch16_224"
    trained = timm.create_model(name, num_classes=0, img_size=224).state_dict()
    student = {f"module.backbone.{k}": v + 1 for k, v in trained.items()}
    teacher = under("backbone.", trained, ("head.",)) | mlp("head.mlp.", 192, 2048, 256)
    torch.save({"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    network, _ = backbone(name, str(tmp_path / "dino.pth"))
    assert all(torch.equal(value, trained[key]) for key, value in network.state_dict().items())
    assert "(teacher, prefix backbone.)" in network.notes[0]
    torch.save(trained | {"reg_token": torch.zeros(1, 4, 192)}, tmp_path / "registers.pth")
    with pytest.raises(InputError, match="unknown, like reg_token"):
        backbone(name, str(tmp_path / "registers.pth"))
    torch.save({"model": trained | {"mask_token": torch.zeros(1, 1, 192)}}, tmp_path / "mae.pth")
    assert "like mask_token" in backbone(name, str(tmp_path / "mae.pth"))[0].notes[0]
