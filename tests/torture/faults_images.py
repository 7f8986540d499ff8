"""Images, disturbed: the cache of decoded ones, the public archives, hostile archives and hostile pictures."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import random
import resource
import shutil
import stat
import struct
import tarfile
import warnings
import zlib
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tests.test_archives import Made
from tests.torture.faults_inject import (
    Died,
    Failed,
    Row,
    at_instant,
    damaged,
    folder,
    fresh,
    in_child,
    instants_of,
    places,
)
from tests.torture.faults_training import follow_with, limited
from wssl.data import archives
from wssl.data.images import load_images

SIZE = 8
ROOM = 3 << 30  # bytes of address space that a child may ask for beyond what the parent has


def picture(seed, size=12, suffix="png"):
    """An encoded image."""
    x = np.random.default_rng(seed).integers(0, 256, (size, size + seed % 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(x).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def write_folder(at, count=8):
    """`count` images of two classes."""
    for k in range(count):
        path = at / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    return at


def taken(source, root, split="train"):
    """What a source gives: pixels, labels, classes, as they can be compared; within an address space that a bomb would burst."""
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM, resource.RLIM_INFINITY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures
        images = load_images(source, split, SIZE, root)
    return tuple(images.x.shape), zlib.crc32(images.x.numpy().tobytes()), images.y.tolist(), images.classes


def left_below(root):
    """What lies in a cache beside caches, archives, their folders and empty locks."""
    return [path.name for path in root.rglob("*") if path.name.startswith(".") and path.suffix != ".lock"]


def again(row, source, root, truth, of, split="train", clean=True):
    """The same source once more: the same images, and nothing left of the earlier try."""
    try:
        found = in_child(taken, source, root, split)
    except (Failed, Died) as error:
        return row.refusal(error, of) if isinstance(error, Failed) else row.add("no sentence", str(error), of)
    if found != truth:
        return row.add("wrong results", f"{found[2:]}", of)
    left = left_below(root) if clean else []
    return row.add("wrong results" if left else "went on", f"left behind: {left}", of)


# ---- the cache


def killed(source, truth, at, row, prepare=lambda root: None):
    """SIGKILL at every operation on a file while decoding, then again."""

    def root():
        place = fresh(at, "cache")
        prepare(place)
        return place

    instants = instants_of(taken, source, root())
    for k, instant in enumerate(instants, 1):
        place = root()
        with contextlib.suppress(Died):
            at_instant(taken, source, place, at=k, how="kill")
        again(row, source, place, truth, f"instant {k} {instant}")
    return row


def full(source, truth, at, row, prepare=lambda root: None):
    """No space from every operation on, then room."""

    def root():
        place = fresh(at, "cache")
        prepare(place)
        return place

    instants = instants_of(taken, source, root(), needs_room=True)
    for k, instant in enumerate(instants, 1):
        place, of = root(), f"instant {k} {instant}"
        try:
            found = at_instant(taken, source, place, at=k, how="full")
            row.add("went on" if found == truth else "wrong results", str(found[2:]), of)
        except (Failed, Died) as error:
            if row.refusal(error, of):
                follow_with(row, lambda: taken(source, place), truth, of)  # noqa: B023
    for size in (0, 1, 10, 100, 500, 1000, 2000, 5000):
        place, of = root(), f"limit of {size} bytes"
        try:
            found = limited(taken, size, source, place)
            row.add("went on" if found == truth else "wrong results", str(found[2:]), of)
        except (Failed, Died) as error:
            if row.refusal(error, of):
                follow_with(row, lambda: taken(source, place), truth, of)  # noqa: B023
    return row


def damaged_cache(source, truth, at, row, seed, most):
    """Bits, cuts, zeros and missing files in a cache that is there."""
    kept = fresh(at, "kept")
    in_child(taken, source, kept)
    for path in sorted(path for path in (kept / "decoded").rglob("*") if path.is_file()):
        content, name = path.read_bytes(), path.relative_to(kept)
        faults = [("flip", k) for k in places(len(content), seed, most)]
        faults += [("cut", k) for k in places(len(content), seed, most // 4)] + [("zeros", 0), ("missing", 0)]
        for kind, k in faults:
            root = at / "cache"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(kept, root)
            (root / name).unlink() if kind == "missing" else (root / name).write_bytes(damaged(content, kind, k))
            again(row, source, root, truth, f"{kind} at {k} of {path.name}")
    return row


def raced(source, truth, at, row, seed, times):
    """Two to four processes decode one source at once; some of them are killed."""
    draw = random.Random(seed)
    for number in range(times):
        root, pids = fresh(at, "cache"), []
        for rank in range(2 + number % 3):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    if rank == 0 and number % 2:
                        at_once = draw.randint(1, 8)
                        from tests.torture.faults_inject import Instants

                        with Instants(at_once, "kill"):
                            taken(source, root)
                    found = taken(source, root)
                    os._exit(0 if found == truth else 3)
                os._exit(4)
            pids.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(os.WIFEXITED(code) and os.WEXITSTATUS(code) for code in codes):
            row.add(
                "wrong results", f"exit codes {[os.waitstatus_to_exitcode(code) for code in codes]}", f"race {number}"
            )
        else:
            again(row, source, root, truth, f"race {number}")
    return row


# ---- public archives


class Canary:
    """Its pickle creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def public_archive(at, made):
    """The class that describes a generated archive at a place without a network."""
    (at / "published.tar.gz").write_bytes(made.content)
    url = (at / "published.tar.gz").as_uri()
    return type("Small", (made.original,), made.attributes | {"url": url})


