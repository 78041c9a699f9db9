"""The arrows of the architecture, read off the imports, and what every room must bring along."""

from __future__ import annotations

import ast
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gtkern"

LAYERS = (
    {"_native", "_check", "_graph", "_processes", "random"},
    {"_backends", "block_sparse", "graph", "ragged"},
    {"ops", "testing", "transforms"},
    {"nn", "data", "peers"},
    {"dropin", "models"},
    {"training"},
    {"methods"},
    {"doctor"},
    {"cli"},
    {"__main__"},
)
"""The parts of the package, from the bottom up: each imports only parts below itself."""

HEAVY = (
    "lightning",
    "matplotlib",
    "networkx",
    "pandas",
    "peft",
    "pyarrow",
    "sklearn",
    "tokenizers",
    "torch_geometric",
    "transformers",
    "triton",
)
"""What `import gtkern` must not load."""

BACKENDS = ("reference", "native", "triton")
"""Modules of a room that hold a backend; `triton_<part>` belongs to triton."""

MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in (PACKAGE / "ops").glob("*/op.py"))


def dotted(path: pathlib.Path) -> str:
    """The name a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in MODULES}


def imports(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """The modules that a file imports anywhere in it, and the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name their package in full"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in NAMES else str(node.module)), node.lineno


def inner_imports(path: pathlib.Path) -> list[tuple[tuple[str, ...], int]]:
    """The imports of the package's own modules, without its name."""
    return [
        (tuple(name.split(".")[1:]), line)
        for name, line in imports(path)
        if name.split(".")[0] == "gtkern"
    ]


def layer(part: str) -> int:
    """The height of a part of the package."""
    found = [height for height, parts in enumerate(LAYERS) if part in parts]
    assert found, f"gtkern.{part} has no place in LAYERS of {pathlib.Path(__file__).name}"
    return found[0]


def backend_of(module: str) -> str | None:
    """The backend that a module of a room belongs to."""
    return next((name for name in BACKENDS if module.split("_")[0] == name), None)


def identify(path: pathlib.Path) -> str:
    """A test's id."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_arrows_point_down(path: pathlib.Path) -> None:
    part = dotted(path).split(".")[1:2]
    if not part:
        return
    height = layer(part[0])
    for target, line in inner_imports(path):
        if target and target[0] != part[0]:
            assert layer(target[0]) < height, (
                f"{path}:{line}: gtkern.{part[0]} must not import gtkern.{target[0]}"
            )


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_every_import_of_the_package_exists(path: pathlib.Path) -> None:
    for target, line in inner_imports(path):
        name = ".".join(("gtkern", *target))
        assert name in NAMES or target[:1] == ("_graph",), f"{path}:{line}: there is no {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=identify)
def test_rooms_do_not_import_rooms(path: pathlib.Path) -> None:
    inside = path.relative_to(PACKAGE / "ops").parts
    if len(inside) == 1 and inside[0] == "__init__.py":
        return
    for target, line in inner_imports(path):
        if target[:1] != ("ops",):
            continue
        own = len(inside) > 1 and target[1:2] == (inside[0],)
        shared = len(target) > 1 and target[1].startswith("_")
        # `from gtkern.ops import _shared` also counts as an import of what it names
        assert own or shared, f"{path}:{line}: imports gtkern.{'.'.join(target)}"


@pytest.mark.parametrize("room", ROOMS, ids=identify)
def test_backends_of_a_room_do_not_import_each_other(room: pathlib.Path) -> None:
    for path in room.glob("*.py"):
        mine = backend_of(path.stem)
        if mine is None:
            continue
        for target, line in inner_imports(path):
            if target[:2] != ("ops", room.name) or len(target) < 3:
                continue
            other = backend_of(target[2])
            assert other in (None, mine), f"{path}:{line}: {mine} imports {other}"
            assert target[2] != "op", f"{path}:{line}: a backend imports the public function"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_only_triton_backends_import_triton(path: pathlib.Path) -> None:
    if path.stem.startswith("_triton") or backend_of(path.stem) == "triton":
        return
    for name, line in imports(path):
        assert name.split(".")[0] != "triton", f"{path}:{line}"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_environment_is_read_in_two_places(path: pathlib.Path) -> None:
    if path.name in ("_native.py", "_backends.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        read = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        assert not read, f"{path}:{node.lineno}: reads the environment"


def importing(code: str) -> dict[str, list[str]]:
    """What a fresh interpreter loads and warns of while it runs `code`, torch being there."""
    program = (
        "import json, sys, warnings, torch\n"
        "before = set(sys.modules)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    {code}\n"
        "loaded = sorted({name.split('.')[0] for name in set(sys.modules) - before})\n"
        "print(json.dumps({'loaded': loaded, 'warnings': [str(w.message) for w in caught]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_importing_the_package_is_light_and_silent() -> None:
    found = importing("import gtkern")
    assert not set(HEAVY) & set(found["loaded"])
    assert found["warnings"] == []


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts `__all__`."""
    if name.isupper() and len(name) > 1:
        return 0, name
    return (1 if name[0].isupper() else 2), name


def public_names(path: pathlib.Path) -> list[str] | None:
    """The `__all__` of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def is_public(path: pathlib.Path) -> bool:
    """False for underscored modules, a room's backends, and packages that hold nothing."""
    parts = dotted(path).split(".")
    if any(part.startswith("_") for part in (*parts, path.stem) if part != "__init__"):
        return False
    if path.parent in ROOMS and backend_of(path.stem):
        return False
    return len(ast.parse(path.read_text()).body) > 1


@pytest.mark.parametrize("path", [path for path in MODULES if is_public(path)], ids=identify)
def test_public_modules_list_what_they_offer_sorted(path: pathlib.Path) -> None:
    names = public_names(path)
    assert names is not None, f"{path} has no __all__"
    assert names == sorted(names, key=sort_key)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("room", ROOMS, ids=identify)
@pytest.mark.parametrize(
    "pattern",
    [
        "gtkern/ops/{room}/README.md",
        "gtkern/ops/{room}/reference.py",
        "tests/ops/test_{room}.py",
        "bench/ops/{room}.py",
        "csrc/{room}",
    ],
)
def test_every_room_is_complete(room: pathlib.Path, pattern: str) -> None:
    path = ROOT / pattern.format(room=room.name)
    assert path.exists(), f"the room {room.name} has no {path.relative_to(ROOT)}"


def test_every_room_is_offered() -> None:
    shared = {path.name for path in (PACKAGE / "ops").iterdir() if path.is_dir()}
    assert shared - {"__pycache__"} == {room.name for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS, ids=identify)
def test_every_room_proves_the_contract(room: pathlib.Path) -> None:
    tests = ROOT / "tests" / "ops" / f"test_{room.name}.py"
    if not tests.exists():
        pytest.fail(f"{tests.relative_to(ROOT)} is missing")
    used = {name for name, _ in imports(tests)}
    assert used & {"attention_contract", "contract"}, (
        f"{tests.relative_to(ROOT)} does not use tests/ops/contract.py"
    )
