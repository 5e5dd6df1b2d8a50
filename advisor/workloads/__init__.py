"""Workloads: what the model is run on. One file per kind; this module is their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.checked import Malformed, shortened
from advisor.workloads.forward import Workload

__all__ = ["KINDS", "Workload", "workload_of"]

#: Kinds of workloads by the name that is stored.
KINDS = {"forward": Workload, "embed": Workload}


def workload_of(payload: Mapping[str, Any]) -> Workload:
    """Build the workload that a stored payload describes."""
    if not isinstance(payload, Mapping) or payload.get("kind") not in KINDS:
        raise Malformed(f"no kind of workload: {shortened(payload)}")
    return KINDS[payload["kind"]].of(payload)