def archive_faults(at, seed, most):
    """Rows of the public archives: killed, without room, damaged, replaced by code."""
    made, canary = Made("cifar10"), at / "canary"
    with patch.dict(archives.ARCHIVES, cifar10=public_archive(at, made)):
        truth = in_child(taken, "cifar10", fresh(at, "cache"))
        yield killed("cifar10", truth, at, Row("SIGKILL", "a public archive: download, unpacking, decoding"))
        yield full("cifar10", truth, at, Row("no space", "a public archive: download, unpacking, decoding"))
    gone = type("Gone", (archives.ARCHIVES["cifar10"],), made.attributes | {"url": (at / "nowhere").as_uri()})
    row = Row("damaged", "a public archive in the cache, no network")
    with patch.dict(archives.ARCHIVES, cifar10=gone):
        for kind in ("flip", "cut"):
            for k in places(len(made.content), seed, most):
                root = fresh(at, "cache")
                (root / gone.filename).write_bytes(damaged(made.content, kind, k))
                again(row, "cifar10", root, truth, f"{kind} at {k}", clean=False)
        yield row
        row, names = (
            Row("code in a pickle", "unpacked files of a public archive"),
            [*dict(gone.train_list), "batches.meta"],
        )
        for name in names:
            for whole in (True, False):
                root = fresh(at, "cache")
                if whole:
                    (root / gone.filename).write_bytes(made.content)
                    with tarfile.open(fileobj=io.BytesIO(made.content)) as archive:
                        archive.extractall(root, filter="data")
                place = root / gone.base_folder / name
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(pickle.dumps(Canary(canary)))
                again(row, "cifar10", root, truth, f"code in {name}", clean=False)
                executed(row, canary, name)
        yield row


def executed(row, canary, of):
    """Whether the hostile payload ran; if so that counts, whatever else happened."""
    if canary.exists():
        row.add("code executed", "the canary is there", of)
        canary.rmdir() if canary.is_dir() else canary.unlink()


# ---- hostile archives of images


def member(name, content=b"", kind=tarfile.REGTYPE, **more):
    """A header and its bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def archive(members, format=tarfile.GNU_FORMAT):
    """An uncompressed tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return file.getvalue()


GOOD = [(f"{('cat', 'dog')[k % 2]}/{k}.png", picture(k)) for k in range(8)]


