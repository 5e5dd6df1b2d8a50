"""What a build adds: a file that says of which commit it is made, for `advisor --version`."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes advisor/commit.txt into what is built; a source archive has it already, and hands it on."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say which commit is checked out, with a plus where files differ from it; outside a checkout leave what is there."""
        if version == "editable":  # a checkout is asked when its version is
            return
        root, told = Path(self.root), Path(self.root) / "advisor" / "commit.txt"
        if (root / ".git").exists():
            self._folder = tempfile.TemporaryDirectory()
            told = Path(self._folder.name) / "commit.txt"
            if commit := commit_of(root):
                told.write_text(commit, encoding="utf-8")
        if told.exists():
            build_data.setdefault("force_include", {})[str(told)] = "advisor/commit.txt"

    def finalize(self, *_: Any) -> None:
        """Take the file away again."""
        if self._folder is not None:
            self._folder.cleanup()


def commit_of(root: Path) -> str:
    """Return the short name of the commit that is checked out; "" where nobody knows, which is no reason not to build."""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or one that does not trust the owner of the folder
        return ""
