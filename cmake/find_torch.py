"""Prints `folder;version;CUDA version` of the torch that this Python has, without importing it."""

import importlib.util
import pathlib
import runpy
import sys

spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    sys.exit(f"{sys.executable} has no torch")
folder = pathlib.Path(spec.origin).parent
facts = runpy.run_path(str(folder / "version.py"))
print(folder, facts["__version__"], facts.get("cuda") or "", sep=";")