def good(extra=(), format=tarfile.GNU_FORMAT):
    """The images of `write_folder`, and `extra` members in the middle."""
    members = [member(name, content) for name, content in GOOD]
    return archive([*members[:4], *extra, *members[4:]], format)


def odd_members(outside):
    """Members that are no images of this archive, one a case: passed over, or refused."""
    evil = picture(99)
    names = ["../up.png", "/abs.png", "cat/../../up.png", "./../up.png", "cat//..//..//up.png", str(outside / "x.png")]
    names += ["cat/.hidden.png", "__MACOSX/cat/1.png", "..", "cat/\n.png/..", "\\..\\up.txt"]
    cases = {f"the name {name!r}": [member(name, evil)] for name in names if name != ".."}
    link = {"linkname": str(outside / "secret.png")}
    cases |= {
        "a symbolic link to a file outside": [member("cat/l.png", kind=tarfile.SYMTYPE, **link)],
        "a hard link to a file outside": [member("cat/l.png", kind=tarfile.LNKTYPE, **link)],
        "a file through a linked folder": [
            member("cat/d", kind=tarfile.SYMTYPE, linkname=str(outside)),
            member("cat/d/../../up.png", evil),
        ],
        "a link to itself": [member("cat/l.png", kind=tarfile.SYMTYPE, linkname="l.png")],
        "a link up": [member("cat/l.png", kind=tarfile.SYMTYPE, linkname="../../../../etc/passwd")],
        "a folder with an image's name": [member("cat/d.png", kind=tarfile.DIRTYPE)],
    }
    kinds = {"character device": tarfile.CHRTYPE, "block device": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE}
    return cases | {
        f"a {name}": [member("cat/v.png", kind=kind, devmajor=1, devminor=5)] for name, kind in kinds.items()
    }


def odd_names():
    """Images under names that a file system, a terminal or JSON might stumble over: counted like others."""
    names = [
        "a\nb.png",
        "a\tb.png",
        "\x1b[31mred.png",
        "ünïcödé.png",
        "日本.png",
        "e\u0301.png",
        "\udce9.png",
        "x" * 5000 + ".png",
    ]
    names += [
        "d/" * 400 + "1.png",
        " .png",
        "'; rm -rf *;'.png",
        "$(touch x).png",
        "<script>.png",
        "%s%n.png",
        "CON.png",
        "-rf.png",
    ]
    return [f"cat/{name}" for name in names]


