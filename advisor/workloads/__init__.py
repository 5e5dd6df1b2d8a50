"""Workloads: what the model is run on. One file per kind; this module is their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.workloads.forward import Workload

__all__ = ["Workload", "workload_of"]

_KINDS = {"forward": Workload, "embed": Workload}


def workload_of(payload: Mapping[str, Any]) -> Workload:
    """Build the workload that a stored payload describes."""
    kind = _KINDS[payload["kind"]]
    return kind.of(payload)
