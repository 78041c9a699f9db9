"""Where memory does not suffice, a call raises; the process goes on."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("out_of_memory.py")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="it maps terabytes")
def test_every_room_raises_where_memory_does_not_suffice() -> None:
    # fixed thresholds: glibc would keep for later what it got once
    settings = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "OMP_NUM_THREADS": "2",
    }
    ended = subprocess.run(
        [sys.executable, SCRIPT],
        env={**os.environ, **settings, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = ended.stdout.splitlines()
    assert len(lines) == 19
    for line in lines:
        found = re.fullmatch(r".*: (\d+) of (\d+) refused; then the same", line)
        assert found is not None, line
        assert 0 < int(found[1]) < int(found[2]), line