def sparse(size):
    """A GNU sparse member that claims `size` bytes and holds none."""
    info = tarfile.TarInfo("cat/sparse.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % size, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


PACKERS = {
    "gz": lambda content: gzip.compress(content, 1),
    "bz2": lambda content: bz2.compress(content, 1),
    "xz": lambda content: lzma.compress(content, preset=0),
}


@cache
def zeros(suffix):
    """64 MiB of them, compressed."""
    return PACKERS[suffix](bytes(1 << 26))


def repeated(content, times, suffix):
    """A compressed stream of `content`, then `times` times 64 MiB of zeros, made in a moment: compressors' streams may follow each other."""
    return PACKERS[suffix](content) + zeros(suffix) * times


def header_of(name, size, kind=tarfile.REGTYPE):
    """The header alone."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def bombs():
    """Archives of some kilobytes that would be gigabytes."""
    times = 80  # of 64 MiB
    size = times << 26
    start = archive([member(*pair) for pair in GOOD[:4]]).rstrip(b"\0")
    start += bytes(-len(start) % 512)
    for suffix in PACKERS:
        yield f"{suffix}: an image of {size >> 30} GiB", repeated(start + header_of("cat/big.png", size), times, suffix)
    for words, kind in (
        ("pax header", tarfile.XHDTYPE),
        ("long name", tarfile.GNUTYPE_LONGNAME),
        ("long link", tarfile.GNUTYPE_LONGLINK),
    ):
        for first in (start, b""):
            yield (
                f"gz: a {words} of {size >> 30} GiB",
                repeated(first + header_of("././@LongLink", size, kind), times, "gz"),
            )
    for size in (1 << 34, 1 << 40):
        yield f"a sparse image of {size >> 30} GiB", start + sparse(size) + bytes(1024)
        yield f"an image that says {size >> 30} GiB", start + header_of("cat/big.png", size) + bytes(1024)


def big_pictures():
    """Pictures of a few bytes whose header declares 60,000 x 60,000 pixels, or whose text explodes."""
    side = 60_000

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = b"\x89PNG\r\n\x1a\n"
    body = zlib.compress(bytes(1 << 16))
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    yield "png", head + chunk(b"IHDR", size) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 28))
    yield (
        "png",
        head
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
        + chunk(b"zTXt", text)
        + chunk(b"IEND", b""),
    )
    jpeg = bytearray(picture(1, suffix="jpg"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    yield "jpg", bytes(jpeg)
    yield "ppm", b"P6 %d %d 255\n" % (side, side) + bytes(100)
    yield "bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    yield (
        "gif",
        b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, side, side, 0)
        + b"\x08\x01\x00\x00;",
    )
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, side),
        (279, 4, 1, 8),
    ]
    yield (
        "tif",
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4),
    )
    yield (
        "webp",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f\xff\xff\xff\xff" + bytes(5),
    )


def hostile(at, seed, most):
    """Rows of hostile archives and pictures. Nothing outside the cache may change."""
    outside = fresh(at, "outside")
    (outside / "secret.png").write_bytes(picture(77))
    tar = at / "images.tar"
    tar.write_bytes(good())
    truth = in_child(taken, f"tar:{tar}", fresh(at, "cache"))

    def before():
        return sorted(path.name for path in at.iterdir()), sorted(path.name for path in outside.iterdir())

    def once(row, content, of, expected=truth, name="images.tar"):
        (at / name).write_bytes(content)
        there = before()
        again(row, f"tar:{at / name}", fresh(at, "cache"), expected, of)
        if before() != there:
            row.add("code executed", f"files appeared: {before()}", of)

    row = Row("paths that leave, links, devices", "members of a tar")
    for of, extra in odd_members(outside).items():
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
            with contextlib.suppress(ValueError):  # a name that this format cannot hold
                once(row, good(extra, format), of)
    yield row
    row = Row("odd names", "members of a tar")
    for name in odd_names():
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            content = archive([member(*pair) for pair in GOOD] + [member(name, picture(50))], format)
            tar.write_bytes(archive([member(*pair) for pair in GOOD] + [member("cat/~.png", picture(50))]))
            expected = in_child(both_splits, f"tar:{tar}", fresh(at, "cache"))
            tar.write_bytes(content)
            try:
                found = in_child(both_splits, f"tar:{tar}", fresh(at, "cache"))
                row.add("went on" if found == expected else "wrong results", str(found), repr(name[:40]))
            except (Failed, Died) as error:
                row.refusal(error, repr(name[:40]))
    yield row
    row = Row("a name twice", "members of a tar")
    for name, _ in GOOD:
        once(row, good([member(name, picture(60))]), name, expected="one of the two")
        once(row, good([member("./" + name, picture(60))]), name, expected="one of the two")
    yield row
    row = Row("decompression bombs", "tar, gz, bz2, xz; sparse members; declared sizes")
    for of, content in bombs():
        once(row, content, of, expected="nothing that fits")
    yield row
    row = Row("decompression bombs", "pictures of 60,000 x 60,000 pixels, exploding text")
    for suffix, content in big_pictures():
        once(row, good([member(f"cat/bomb.{suffix}", content)]), suffix, expected="nothing that fits")
    yield row
    row, draw = Row("cut, noise", "a tar, plain and compressed"), random.Random(seed)
    for packer in (bytes, gzip.compress, bz2.compress, lzma.compress):
        content = packer(good())
        end = len(content) if packer is not bytes else len(good().rstrip(b"\0")) + 512
        for k in sorted(draw.sample(range(end), most)):
            once(row, content[:k], f"cut at {k}", expected="nothing")
    for _ in range(most):
        once(row, draw.randbytes(draw.randint(1, 4000)), "noise", expected="nothing")
    yield row
    row = Row("flipped bits", "headers of a tar")
    content = good()
    for at_header in [k for k in range(0, len(content), 512) if content[k + 257 : k + 262] == b"ustar"]:
        for k in sorted(draw.sample(range(512), most)):
            once(row, damaged(content, "flip", at_header + k), f"bit of byte {k} of the header at {at_header}")
    yield row
    row = Row("flipped bits", "a compressed tar (gz, bz2, xz)")
    for packer in (gzip.compress, bz2.compress, lzma.compress):
        content = packer(good())
        for k in sorted(draw.sample(range(len(content)), most)):
            once(row, damaged(content, "flip", k), f"bit of byte {k}")
    yield row
    yield odd_files(at, outside, Row("pipes, links, devices, odd files", "a folder of images"))


def both_splits(source, root):
    """Pixels of both splits together, in whatever order: a name decides where an image goes."""
    x = torch.cat([load_images(source, split, SIZE, root).x for split in ("train", "test")])
    return sorted(zlib.crc32(image.numpy().tobytes()) for image in x)


def odd_files(at, outside, row):
    """A folder with what is no file of an image, under an image's name."""
    loop = at / "photos"

    def pipe(path):
        os.mkfifo(path)

    def link_to(target):
        return lambda path: path.symlink_to(target)

    def socket(path):
        import socket

        with contextlib.chdir(path.parent):
            socket.socket(socket.AF_UNIX).bind(path.name)

    makers = {
        "a pipe": pipe,
        "a socket": socket,
        "a dangling link": link_to("nowhere"),
        "a link to itself": link_to("bad.png"),
    }
    makers |= {"a link to a device": link_to("/dev/zero"), "a link to a folder": link_to(outside), "a folder": os.mkdir}
    makers |= {"an unreadable name": lambda path: (path.parent / os.fsdecode(b"\xff\xfe.png")).write_bytes(picture(3))}
    if os.getuid() == 0:
        makers["a device"] = lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    for of, make in makers.items():
        for kind in ("folder", "stream"):
            shutil.rmtree(loop, ignore_errors=True)
            write_folder(loop)
            expected = in_child(streamed, f"{kind}:{loop}", fresh(at, "cache"))
            try:
                make(loop / "cat" / "bad.png")
            except OSError:
                continue  # not to be had here
            try:
                found = in_child(streamed, f"{kind}:{loop}", at / "cache", seconds=20)
                fine = found == expected or (of == "an unreadable name" and set(expected) <= set(found))
                row.add("went on" if fine else "wrong results", str(found)[:200], f"{of}, {kind}")
            except (Failed, Died) as error:
                row.refusal(error, f"{of}, {kind}")
    return row


def streamed(source, root):
    """Checksums of the images of both splits."""
    sums = []
    for split in ("train", "test"):
        images = load_images(source, split, SIZE, root)
        images = images if hasattr(images, "x") else __import__("dataclasses").replace(images, workers=0)
        sums += [zlib.crc32(x.numpy().tobytes()) for part in images.batches([torch.arange(len(images))]) for x in part]
    return sorted(sums)


def measure(seed, share=1.0):
    """Rows of all kinds; `share` of the drawn injections."""
    many = lambda count: max(2, round(share * count))  # noqa: E731
    with folder() as at:
        source = f"folder:{write_folder(at / 'photos')}"
        taken_here = in_child(taken, source, fresh(at, "cache"))
        yield killed(source, taken_here, at, Row("SIGKILL", "decoding a folder, at every operation on a file"))
        yield full(source, taken_here, at, Row("no space", "decoding a folder, from every operation on"))
        yield damaged_cache(source, taken_here, at, Row("damaged", "the cache of decoded images"), seed, many(300))
        yield raced(
            source, taken_here, at, Row("race", "two to four decode into one cache, some killed"), seed, many(20)
        )
        yield from archive_faults(at, seed, many(60))
    with folder() as at:
        yield from hostile(at, seed, many(30))
