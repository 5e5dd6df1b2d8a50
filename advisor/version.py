"""The version of this package: what `--version` says, and by what a trial was stored or an export written."""

from __future__ import annotations

__version__ = "0.1.0"


def commit() -> str:
    """Return the commit that this was made of, with a plus where files differ from it; "" where nobody knows.

    A build says it in commit.txt; a checkout is asked.
    """
    from pathlib import Path  # here: `import advisor` brings nothing that takes time

    package = Path(__file__).parent
    try:
        return (package / "commit.txt").read_text(encoding="utf-8").strip()
    except OSError:
        pass
    if not (package.parent / ".git").exists():
        return ""
    import subprocess

    asked = ["git", "-C", str(package.parent), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
