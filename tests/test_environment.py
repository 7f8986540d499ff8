"""settings.ini, environment.yml, requirements.lock and what is installed are in step."""

import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import wssl
from tests.checkout import ROOT


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    return config["DEFAULT"]


def direct():
    "Hard dependencies and those of every extra: `dev` holds all of them."
    values = settings()
    return [
        Requirement(text)
        for key in values
        if key == "requirements" or key.endswith("_requirements")
        for text in values[key].split()
    ]


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(item.name): item for item in pinned}


def test_the_lock_pins_names_and_versions_and_nothing_else():
    for item in lock().values():
        (pin,) = item.specifier
        assert pin.operator == "==" and "+" not in pin.version and item.url is None, item
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text


def test_the_lock_meets_every_requirement():
    locked = lock()
    for item in direct():
        (pin,) = locked[canonicalize_name(item.name)].specifier
        assert item.specifier.contains(pin.version), f"{item} against {pin}"


def test_installed_is_what_is_locked():
    "Versions that the tests ran with are the ones that the README promises."
    locked = lock()
    for item in direct():
        (pin,) = locked[canonicalize_name(item.name)].specifier
        assert Version(metadata.version(item.name)).public == pin.version, item.name


def reached():
    "What the requirements pull on this machine, extras followed, in names."
    seen, waiting = set(), [(canonicalize_name(item.name), frozenset(item.extras)) for item in direct()]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) not in seen:
            seen.add((name, extras))
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [
                (canonicalize_name(need.name), frozenset(need.extras))
                for need in needs
                if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            ]
    return {name for name, _ in seen} - {"pip", "setuptools", "wheel"}  # an environment is made with these


def test_the_lock_is_closed():
    "All that the requirements need on this machine is locked, so an install from it asks nobody else for a version; and nothing else is."
    here = {name for name, item in lock().items() if item.marker is None or item.marker.evaluate()}
    assert sorted(reached() - here) == [] and sorted(here - reached()) == []


def test_environment_yml_is_the_same_environment():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    assert f"- python={settings()['min_python']}" in lines
    assert [line for line in lines if line.startswith("- -")] == ["- -e .[dev]"]


def test_one_version():
    version = settings()["version"]
    assert wssl.__version__ == version
    assert re.search(rf"^version: ['\"]?{re.escape(version)}['\"]?$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)


def test_hooks_are_local_and_name_tools_that_are_locked():
    "No hook is fetched from elsewhere, and none is the filter that empties notebooks."
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"} and len(hooks) >= 4
    for hook in hooks:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/") and "--stdin" not in hook["entry"], hook["id"]
        assert (Path(sys.executable).parent / Path(tool).name).exists(), tool
        assert all(Path(ROOT / word.partition("::")[0]).exists() for word in hook["entry"].split() if "tests" in word)
