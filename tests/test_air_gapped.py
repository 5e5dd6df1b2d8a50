"""Hosts without a network: a tune, an answer, a script, a list and pages ask for none, seen by an audit hook in every Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_databases import probed

MODELS = Path(__file__).parent / "models"

#: Python runs this before everything else, in workers too: what would leave the machine is written down.
HOOK = """
import os, sys

def heard(event, arguments, log=os.environ["ASKED_FOR_A_NETWORK"]):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        with open(log, "a") as file:
            file.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\\n")

sys.addaudithook(heard)
"""

WORK = ["--lengths", "16", "--padding", "0.4", "--batch", "4", "--batches", "2", "--device", "cpu"]
ASKED = {
    "tune a decoder": ["tune", "causal", *WORK, "--trials", "3", "--blocks", "3"],
    "tune an encoder": ["tune", "encoder", *WORK, "--trials", "2", "--blocks", "0"],
    "suggest": ["suggest", "causal", *WORK],
    "script": ["suggest", "causal", *WORK, "--format", "python"],
    "trials": ["trials"],
    "a study's page": ["report", "", "1"],
    "a model's map": ["map", "causal"],
    "probe": ["probe"],
}


def in_a_namespace() -> list[str]:
    """Return what runs a command where there is no network at all, not even a loopback that is up."""
    command = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("unshare can't make a network namespace here: the kernel or a container forbids it")
    return command


def test_nothing_asks_for_a_network(tmp_path: Path) -> None:
    """Without a network, and without being told that there is none: each command ends as always and asks for nobody's address."""
    isolated, log = in_a_namespace(), tmp_path / "asked.txt"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    variables = {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(Path(__file__).parent.parent)]),
        "ASKED_FOR_A_NETWORK": str(log),
        "ADVISOR_DATABASE_URL": probed(f"sqlite:///{tmp_path}/advisor.db"),
        "HF_HOME": str(tmp_path / "hub"),
    }
    proof = [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 1)"]
    assert subprocess.run([*isolated, *proof], env=variables, capture_output=True, check=False).returncode != 0
    assert "192.0.2.1" in log.read_text(), "the hook does not hear"
    log.unlink()

    for name, (verb, *rest) in ASKED.items():
        model = [str(MODELS / rest[0])] if rest and rest[0] else []
        command = [*isolated, sys.executable, "-m", "advisor", verb, *model, *rest[1:]]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), f"{name}: {done.stderr}"
        assert done.stdout, name
        assert not log.exists(), f"{name} asked: {log.read_text()}"
