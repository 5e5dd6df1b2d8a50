"""What the daemon outlasts: a few of each fault of tests/faults/daemon.py, seeded. `make faults` runs thirty of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "faults" / "daemon.py"

#: Needs what root alone may do: a disk of its own that is full, a host's processes in a name space of their own.
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mount and unshare are root's")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("cell", "database"),
    [
        ("daemon", "SQLite"),
        ("daemon", "PostgreSQL"),
        ("worker", "SQLite"),
        ("worker", "PostgreSQL"),
        ("trial", "SQLite"),
        ("trial", "PostgreSQL"),
        ("cancel", "SQLite"),
        ("cancel", "PostgreSQL"),
        ("stop", "SQLite"),
        ("stop", "PostgreSQL"),
        ("polite", "SQLite"),
        ("away", "PostgreSQL"),
        ("thousand", "SQLite"),
        ("one", "PostgreSQL"),
        pytest.param("host", "PostgreSQL", marks=AS_ROOT),
        pytest.param("full", "SQLite", marks=AS_ROOT),
    ],
)
def test_a_daemon_outlasts(cell: str, database: str) -> None:
    """Every study ends, every number is recorded once, nothing is lost; what is to be quick is."""
    command = [sys.executable, str(SCRIPT), "--cell", cell, "--database", database, "--kills", "3", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stderr
