"""Folders as people make them: links, splits under any usual name, deep classes, files that are broken or no images."""

import json
import os
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_images import SPLIT_NAMES, encoded, write_folder, write_tar
from wssl.companion.cli import main
from wssl.core.checks import InputError
from wssl.data.files import LINKED, LOOPS, folder_files, tar_members, unreadable
from wssl.data.images import evaluation_split, load_evaluation, load_images, split_of_names
from wssl.evaluation.backbones import images_below
from wssl.training import TrainConfig, train
from wssl.training.evaluation import load_data

PETS = [f"{label}/{k}.png" for label in ("cat", "dog") for k in range(5)]


def sentence(error):
    text = str(error.value)
    assert text.startswith("expected ") and "\n" not in text and len(text) < 700
    return text


# ---- links


def test_a_linked_class_folder_is_read(tmp_path):
    root = write_folder(tmp_path / "pets", ["all/cat/0.png", "all/dog/1.png", "train/cat/2.png"])
    os.symlink("../all/dog", root / "train" / "dog")
    notes = Counter()
    assert folder_files(root, notes) == ["all/cat/0.png", "all/dog/1.png", "train/cat/2.png", "train/dog/1.png"]
    assert notes == {LINKED: 1}
    train = load_images("folder:pets", root=tmp_path)
    assert train.classes == ("cat", "dog") and train.y.tolist() == [0, 1]
    assert any("links to other names" in note or "link to other names" in note for note in train.notes)


def test_a_link_to_a_link_and_a_linked_file_are_read(tmp_path):
    root = write_folder(tmp_path / "pets", ["store/1.png", "cat/0.png"])
    os.symlink("store", root / "again")
    os.symlink("again", root / "dog")
    os.symlink("../store/1.png", root / "cat" / "2.png")
    assert folder_files(root) == ["again/1.png", "cat/0.png", "cat/2.png", "dog/1.png", "store/1.png"]


@pytest.mark.parametrize("target", [".", "..", "../cat"])
def test_a_loop_ends(tmp_path, target):
    root, notes = write_folder(tmp_path / "pets", PETS), Counter()
    os.symlink(target, root / "cat" / "again")
    assert folder_files(root, notes) == sorted(PETS) and notes == {LOOPS: 1}


def test_two_folders_that_link_to_each_other_end(tmp_path):
    root = write_folder(tmp_path / "pets", ["cat/0.png", "dog/1.png"])
    os.symlink("../dog", root / "cat" / "to")
    os.symlink("../cat", root / "dog" / "to")
    assert folder_files(root) == ["cat/0.png", "cat/to/1.png", "dog/1.png", "dog/to/0.png"]


def test_a_folder_outside_is_named_and_not_read(tmp_path):
    write_folder(tmp_path / "pets-of-others", ["1.png"])  # a name that begins alike
    root = write_folder(tmp_path / "pets", ["cat/0.png"])
    os.symlink(tmp_path / "pets-of-others", root / "dog")
    with pytest.raises(
        InputError, match="links that stay inside .*; received dog, which leads to .*pets-of-others"
    ) as e:
        load_images("folder:pets", root=tmp_path)
    sentence(e)


