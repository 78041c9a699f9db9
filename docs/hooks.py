"""Hooks of mkdocs: pages whose only source lies outside docs/, and tables of bench/results."""

from __future__ import annotations

import ast
import csv
import functools
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = "cpu-amd-epyc-2-cores-avx512"

SOURCES = {
    "benchmarks.md": "bench/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    f"figures/{RESULTS}.png": f"bench/results/{RESULTS}.png",
    f"figures/{RESULTS}.csv": f"bench/results/{RESULTS}.csv",
    **{
        f"ops/{path.parent.name}.md": path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gtkern" / "ops").glob("*/README.md")
    },
}
"""Files of the site, and the files of the repository that they are."""

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
TABLE = re.compile(r"^<!-- table of (\w+) -->$", flags=re.MULTILINE)
MEMBERS = re.compile(r"^<!-- members of ([\w.]+) -->$", flags=re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the files from outside docs/."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links by the repository's paths to pages of the site; make tables and references."""
    name = page.file.src_uri
    source = SOURCES.get(name, f"docs/{name}")
    pages = {origin: target for target, origin in SOURCES.items()}

    def lead(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = pages.get(path)
        if target is None:
            if not path.startswith("docs/"):
                raise PluginError(f"{source} links to {path}, which the site does not have")
            target = path.removeprefix("docs/")
        return f"]({posixpath.relpath(target, posixpath.dirname(name) or '.')}{link[2] or ''})"

    markdown = LINK.sub(lead, markdown)
    markdown = MEMBERS.sub(lambda found: members(found[1]), markdown)
    return TABLE.sub(lambda found: table(found[1]), markdown)


def members(module: str) -> str:
    """References to all that a module offers, by the places where it is defined."""
    homes = [home(module, name) for name in offered(module)]
    modules = [each for each in homes if ROOT.joinpath(*each.split(".")).is_dir()]
    return "\n\n".join(f"::: {each}" for each in homes if each not in modules)


def offered(module: str) -> list[str]:
    """`__all__` of a module."""
    for node in syntax(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    raise PluginError(f"{module} has no __all__")


def home(module: str, name: str) -> str:
    """Where a name that a module offers is defined: references are to that place."""
    for node in ast.walk(syntax(module)):
        if not isinstance(node, ast.ImportFrom) or node.module == module:
            continue
        if name in [alias.name for alias in node.names]:
            return home(str(node.module), name)
    return f"{module}.{name}"


@functools.cache
def syntax(module: str) -> ast.Module:
    """The tree of a module of the package."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def table(room: str) -> str:
    """A room's rows of record: gtkern's time, and every peer's as a multiple of it."""
    with (ROOT / "bench" / "results" / f"{RESULTS}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["room"] == room]
    if not rows:
        raise PluginError(f"{RESULTS}.csv has no rows of {room}")
    peers = list(dict.fromkeys(row["side"] for row in rows if not is_own(row)))
    heading = ["case", "pass", "gtkern", "peak", *peers]
    lines = [heading, ["---", "---", *["---:"] * (2 + len(peers))]]
    for own in filter(is_own, rows):
        same = {row["side"]: row for row in rows if key(row) == key(own)}
        case = f'<span title="{own["shape"]}">{own["case"]}</span>'
        line = [case, own["passes"], milliseconds(own["ms"]), mebibytes(own["peak_mib"])]
        lines.append([*line, *(ratio(same.get(peer)) for peer in peers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_own(row: dict[str, str]) -> bool:
    """Whether a row is gtkern's."""
    return row["side"].startswith("gtkern")


def key(row: dict[str, str]) -> tuple[str, str, str]:
    """What was measured together."""
    return row["case"], row["passes"], row["caches"]


def ratio(row: dict[str, str] | None) -> str:
    """How many times as long a peer takes."""
    number = float(row["ratio"]) if row and row["ratio"] else None
    return "–" if number is None else f"{number:.0f}x" if number >= 100 else f"{number:.3g}x"


def milliseconds(value: str) -> str:
    """A time of three digits."""
    number = float(value)
    return f"{number:,.0f}&nbsp;ms" if number >= 100 else f"{number:.3g}&nbsp;ms"


def mebibytes(value: str) -> str:
    """A size of three digits."""
    if not value:
        return "–"
    number = float(value)
    return f"{number:,.0f}&nbsp;MiB" if number >= 100 else f"{number:.3g}&nbsp;MiB"
