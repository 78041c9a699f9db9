"""The package builds, installs and imports as promised, with a compiler and without."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

import gtkern
from gtkern import _native

ROOT = pathlib.Path(__file__).parents[1]
SETUPTOOLS = importlib.util.find_spec("setuptools")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not here"),
    pytest.mark.skipif(SETUPTOOLS is None, reason="setuptools is not installed"),
]


def run(
    *command: str | pathlib.Path, cwd: pathlib.Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHONPATH")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    made = run(
        sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "-d", folder,
        cwd=ROOT,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with tarfile.open(folder / f"gtkern-{gtkern.__version__}.tar.gz") as archive:
        archive.extractall(folder)
    return folder / f"gtkern-{gtkern.__version__}"


def test_every_native_source_is_in_the_build() -> None:
    listed = re.findall(r"csrc/\S+\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    there = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in there)


def test_source_distribution_has_every_file(source: pathlib.Path) -> None:
    for folder in (".ci", "bench", "csrc", "cmake", "docs", "examples", "gtkern", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so") and path.parent.name != "lib":
                assert (source / path.relative_to(ROOT)).is_file(), path
    for name in (
        "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
        "mkdocs.yml", "pyproject.toml", "setup.py", ".clang-format",
    ):  # fmt: skip
        assert (source / name).is_file()


def test_a_build_without_torch_says_in_one_line_what_to_add(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert SETUPTOOLS is not None
    assert SETUPTOOLS.origin is not None
    packages = pathlib.Path(SETUPTOOLS.origin).parents[1]
    for path in (packages / "_distutils_hack", *packages.glob("setuptools*")):
        (tmp_path / path.name).symlink_to(path)
    for command in ("dist_info", "build_ext"):
        # -S leaves out the folder that has torch
        done = run(
            sys.executable, "-S", "setup.py", "-q", command, cwd=source, PYTHONPATH=str(tmp_path)
        )
        assert done.returncode != 0
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1
        assert "install torch first" in lines[0]
        assert "--no-build-isolation" in lines[0]


def test_native_off_compiles_nothing(source: pathlib.Path) -> None:
    done = run(sys.executable, "setup.py", "build_ext", cwd=source, GTKERN_NATIVE="OFF")
    assert done.returncode == 0, done.stderr
    assert "GTKERN_NATIVE=OFF: gtkern goes without native kernels" in done.stdout + done.stderr
    assert not list(source.rglob("CMakeCache.txt"))
    refused = run(sys.executable, "setup.py", "build_ext", cwd=source, GTKERN_NATIVE="no")
    assert refused.returncode != 0
    assert "GTKERN_NATIVE must be ON or OFF, got 'no'" in refused.stderr


def test_without_a_compiler_the_package_installs_and_runs_on_reference(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bare, site = tmp_path / "bin", tmp_path / "site"
    bare.mkdir()
    installed = run(
        sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation",
        "--no-compile", "--target", site, source, cwd=tmp_path, PATH=str(bare),
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert "no C++ compiler found" in installed.stdout + installed.stderr
    for path in (ROOT / "gtkern").rglob("*"):
        if path.suffix in (".pyi", ".yaml") or path.name in ("README.md", "py.typed"):
            assert (site / path.relative_to(ROOT)).is_file(), path
    program = """
import torch, gtkern
graph = gtkern.Graph.from_edge_index(torch.tensor([[0, 1], [1, 1]]), 2)
x = torch.ones(2, 1, 4)
print(gtkern.__file__, gtkern.ops.sparse_attention(x, x, x, graph)[1].tolist())
from gtkern import _native
print(_native.missing_reason("cpu"))
from gtkern.transforms import expander_edges
print(expander_edges(20, 2, seed=0).shape)
"""
    ran = run(sys.executable, "-W", "error::UserWarning", "-c", program, cwd=tmp_path,
              PYTHONPATH=str(site))  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert first == f"{site}/gtkern/__init__.py [[1.0, 1.0, 1.0, 1.0]]"
    assert "install a C++ compiler" in second
    assert third == "torch.Size([2, 80])"


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_native_library_brings_no_thread_pool_of_its_own() -> None:
    reason = _native.missing_reason("cpu")
    if reason is not None:
        pytest.skip(reason)
    needed = run("readelf", "-d", _native.LIBRARY_DIR / "libgtkern_cpu.so", cwd=ROOT).stdout
    assert "libtorch_cpu.so" in needed
    assert not re.search(r"lib(g|i)?omp", needed)


def test_register_report_has_a_line_for_each_kernel(tmp_path: pathlib.Path) -> None:
    says = """
import sys
print("ptxas info    : Compiling entry function '_Z1fPf' for 'sm_90a'", file=sys.stderr)
print("ptxas info    : Function properties for _Z1fPf", file=sys.stderr)
print("    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads", file=sys.stderr)
print("ptxas info    : Used 32 registers, used 1 barriers, 512 bytes smem", file=sys.stderr)
print("a warning", file=sys.stderr)
sys.exit(3)
"""
    tool = ROOT / "cmake" / "keep_ptxas_report.py"
    done = run(
        sys.executable, tool, tmp_path / "reports", sys.executable, "-c", says, "room/cuda.cu",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == "a warning\n"
    header, line = (tmp_path / "reports" / "room_cuda.txt").read_text().splitlines()
    assert header.split() == [
        "arch", "registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes",
        "shared_bytes", "kernel",
    ]  # fmt: skip
    assert line.split(maxsplit=6)[:6] == ["sm_90a", "32", "8", "16", "24", "512"]
    assert "f" in line.split(maxsplit=6)[6]


def test_libraries_of_other_sources_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "csrc" / "room" / "cpu.cpp"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"int one;")
    digest = hashlib.sha256(b"int one;").hexdigest()
    total = hashlib.sha256(f"csrc/room/cpu.cpp {digest}\n".encode()).hexdigest()
    library = tmp_path / "gtkern" / "lib"
    library.mkdir(parents=True)
    (library / "build.json").write_text(json.dumps({"sources": total}))
    monkeypatch.setattr(_native, "LIBRARY_DIR", library)
    assert _native.stale_reason() is None, "no sources beside an installed package"
    (tmp_path / "CMakeLists.txt").touch()
    assert _native.stale_reason() is None
    source.write_bytes(b"int two;")
    assert "make setup" in str(_native.stale_reason())


def test_this_build_is_of_these_sources() -> None:
    if not _native.build_facts():
        pytest.skip("no native library was built")
    assert _native.stale_reason() is None