def link(name, target, kind=tarfile.LNKTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_links_in_an_archive_are_followed(tmp_path, mode):
    members = [
        link("./before.png", "./all/1.png"),
        ("./all/1.png", encoded(1)),
        ("./blob", encoded(2)),
        link("hard/1.png", "all/1.png"),
        link("hard/2.png", "hard/1.png"),
        link("hard/of-a-blob.png", "blob"),
        link("soft/1.png", "../all/1.png", tarfile.SYMTYPE),
        link("class", "all", tarfile.SYMTYPE),
        link("class-of-class", "class", tarfile.SYMTYPE),
        link("all/again", "../all", tarfile.SYMTYPE),
    ]
    notes = Counter()
    found = dict(tar_members(write_tar(tmp_path / "a.tar", members, mode), notes))
    one = {"all/1.png", "before.png", "hard/1.png", "hard/2.png", "soft/1.png", "class/1.png", "class-of-class/1.png"}
    assert set(found) == one | {"hard/of-a-blob.png"}
    assert {found[name] for name in one} == {encoded(1)} and found["hard/of-a-blob.png"] == encoded(2)
    assert notes == {LINKED: 7, LOOPS: 1}


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_to_nothing_is_named(tmp_path, kind):
    write_tar(tmp_path / "a.tar", [("cat/0.png", encoded(0)), link("cat/1.png", "gone.png", kind)])
    with pytest.raises(InputError, match="links to files of the archive a.tar; received cat/1.png, a link to .*gone"):
        list(tar_members(tmp_path / "a.tar"))


def test_an_archive_made_of_a_folder_with_hard_links(tmp_path):
    root = write_folder(tmp_path / "pets", ["all/0.png", "all/1.png"])
    for label, k in (("cat", 0), ("dog", 1)):
        (root / "train" / label).mkdir(parents=True)
        os.link(root / "all" / f"{k}.png", root / "train" / label / f"{k}.png")
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(root, "pets")
    images = load_images("tar:pets.tar", root=tmp_path)
    assert images.classes == ("cat", "dog") and images.y.tolist() == [0, 1] and len(images) == 2


# ---- splits and classes


def count(names, split="train"):
    return Counter(zip(*split_of_names(names, split), strict=True))


@pytest.mark.parametrize("split", ["train", "test", "val"])
@pytest.mark.parametrize(
    "names,expected",
    [
        (["cat/2020/1.png", "cat/2021/2.png", "dog/2020/3.png"], {(None, "cat"): 2, (None, "dog"): 1}),
        (["Train/cat/1.png", "VAL/cat/2.png"], {("Train", "cat"): 1, ("VAL", "cat"): 1}),
        (["training/cat/1.png", "validation/dog/2.png"], {("training", "cat"): 1, ("validation", "dog"): 1}),
        (
            ["train/cat/1.png", "val/cat/2.png", "test/3.png"],
            {("train", "cat"): 1, ("val", "cat"): 1, ("test", None): 1},
        ),
        (["train/cat/a/1.png", "samples/2.png"], {("train", "cat"): 1, ("samples", None): 1}),
        (["Data/CLS/train/n01/1.jpg", "Data/CLS/val/2.jpg"], {("train", "n01"): 1, ("val", None): 1}),
    ],
)
def test_splits_are_those_of_the_folders_whichever_is_asked_for(names, expected, split):
    assert count(names, split) == expected


def test_a_split_is_found_under_its_other_names(tmp_path):
    write_folder(tmp_path / "pets", ["Training/cat/0.png", "Training/dog/1.png", "valid/cat/2.png", "valid/dog/3.png"])
    assert len(load_images("folder:pets", "train", root=tmp_path)) == 2
    for split in ("val", "validation", "valid", "Val"):
        assert load_images("folder:pets", split, root=tmp_path).y.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"one of the splits of .*pets \(Training, valid\); received test"):
        load_images("folder:pets", "test", root=tmp_path)


def test_a_picture_beside_the_splits_is_named(tmp_path):
    write_folder(tmp_path / "pets", ["train/cat/0.png", "test/cat/1.png", "overview.png"])
    with pytest.raises(InputError, match="images inside the splits of .*pets; received overview.png beside them") as e:
        load_images("folder:pets", root=tmp_path)
    sentence(e)


LAYOUTS = {
    "train and val": (["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png"], "val", [0, 1]),
    "ImageNet": (
        ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", "test/4.png"],
        "val",
        [0, 1],
    ),
    "a test in one folder": (
        ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", "test/images/4.png"],
        "val",
        [0, 1],
    ),
    "all three labelled": (
        ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "test/cat/3.png", "test/dog/4.png"],
        "test",
        [0, 1],
    ),
    "nothing labelled": (["train/0.png", "train/1.png", "test/2.png"], "test", [-1]),
    "other names": (["Training/cat/0.png", "Training/dog/1.png", "Validation/dog/2.png"], "Validation", [1]),
}


