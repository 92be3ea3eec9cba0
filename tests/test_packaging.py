"""A wheel holds every package of the checkout and the data that they read."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]
TOP = {"dvpd": "dvpd", "runtime": "dvpd.runtime", "export": "dvpd.export"} | {
    "benchmarks": "dvpd.benchmarks"
}

DATA_ONLY = "dvpd.engines"  # the default model's graphs, and no code


def test_every_place_that_names_the_version_names_the_same():
    import dvpd

    for path in (ROOT / "pyproject.toml", ROOT / "engines" / "pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        assert project["version"] == dvpd.__version__, path


def package_of(folder: Path) -> str:
    """Name of the package that a folder of the checkout is installed as."""
    first, *rest = folder.relative_to(ROOT).parts
    return ".".join([TOP[first], *rest])


def test_every_folder_with_code_is_a_listed_package():
    found = {package_of(path.parent) for top in TOP for path in (ROOT / top).rglob("*.py")}
    assert set(SETTINGS["packages"]) == found | {DATA_ONLY}
    for package in found:
        assert (folder_of(package) / "__init__.py").is_file()


def folder_of(package: str) -> Path:
    """Folder from which setuptools takes a package: its own or its nearest parent's entry."""
    parts, rest = package.split("."), []
    while ".".join(parts) not in SETTINGS["package-dir"]:
        rest.insert(0, parts.pop())
    return ROOT / SETTINGS["package-dir"][".".join(parts)] / Path(*rest)


def test_setuptools_finds_every_module_where_it_lies():
    setuptools = pytest.importorskip("setuptools")
    from setuptools.command.build_py import build_py

    distribution = setuptools.Distribution(
        {"packages": SETTINGS["packages"], "package_dir": SETTINGS["package-dir"]}
    )
    distribution.script_name = "setup.py"
    command = build_py(distribution)
    command.ensure_finalized()
    for package in SETTINGS["packages"]:
        assert ROOT / command.get_package_dir(package) == folder_of(package)
        modules = command.find_package_modules(
            package, str(ROOT / command.get_package_dir(package))
        )
        assert {Path(file) for *_, file in modules} == set(folder_of(package).glob("*.py"))


def test_data_files_beside_the_code_are_listed():
    """Results of measurements and caches stay in the checkout."""
    for package in set(SETTINGS["packages"]) - {DATA_ONLY}:
        folder = folder_of(package)
        patterns = SETTINGS["package-data"].get(package, [])
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).as_posix()
            owner = package_of(path.parent) in SETTINGS["packages"] and path.parent != folder
            if not path.is_file() or owner or inside.startswith("results/"):
                continue
            if path.suffix in (".py", ".pyc") or "__pycache__" in inside:
                continue
            assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns), path
