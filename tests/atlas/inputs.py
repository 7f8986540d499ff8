"""Real input for the models: sentences, words, photographs, speech, music, files, molecules, antibodies. Nothing of it is committed."""

import ast
import functools
import hashlib
import io
import re
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tests.atlas.packages import files
from wssl.core.paths import project_root


def _prose():
    """Text of the standard library of CPython (PSF licence): the language reference of pydoc, then docstrings."""
    folder = Path(sysconfig.get_path("stdlib"))
    from pydoc_data.topics import topics

    yield from topics.values()
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


@functools.cache
def sentences(count=4000):
    """`count` different English sentences of 6 to 40 words, spread over the library."""
    seen, found = set(), []
    for text in _prose():
        for part in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(part.split())):
                plain = re.fullmatch(r"[A-Z][\w ,;:'()\"/*`.-]*[.!?]", sentence)
                if plain and 6 <= len(sentence.split()) <= 40 and sentence not in seen and ">>>" not in sentence:
                    seen.add(sentence)
                    found.append(sentence)
    found.sort(key=lambda sentence: hashlib.sha256(sentence.encode()).digest())  # the same draw everywhere
    return found[:count]


@functools.cache
def photographs(count=2500):
    """Photographs of CIFAR-10's test part, shape (count, 32, 32, 3), values of 0 to 255."""
    from PIL import Image

    path = project_root().parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    images = []
    with tarfile.open(path) as tar:
        for member in tar:
            if "test" in member.name and member.isfile() and member.name.endswith((".jpg", ".jpeg")):
                images.append((member.name, np.array(Image.open(io.BytesIO(tar.extractfile(member).read())))))
    images.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    return np.stack([image for _, image in images[:count]])


def enlarged(count, side):
    """Photographs at `side` pixels, bicubic, shape (count, 3, side, side), of 0 to 1; in parts of 50."""
    for part in np.array_split(photographs(count), max(count // 50, 1)):
        x = torch.from_numpy(part).permute(0, 3, 1, 2) / 255
        yield F.interpolate(x, size=side, mode="bicubic", antialias=True).clamp(0, 1)


def sound(path, rate):
    """One channel of a sound file at `rate` samples a second, float32."""
    import soundfile
    import soxr

    wave, own = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(wave.mean(1), own, rate) if own != rate else wave.mean(1)


def faces(count, side):
    """Views of the 100 faces of a subset of Labeled Faces in the Wild, moved, turned and scaled a little, 8 bits."""
    small = torch.from_numpy(np.load(files("scikit-image==0.16.2", "lfw_subset.npy", "wheel3.8")[0])[:100]).float()
    generator = torch.Generator().manual_seed(0)
    views = []
    for part in torch.arange(count).remainder(100).split(100):
        turn, grow, move = torch.rand(4, len(part), generator=generator).sub(0.5).split([1, 1, 2])
        angle, scale = turn[0] * 0.4, 1 + grow[0] * 0.2
        first = torch.stack([angle.cos() * scale, -angle.sin() * scale, move[0] * 0.15], 1)
        second = torch.stack([angle.sin() * scale, angle.cos() * scale, move[1] * 0.15], 1)
        grid = F.affine_grid(torch.stack([first, second], 1), (len(part), 1, side, side), align_corners=False)
        view = F.grid_sample(small[part][:, None], grid, mode="bicubic", padding_mode="border", align_corners=False)
        views.append((view[:, 0].clamp(0, 1) * 255).byte())
    return torch.cat(views).numpy()


def lines_of_text(count, height, width):
    """Sentences rendered black on white in the fonts that Matplotlib carries, shape (count, 3, height, width), of 0 to 255."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"DejaVu{name}.ttf" for name in ("Sans", "Serif", "SansMono", "Sans-Bold", "Serif-Italic")]
    fonts = [ImageFont.truetype(str(path), int(height * 0.45)) for path in paths]
    lines = []
    for i, sentence in enumerate(sentences(count)):
        image = Image.new("L", (width, height), 255)
        ImageDraw.Draw(image).text((4, height // 4), sentence[:40], font=fonts[i % len(fonts)], fill=0)
        lines.append(torch.from_numpy(np.array(image)))
    return torch.stack(lines).float()[:, None].expand(-1, 3, -1, -1).clone()


VOICES = ("en", "fr", "es", "it", "ru")
SPEECH = "telephone prompts of five voices in five languages (Debian asterisk-core-sounds 1.6.1, CC BY-SA)"


@functools.cache
def prompts(rate=16000, shortest=0.0):
    """Spoken prompts of every voice in turns, those of at least `shortest` seconds."""
    voices = []
    for voice in VOICES:
        pinned = f"asterisk-core-sounds-{voice}-wav=1.6.1-1"
        paths = [p for p in files(pinned, "*.wav", "deb") if "silence" not in p.parts]
        paths.sort(key=lambda p: hashlib.sha256(p.name.encode()).digest())
        waves = [wave for wave in (sound(path, rate) for path in paths) if len(wave) >= shortest * rate]
        voices.append(waves)
    return [wave for turn in zip(*voices, strict=False) for wave in turn]


@functools.cache
def speech(seconds, rate=16000):
    """Speech of five voices in turns, one after the other."""
    wave = np.concatenate(prompts(rate))
    return wave[: int(seconds * rate)]


MUSIC = "61 s of music (PyPI librosa==0.7.2: Kevin MacLeod, Vibe Ace, CC BY 3.0)"


@functools.cache
def music(rate):
    """The piece of music that old releases of librosa carried."""
    return sound(files("librosa==0.7.2", "*Vibe_Ace.ogg", "source")[0], rate)


def frames(wave, size, hop):
    """Overlapping windows of a wave, shape (count, size)."""
    return torch.from_numpy(np.ascontiguousarray(wave)).unfold(0, size, hop)


@functools.cache
def molecules(count):
    """SMILES of the National Cancer Institute's first 5,000, as RDKit carries them."""
    lines = files("rdkit==2026.9.1", "first_5K.smi")[0].read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip()][:count]


@functools.cache
def antibodies(count):
    """Germline V genes of IMGT as ANARCI carries them: protein sequences of many species, without gaps."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("germlines", files("anarci==2026.2.13.2", "germlines.py")[0])
    tables = module_from_spec(spec)
    spec.loader.exec_module(tables)
    found = set()

    def collect(table):
        for item in table.values():
            collect(item) if isinstance(item, dict) else found.add(item.replace("-", ""))

    collect(tables.all_germlines["V"])
    return sorted(found, key=lambda chain: hashlib.sha256(chain.encode()).digest())[:count]


def installed_files(count):
    """Files of the standard library and of installed packages: those of rare kinds first, so that many kinds are there."""
    import site

    roots = [Path(sysconfig.get_path("stdlib")), *map(Path, site.getsitepackages()), Path(torch.__file__).parents[1]]
    paths = {path for root in roots for path in root.rglob("*") if path.is_file() and path.stat().st_size > 16}
    kinds = {}
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        kinds.setdefault(path.suffix, []).append(path)
    ranked = sorted((i, kind) for kind, found in kinds.items() for i in range(min(len(found), count // 4)))
    return [kinds[kind][i] for i, kind in ranked[:count]]