@pytest.mark.parametrize("kind", ["folder", "stream", "tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_evaluated_on(tmp_path, layout, kind):
    names, split, y = LAYOUTS[layout]
    folder = write_folder(tmp_path / "pets", names)
    write_tar(tmp_path / "pets.tar", [(name, (folder / name).read_bytes()) for name in names])
    source = f"{kind}:pets{'.tar' * (kind == 'tar')}"
    assert len(load_images(source, root=tmp_path)) == 2
    images = load_evaluation(source, root=tmp_path)
    assert evaluation_split(names)[0] == split and images.y.tolist() == y
    assert any(f"evaluated on {split}" in note for note in images.notes) == (split != "test")
    assert (len(images.classes) == 2) == (layout != "nothing labelled")
    if "test/4.png" in names:
        assert load_evaluation(source, "test", root=tmp_path).y.tolist() == [-1]
        assert "evaluated on val: test has no labels" in images.notes


def test_without_a_split_to_evaluate_on(tmp_path):
    write_folder(tmp_path / "pets", ["train/cat/0.png", "unlabeled/1.png"])
    with pytest.raises(
        InputError, match=r"evaluate on \(test or val; .* by --holdout\); received train, unlabeled"
    ) as e:
        load_evaluation("folder:pets", root=tmp_path)
    sentence(e)
    write_folder(tmp_path / "plain", PETS)
    assert load_evaluation("folder:plain", root=tmp_path).y.tolist() == [0, 1]
    assert len(load_evaluation("digits")) == len(load_images("digits", "test"))


@pytest.mark.parametrize("few,words", [(1, "1 of class emu"), (2, "2 of class emu")])
def test_a_class_too_small_for_the_test_is_named(tmp_path, few, words):
    write_folder(tmp_path / "zoo", [*PETS, *(f"emu/{k}.png" for k in range(few))])
    with pytest.raises(InputError, match=f"enough images in .*zoo for a split test; received {words}.*--holdout") as e:
        load_images("folder:zoo", "test", root=tmp_path)
    sentence(e)
    assert load_images("folder:zoo", root=tmp_path).y.bincount().tolist() == [4, 4, few]
    write_folder(tmp_path / "zoo", [f"emu/{k}.png" for k in range(3)])
    assert load_images("folder:zoo", "test", root=tmp_path).y.tolist() == [0, 1, 2]


def test_a_picture_without_a_class_beside_classes_is_no_class(tmp_path):
    write_folder(tmp_path / "zoo", [*PETS, "overview.png"])
    assert load_images("folder:zoo", "test", root=tmp_path).y.tolist() == [0, 1]
    assert load_images("folder:zoo", root=tmp_path).y.tolist() == [0] * 4 + [1] * 4 + [-1]


def test_of_many_small_classes_three_are_named(tmp_path):
    write_folder(tmp_path / "zoo", [f"{k}/0.png" for k in range(9)])
    with pytest.raises(InputError, match="1 of class 0 and 1 of class 1 and 1 of class 2 and 6 classes more") as e:
        load_images("folder:zoo", "test", root=tmp_path)
    sentence(e)


@pytest.mark.parametrize(
    "names,classes,y",
    [
        (
            [f"{c}/{y}/{k}.png" for c in ("cat", "dog") for y in (2020, 2021) for k in range(3)],
            ("cat", "dog"),
            [0] * 6 + [1] * 6,
        ),
        (SPLIT_NAMES, ("cat", "dog"), [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3),
        (["train/0.png", "test/1.png"], (), [-1, -1]),
        (["pets/cat/0.png", "pets/dog/1.png"], ("cat", "dog"), [0, 1]),
    ],
)
def test_a_diagnosis_has_the_classes_of_a_training(tmp_path, names, classes, y):
    root = write_folder(tmp_path / "g", names)
    below = images_below(root, 8)
    assert below.classes == classes and sorted(below.y.tolist()) == sorted(y)
    assert load_images("folder:g", root=tmp_path).classes == classes
    assert [os.fsdecode(name).split("/") for name in below.names] == [name.split("/") for name in sorted(names)]


# ---- broken images, and what is no image


@pytest.mark.parametrize("kind", ["folder", "tar", "stream"])
def test_all_broken_images_are_named_before_anything_starts(tmp_path, kind):
    folder = write_folder(tmp_path / "pets", PETS)
    broken = {"cat/0.png": b"", "cat/1.png": b"text", "dog/0.png": encoded(0)[:90], "dog/3.png": b"\x89PNG"}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    write_tar(tmp_path / "pets.tar", [(name, (folder / name).read_bytes()) for name in PETS])
    source = f"{kind}:pets{'.tar' * (kind == 'tar')}"
    with pytest.raises(InputError, match="cat/0.png .*; cat/1.png .*; dog/0.png .* and 1 more, 4 of 10 in pets") as e:
        load_images(source, root=tmp_path)
    assert "skip_broken leaves them out" in sentence(e) and not list((tmp_path / "decoded").iterdir())
    rest = load_images(source, root=tmp_path, skip_broken=True)
    assert len(rest) == 6 - round(0.2 * 3) * 2 and "4 broken images left out" in rest.notes
    assert "4 broken images left out" in repr(rest)
    with pytest.raises(InputError, match="4 of 10 in pets"):  # also where the cache is there already
        load_images(source, root=tmp_path)
    assert set(unreadable(tmp_path / f"pets{'.tar' * (kind == 'tar')}")) == set(broken)


def test_where_all_are_broken_nothing_is_left_to_skip_to(tmp_path):
    for k in range(3):
        (tmp_path / "pets").mkdir(exist_ok=True)
        (tmp_path / "pets" / f"{k}.jpg").write_bytes(b"no")
    with pytest.raises(InputError, match="3 of 3 in pets"):
        load_images("folder:pets", root=tmp_path, skip_broken=True)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "ppm", "jp2", "avif"])
def test_a_look_finds_what_a_decoding_finds(tmp_path, suffix):
    content = encoded(3, (64, 48), {"jp2": "jpeg2000", "tif": "tiff"}.get(suffix, suffix))
    for cut in (len(content), len(content) // 2):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content[:cut])
        try:
            load_images(f"folder:{tmp_path}", root=tmp_path / "cache")
            whole = True
        except InputError:
            whole = False
        assert (not unreadable(tmp_path)) == whole == (cut == len(content))


def test_what_is_no_image_is_counted(tmp_path):
    folder = write_folder(tmp_path / "pets", PETS)
    (folder / "labels.csv").write_text("x")
    for k in range(2):
        (folder / "cat" / f"{k}.heic").write_bytes(b"x")
    notes = load_images("folder:pets", root=tmp_path).notes
    assert notes == ("1 file ending in .csv left out", "2 files ending in .heic left out")
    (tmp_path / "telephone").mkdir()
    (tmp_path / "telephone" / "1.HEIC").write_bytes(b"x")
    with pytest.raises(InputError, match=r"telephone with none \(but 1 ending in .heic\)") as e:
        load_images("folder:telephone", root=tmp_path)
    sentence(e)


@pytest.mark.parametrize("kind", ["folder", "tar", "stream"])
def test_every_source_turns_and_lays_over_white_and_says_so(tmp_path, kind):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    place = tmp_path / "pets" / "cat"
    place.mkdir(parents=True)
    for k in range(5):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (4, 0, 8, 8))
        image.save(place / f"{k}.png", exif=sideways)
    write_tar(tmp_path / "pets.tar", [(f"cat/{k}.png", (place / f"{k}.png").read_bytes()) for k in range(5)])
    images = load_images(f"{kind}:pets{'.tar' * (kind == 'tar')}", size=8, root=tmp_path)
    images = replace(images, workers=0) if kind == "stream" else images
    (x,) = images.batches([torch.arange(len(images))])
    assert (x[:, :, :4] == 255).all() and (x[:, :, 4:] == 0).all(), "left becomes top"
    assert images.notes == ("5 images turned upright as the file says", "5 transparent images laid over white")
    assert np.array_equal(images.y, [0] * 4)


def test_a_diagnosis_of_a_folder_says_what_was_decided(tmp_path, capsys):
    root = write_folder(tmp_path / "pets", [f"{label}/{k}/{k}.png" for label in ("cat", "dog") for k in range(4)])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(root / "cat" / "clear.png")
    os.symlink("../cat/1", root / "dog" / "more")
    (root / "dog" / "torn.png").write_bytes(b"no")
    out = tmp_path / "a.json"
    words = ["diagnose", str(root), "--model", "resnet18", "--weights", "random", "--size", "32", "--json", str(out)]
    assert main(words) == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert (
        "received dog/torn.png" in text and "1 of 11 in pets: skip_broken leaves them out" in text and not out.exists()
    )
    assert main([*words, "--skip-broken", "--seed", "3"]) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["values"]["rows"] == 10 and len(found["classes"]) == 2
    for words in (
        "resnet18 has random weights (as asked; seed 3)",
        "1 broken image left out",
        "1 link to other names inside followed",
        "1 transparent image laid over white",
    ):
        assert any(words in note for note in found["notes"]) and words in shown


def test_training_leaves_out_broken_images_and_says_so(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (16, 16), (40 * k, 10, 20)).save(tmp_path / split / name / f"{k}.png")
    (tmp_path / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = TrainConfig(source=f"folder:{tmp_path}", root=str(tmp_path / "cache"), size=16, batch=4, epochs=1, knn_k=2)
    with pytest.raises(InputError, match="broken"):
        load_data(config)
    said = []
    run = train(replace(config, skip_broken=True, out=str(tmp_path / "run")), say=said.append, events=False)
    assert (run.summary["images"]["train"], run.summary["images"]["evaluated"]) == (12, 6)
    assert any("1 broken image left out" in line for line in said)
    assert "1 broken image left out" in run.summary["images"]["notes"]


def test_the_split_to_evaluate_on_can_be_named(tmp_path):
    for split, count in (("train", 4), ("test", 2), ("extra", 5)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (16, 16), (40 * k, 10, 20)).save(tmp_path / split / "cat" / f"{k}.png")
    config = TrainConfig(source=f"folder:{tmp_path}", root=str(tmp_path / "cache"), size=16, batch=2)
    assert [len(images) for images in load_data(config)] == [4, 2]
    assert [len(images) for images in load_data(replace(config, evaluate_on="extra"))] == [4, 5]
    with pytest.raises(InputError, match="elsewhere"):
        load_data(replace(config, evaluate_on="elsewhere"))
