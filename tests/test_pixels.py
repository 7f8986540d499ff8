"""What a viewer shows of an image file: orientation, transparency, depth, inks, frames; and one sentence for the rest."""

import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from wssl.core.checks import InputError
from wssl.data.files import decode
from wssl.data.pixels import (
    DEEP,
    FIRST_FRAME,
    INKS,
    OVER_WHITE,
    PROFILE_LEFT,
    PROFILE_USED,
    TURNED,
    said,
)

FALLING = np.linspace(255, 0, 16, dtype=np.uint8)[None].repeat(16, 0)
CORNERS = np.zeros((16, 16, 3), np.uint8)  # every corner its own colour: each of the eight orientations differs
CORNERS[:8, :8], CORNERS[:8, 8:], CORNERS[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image, suffix, **more):
    content = io.BytesIO()
    image.save(content, suffix, **more)
    return content.getvalue()


def shown(content, size=16):
    notes = Counter()
    return decode("x", content, size, notes).transpose(1, 2, 0), dict(notes)


def near(found, expected, most=1):
    return np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= most


# ---- upright


def exif(number):
    tags = Image.Exif()
    tags[0x0112] = number
    return tags


STORED = {  # how the sensor's rows lie for each number, as the standard's table of rows and columns says
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_every_orientation_in_every_format_that_has_one(number, suffix):
    stored = Image.fromarray(np.ascontiguousarray(STORED[number](CORNERS)))
    more = {"tiffinfo": {274: number}} if suffix == "TIFF" else {"exif": exif(number)}
    more |= {"lossless": True} if suffix == "WEBP" else {"quality": 100, "subsampling": 0} if suffix == "JPEG" else {}
    found, notes = shown(saved(stored, suffix, **more))
    points = found[[2, 2, 13, 13], [2, 13, 2, 13]]
    assert near(points, CORNERS[[2, 2, 13, 13], [2, 13, 2, 13]], 0 if suffix in ("PNG", "TIFF", "WEBP") else 20)
    assert notes == ({TURNED: 1} if number > 1 else {})


def test_a_sideways_photograph_is_cut_after_it_is_turned():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 24, 3), dtype=np.uint8))
    content = saved(image, "JPEG", exif=exif(6))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert upright.size == (40, 24)
    plain = decode("y", saved(upright, "PNG"), 24)
    assert np.array_equal(decode("x", content, 24), plain)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("words", [exif(0), exif(9), b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense"])
def test_words_that_mean_nothing_turn_nothing(words):
    found, notes = shown(saved(Image.fromarray(CORNERS), "JPEG", exif=words, quality=100, subsampling=0))
    assert near(found[2, 2], (255, 0, 0), 20) and notes == {}


# ---- transparency over white


def ground(mode, opaque=0):
    """Left half transparent over a colour that must not show, right half `opaque`."""
    image = Image.new(mode, (16, 16), {"RGBA": (9, 9, 9, 0), "LA": (9, 0)}[mode])
    image.paste({"RGBA": (opaque, opaque, opaque, 255), "LA": (opaque, 255)}[mode], (8, 0, 16, 16))
    return image


def palette(image):
    return image.quantize(4, method=Image.Quantize.FASTOCTREE)


def with_palette():
    """A palette and a channel of alphas; `convert("PA")` would forget those of LA."""
    image = Image.new("PA", (16, 16), (1, 255))
    image.putpalette([9, 9, 9, 0, 0, 0])
    image.paste((0, 0), (0, 0, 8, 16))
    return image


TRANSPARENT = {
    "RGBA": lambda: saved(ground("RGBA"), "PNG"),
    "LA": lambda: saved(ground("LA"), "PNG"),
    "P with a table of alphas": lambda: saved(palette(ground("RGBA")), "PNG"),
    "GIF": lambda: saved(ground("RGBA"), "GIF"),
    "WebP": lambda: saved(ground("RGBA"), "WEBP", lossless=True),
    "TIFF RGBA": lambda: saved(ground("RGBA"), "TIFF"),
    "TIFF PA": lambda: saved(with_palette(), "TIFF"),
    "JPEG 2000": lambda: saved(ground("RGBA"), "JPEG2000"),
    "one colour of RGB": lambda: saved(
        Image.fromarray(np.where(np.arange(16)[:, None] < 8, 9, 0).astype(np.uint8)[None].repeat(16, 0).repeat(3, 2)),
        "PNG",
        transparency=(9, 9, 9),
    ),
    "one grey": lambda: saved(ground("LA").convert("L"), "PNG", transparency=9),
    "one of 65,536 greys": lambda: saved(
        Image.fromarray(np.where(np.arange(16) < 8, 900, 0).astype(np.uint16)[None].repeat(16, 0)),
        "PNG",
        transparency=900,
    ),
    "black of two": lambda: saved(
        Image.fromarray(np.arange(16)[None].repeat(16, 0) >= 8).convert("1"), "PNG", transparency=0
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_white(kind):
    found, notes = shown(TRANSPARENT[kind]())
    right = 255 if kind == "black of two" else 0
    assert near(found[:, :7], np.full((16, 7, 3), 255)) and near(found[:, 9:], np.full((16, 7, 3), right))
    assert notes[OVER_WHITE] == 1


def test_half_transparent_is_half_white_and_opaque_is_no_decision():
    found, notes = shown(saved(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG"))
    assert near(found, np.full((16, 16, 3), 127)) and notes == {OVER_WHITE: 1}
    found, notes = shown(saved(Image.new("RGBA", (16, 16), (9, 8, 7, 255)), "PNG"))
    assert near(found, np.full((16, 16, 3), (9, 8, 7)), 0) and notes == {}


def test_turned_and_transparent_at_once():
    content = saved(ground("RGBA"), "PNG", exif=exif(6))
    found, notes = shown(content)
    assert (found[:7] == 255).all() and (found[9:] == 0).all() and notes == {OVER_WHITE: 1, TURNED: 1}


# ---- depth


def png(width, height, depth, colour, rows):
    """A PNG by the letter of its standard."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def grey_tiff(values, bits, photometric=1, order="<", kind=1):
    """An uncompressed TIFF by the letter of its standard; `bits` is what the file says."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags[339] = kind
    entries = b"".join(
        struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", value) for tag, value in sorted(tags.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0"


WIDE = FALLING.astype(np.uint16) * 257
DEEP_FILES = {
    "PNG, grey": lambda: png(16, 16, 16, 0, [row.astype(">u2").tobytes() for row in WIDE]),
    "PNG, grey by Pillow": lambda: saved(Image.fromarray(WIDE), "PNG"),
    "TIFF, little-endian": lambda: grey_tiff(WIDE, 16),
    "TIFF, big-endian": lambda: grey_tiff(WIDE, 16, order=">"),
    "TIFF by Pillow, compressed": lambda: saved(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"),
    "TIFF, white is zero": lambda: grey_tiff(65535 - WIDE, 16, photometric=0),
    "PGM to 65535": lambda: b"P5 16 16 65535\n" + WIDE.astype(">u2").tobytes(),
    "PGM to 1020": lambda: b"P5 16 16 1020\n" + (FALLING.astype(int) * 4).astype(">u2").tobytes(),
    "PGM in letters": lambda: b"P2 16 16 65535\n" + " ".join(map(str, WIDE.ravel())).encode(),
    "JPEG 2000": lambda: saved(Image.fromarray(WIDE), "JPEG2000"),
}


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_sixteen_bits_of_grey_are_brought_to_eight(kind):
    found, notes = shown(DEEP_FILES[kind]())
    assert near(found, FALLING[..., None].repeat(3, 2)) and notes == {DEEP: 1}


DEEP_COLOUR = {
    "PNG RGB": (2, [FALLING] * 3, 0),
    "PNG RGBA, opaque": (6, [FALLING] * 3 + [np.full_like(FALLING, 255)], 0),
    "PNG grey and alpha, opaque": (4, [FALLING, np.full_like(FALLING, 255)], 0),
}


@pytest.mark.parametrize("kind", DEEP_COLOUR)
def test_sixteen_bits_of_colour_are_eight_too(kind):
    colour, planes, _ = DEEP_COLOUR[kind]
    rows = np.stack(planes, -1).astype(">u2") * 257
    found, _ = shown(png(16, 16, 16, colour, [row.astype(">u2").tobytes() for row in rows]))
    assert near(found, FALLING[..., None].repeat(3, 2))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_fill_the_whole_range(bits):
    row = np.arange(16) % (1 << bits)
    packed = np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes()
    found, _ = shown(png(16, 16, bits, 0, [packed] * 16))
    assert near(found[0, :, 0], row * 255 // ((1 << bits) - 1))


@pytest.mark.parametrize("mode", ["I", "F", "signed"])
def test_what_has_no_white_is_one_sentence(mode):
    values = np.zeros((8, 8), {"I": np.int32, "F": np.float32, "signed": np.int16}[mode])
    content = grey_tiff(values, 16, kind=2) if mode == "signed" else saved(Image.fromarray(values), "TIFF")
    with pytest.raises(
        InputError, match=r"decoded; received x \((real numbers|whole numbers of 32 bits), of which"
    ) as e:
        decode("x", content, 8)
    assert "save it with 8 or 16 bits" in str(e.value) and len(str(e.value)) < 200


# ---- colours and frames


def test_inks_are_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for suffix, off in (("TIFF", 0), ("JPEG", 4)):
        found, notes = shown(saved(red, suffix))
        assert near(found, np.full((16, 16, 3), (255, 0, 0)), off) and notes == {INKS: 1}


def test_other_spaces_are_colours():
    grey = Image.new("LAB", (16, 16), (128, 128, 128))
    assert near(shown(saved(grey, "TIFF"))[0], np.full((16, 16, 3), 119))
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("YCbCr")
    assert near(shown(saved(red, "TIFF"))[0], np.full((16, 16, 3), (255, 0, 0)), 3)


def test_a_profile_is_used_for_inks_and_said_to_be_left_out_for_others():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(CORNERS)
    assert shown(saved(image, "PNG", icc_profile=srgb))[1] == {}
    assert shown(saved(image, "PNG", icc_profile=lab))[1] == {PROFILE_LEFT: 1}
    assert shown(saved(image.convert("CMYK"), "TIFF", icc_profile=lab))[1] == {INKS: 1}  # does not fit: plainly
    assert PROFILE_USED != INKS


@pytest.mark.parametrize("suffix", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first(suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    more = {"lossless": True} if suffix == "WEBP" else {}
    found, notes = shown(saved(frames[0], suffix, save_all=True, append_images=frames[1:], **more))
    assert near(found, np.full((16, 16, 3), (255, 0, 0))) and notes == {FIRST_FRAME: 1}


@pytest.mark.parametrize("suffix", ["GIF", "TIFF"])
def test_a_second_frame_that_is_broken_spoils_not_the_first(suffix):
    frames = [Image.fromarray(CORNERS), Image.fromarray(CORNERS[::-1].copy())]
    alone = saved(frames[0], suffix)
    both = saved(frames[0], suffix, save_all=True, append_images=frames[1:])
    found, _ = shown(both[: len(alone) + 20])
    assert near(found[2, 2], (255, 0, 0))


def test_one_frame_is_no_decision():
    assert shown(saved(Image.fromarray(CORNERS), "GIF"))[1] == {}
    assert TiffImagePlugin.TiffImageFile.format == "TIFF" and shown(saved(Image.fromarray(CORNERS), "TIFF"))[1] == {}


def test_notes_count():
    assert said(Counter({TURNED: 1234})) == ("1,234 images turned upright as the file says",)
