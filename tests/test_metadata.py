"""pyproject.toml tells the truth: what is needed is named, and only that."""

from __future__ import annotations

import ast
import pathlib
import re
import sys
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gtkern"
OPTIONAL = ("language", "molecules", "triton")
"""The extras for users; the others are for working on gtkern."""

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the sources are not here"
)


def metadata() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def names(requirements: list[str]) -> set[str]:
    """The projects of requirements."""
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


def imported() -> set[str]:
    """The projects of other people that the package imports anywhere."""
    modules = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    called = {"sklearn": "scikit-learn", "torch_geometric": "torch-geometric", "yaml": "pyyaml"}
    others = modules - set(sys.stdlib_module_names) - {"gtkern"}
    return {called.get(module, module) for module in others}


def test_version_is_written_once() -> None:
    project = metadata()["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    attribute = metadata()["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "gtkern.__version__"


def test_every_dependency_is_imported() -> None:
    assert names(metadata()["project"]["dependencies"]) <= imported()


def test_every_import_is_a_dependency_or_in_an_extra() -> None:
    project = metadata()["project"]
    extras = project["optional-dependencies"]
    named = names(project["dependencies"]).union(*(names(extras[extra]) for extra in OPTIONAL))
    # comes with transformers and peft
    assert imported() - named <= {"tokenizers"}


def test_extras_that_are_named_anywhere_exist() -> None:
    extras = set(metadata()["project"]["optional-dependencies"])
    texts = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    texts += [ROOT / "pyproject.toml"]
    found = {
        extra: path
        for path in texts
        for listed in re.findall(r"\bgtkern\[([\w,]+)\]", path.read_text("utf-8"))
        for extra in listed.split(",")
    }
    assert set(OPTIONAL) <= set(found)
    for extra, path in found.items():
        assert extra in extras, f"{path} names the extra {extra}, which is not there"


def test_everything_for_working_on_it_is_in_one_extra() -> None:
    (whole,) = metadata()["project"]["optional-dependencies"]["dev"]
    listed = set(re.findall(r"\w+", whole)) - {"gtkern"}
    assert listed == {"bench", "docs", "lint", "test", "triton"}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^EXTRAS := dev$", makefile, flags=re.MULTILINE)


def test_types_and_settings_are_part_of_the_package() -> None:
    (patterns,) = metadata()["tool"]["setuptools"]["package-data"].values()
    assert {"*.pyi", "*.yaml", "py.typed"} <= set(patterns)
    assert (PACKAGE / "py.typed").exists()
