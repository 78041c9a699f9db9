"""The pages of docs/ tell the truth: messages are those that are raised, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import yaml

from gtkern import _backends, _native
from gtkern.training.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README_PAGES = sorted((ROOT / "gtkern" / "ops").glob("*/README.md"))
SOURCES = ["CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]*)\)")


class Trouble(NamedTuple):
    """A heading of the page, what provokes the message, and the message."""

    heading: str
    language: str
    provocation: str
    message: str


def troubles() -> list[Trouble]:
    """The entries of docs/troubleshooting.md."""
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    found = []
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        blocks = FENCE.findall(body)
        assert [language for language, _ in blocks][1:] == ["console"], heading
        (language, provocation), (_, message) = blocks
        found.append(Trouble(heading, language, provocation, message.strip()))
    return found


def preamble() -> str:
    """What the lines of Python begin with."""
    return next(
        code
        for language, code in FENCE.findall((DOCS / "troubleshooting.md").read_text("utf-8"))
        if language == "python"
    )


def without_library(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """As installed without a compiler."""
    patch.setattr(_native, "LIBRARY_DIR", folder)
    patch.setitem(_native._missing, "cpu", _native._load_library("gtkern_cpu"))


def without_triton(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """As installed without Triton."""
    find = importlib.util.find_spec

    def find_others(name: str, *rest: Any) -> Any:
        return None if name == "triton" else find(name, *rest)

    patch.setattr(_backends.importlib.util, "find_spec", find_others)


def without_pandas(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """As installed without pandas, beside a table."""
    (folder / "nodes.csv").write_text("id,title,field\n")
    patch.setitem(sys.modules, "pandas", None)


def without_rdkit(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """As installed without rdkit."""
    patch.setitem(sys.modules, "rdkit", None)


def with_a_run(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """In a folder with a run of Spexphormer."""
    run = folder / "runs" / "spexphormer-minesweeper"
    run.mkdir(parents=True)
    config = ROOT / "gtkern" / "configs" / "spexphormer" / "minesweeper.yaml"
    shutil.copy(config, run / "config.yaml")


PREPARED: dict[str, Callable[[pytest.MonkeyPatch, pathlib.Path], None]] = {
    "Molecules without rdkit": without_rdkit,
    "No Triton": without_triton,
    "No native library": without_library,
    "Resuming with other settings": with_a_run,
    "Tables without pandas": without_pandas,
}


def built_without_torch(folder: pathlib.Path, patch: pytest.MonkeyPatch) -> str:
    """What setup.py says; tests/test_build.py provokes it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NO_TORCH":
            return str(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no NO_TORCH")


def stale(folder: pathlib.Path, patch: pytest.MonkeyPatch) -> str:
    """What gtkern doctor says of libraries that were built of other sources."""
    library = folder / "gtkern" / "lib"
    library.mkdir(parents=True)
    (library / "build.json").write_text(json.dumps({"sources": "others"}))
    (folder / "CMakeLists.txt").touch()
    patch.setattr(_native, "LIBRARY_DIR", library)
    return str(_native.stale_reason())


SAID: dict[str, Callable[[pathlib.Path, pytest.MonkeyPatch], str]] = {
    "A build without torch": built_without_torch,
    "Libraries of other sources": stale,
}
"""Messages of what is not run here."""


COMPILED = ("Second derivatives",)
"""Messages of compiled backends alone."""


def python_says(code: str, names: dict[str, Any]) -> str:
    """The last line of what Python prints when it runs the code."""
    try:
        exec(code, names)
    except Exception as error:
        kind = type(error)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        return f"{module}{kind.__qualname__}: {error}"
    return "nothing"


def command_says(line: str) -> str:
    """What a command of gtkern ends with."""
    from gtkern.cli import app

    try:
        app(line.split()[1:], prog_name="gtkern", standalone_mode=False)
    except UserError as error:
        return f"gtkern: {error}"
    return "nothing"


@pytest.mark.parametrize("trouble", troubles(), ids=lambda trouble: trouble.heading)
def test_message_is_what_is_raised(
    trouble: Trouble, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    names: dict[str, Any] = {}
    exec(preamble(), names)
    if trouble.heading in COMPILED and _native.missing_reason("cpu") is not None:
        pytest.skip("the native library was not built")
    if "use backend='cpu'" in trouble.message:
        # the nearest backend is that of a whole installation
        monkeypatch.setitem(_native._missing, "cpu", None)
    if trouble.heading in PREPARED:
        PREPARED[trouble.heading](monkeypatch, tmp_path)
    if trouble.heading in SAID:
        said = SAID[trouble.heading](tmp_path, monkeypatch)
    elif trouble.language == "python":
        said = python_says(trouble.provocation, names)
    else:
        said = command_says(trouble.provocation.strip())
    assert said == trouble.message


def test_prepared_troubles_are_on_the_page() -> None:
    headings = {trouble.heading for trouble in troubles()}
    assert {*PREPARED, *SAID, *COMPILED} <= headings


def test_quick_start_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "quick-start.md").read_text("utf-8")
    code = "\n".join(code for language, code in FENCE.findall(text) if language == "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["out"].shape == (1000, 4, 16)


def pages_of(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [
        page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)
    ]


def test_navigation_has_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = pages_of(config["nav"])
    assert len(listed) == len(set(listed))
    written = {path.relative_to(DOCS).as_posix() for path in PAGES}
    assert written <= set(listed)
    rooms = {f"ops/{path.parent.name}.md" for path in README_PAGES}
    others = {"benchmarks.md", "changelog.md", "contributing.md"}
    assert set(listed) - written == rooms | others


@pytest.mark.parametrize(
    "path",
    [*PAGES, *README_PAGES, *(ROOT / source for source in SOURCES)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        target, _, anchor = link.partition("#")
        aim = pathlib.Path(os.path.normpath(path.parent / target)) if target else path
        made = source_of(aim)
        assert made.is_file(), f"{path} links to {link}, which is not there"
        if anchor and made.suffix == ".md":
            assert anchor in anchors(made), f"{path} links to {link}: no such heading"


def source_of(path: pathlib.Path) -> pathlib.Path:
    """The file in the repository of a page that docs/ is given by its hooks."""
    if path.is_file() or DOCS not in path.parents:
        return path
    name = path.relative_to(DOCS).as_posix()
    hooks = (DOCS / "hooks.py").read_text("utf-8")
    found = re.search(rf'^    "{re.escape(name)}": "([^"]+)",$', hooks, flags=re.MULTILINE)
    if found is not None:
        return ROOT / found[1]
    if path.parent == DOCS / "ops":
        return ROOT / "gtkern" / "ops" / path.stem / "README.md"
    if path.parent == DOCS / "figures":
        return ROOT / "bench" / "results" / path.name
    return path


def anchors(path: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    text = FENCE.sub("", path.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}
