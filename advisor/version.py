"""The version of this package: what `--version` says, and by what a trial was stored or an export written."""

from __future__ import annotations

__version__ = "0.1.0"
