"""Builds the native parts with CMake. Metadata lives in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = pathlib.Path(__file__).parent.resolve()
NO_TORCH = (
    "gtkern is built against the torch you already have, and this build sees none: "
    "install torch first, then run `pip install --no-build-isolation .`"
)


class MetadataWithTorch(dist_info):
    """Stops a build without torch before pip downloads gigabytes for it."""

    def run(self) -> None:
        """Make the metadata."""
        _require_torch()
        super().run()


class NativeBuild(build_ext):
    """Configures, builds and installs CMakeLists.txt into the package's folder."""

    def run(self) -> None:
        """Build, or say why the package goes without native parts."""
        _require_torch()
        native = os.environ.get("GTKERN_NATIVE", "ON")
        if native not in ("ON", "OFF"):
            raise SystemExit(f"GTKERN_NATIVE must be ON or OFF, got {native!r}")
        if native == "OFF":
            self.warn("GTKERN_NATIVE=OFF: gtkern goes without native kernels")
            return
        cmake, compiler = _tool("cmake"), _compiler()
        if cmake is None or compiler is None:
            missing = "cmake (`pip install cmake ninja`)" if cmake is None else "C++ compiler"
            self.warn(f"no {missing} found: gtkern goes without native kernels, on 'reference'")
            return
        destination = ROOT if self.inplace or self.editable_mode else pathlib.Path(self.build_lib)
        # one folder for each Python, outside pip's temporary ones: the next build is incremental
        build = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
        ninja = _tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        python = f"-DPython_EXECUTABLE={sys.executable}"
        subprocess.check_call([cmake, "-S", ROOT, "-B", build, *generator, python, *options])
        subprocess.check_call([cmake, "--build", build, "--parallel", str(os.cpu_count() or 1)])
        subprocess.check_call([cmake, "--install", build, "--prefix", destination / "gtkern"])

    def get_outputs(self) -> list[str]:
        """The files that the installation writes, known only once it ran."""
        return []


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(NO_TORCH)


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def _tool(name: str) -> str | None:
    """The program from pip next to this Python, which need not be on the path, or any other."""
    return shutil.which(name, path=str(pathlib.Path(sys.executable).parent)) or shutil.which(name)


setup(
    ext_modules=[Extension("gtkern._graph", sources=[])],
    cmdclass={"build_ext": NativeBuild, "dist_info": MetadataWithTorch},
)
