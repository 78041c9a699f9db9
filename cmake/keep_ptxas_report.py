"""Runs a compiler command and keeps what ptxas says of registers and spills.

Usage: keep_ptxas_report.py FOLDER COMMAND...
Writes FOLDER/<room>_<source>.txt, one line for each kernel and architecture; every other line of
the compiler goes on to its standard error.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")


def main(folder: pathlib.Path, command: list[str]) -> int:
    """Run `command`; return its exit status."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    rows: list[tuple[str, ...]] = []
    entry, spills = ("", ""), ("0", "0", "0")
    for line in done.stderr.splitlines():
        if found := _ENTRY.search(line):
            entry = (found[1], found[2])
        elif found := _SPILLS.search(line):
            spills = (found[1], found[2], found[3])
        elif found := _USED.search(line):
            rows.append((entry[1], found[1], *spills, _shared(found[2]), entry[0]))
        elif "ptxas info" not in line and "Function properties for" not in line:
            print(line, file=sys.stderr)
    if rows:
        _write(folder, command, rows)
    return done.returncode


def _shared(rest: str) -> str:
    found = re.search(r"(\d+) bytes smem", rest)
    return found[1] if found else "0"


def _write(folder: pathlib.Path, command: list[str], rows: list[tuple[str, ...]]) -> None:
    source = next(pathlib.Path(word) for word in reversed(command) if word.endswith(".cu"))
    names = "\n".join(row[-1] for row in rows)
    demangler = shutil.which("cu++filt") or shutil.which("c++filt")
    if demangler:
        names = subprocess.run([demangler], input=names, capture_output=True, text=True).stdout
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["arch registers stack_bytes spill_store_bytes spill_load_bytes shared_bytes kernel"]
    lines += [
        " ".join((*row[:-1], name)) for row, name in zip(rows, names.splitlines(), strict=True)
    ]
    report = folder / f"{source.parent.name}_{source.stem}.txt"
    report.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2:]))
