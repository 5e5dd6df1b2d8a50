"""Where the seconds of a tune go: every stage of the parent and the worker with the seconds it took, then the sums.

    python benchmarks/timeline.py tune MODEL [flags of advisor tune]

The command is run in this process; its stages are printed on stderr as they end.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from advisor.show import ledger


class Timeline(ledger.Ledger):
    """A ledger that prints every stage."""

    def _turn_to(self, stage: str) -> None:
        before, since = self._stage, self._since
        super()._turn_to(stage)
        took_s = self._since - since
        SUMS[before] += took_s
        if took_s >= 0.01:
            print(f"{since - self._began:8.2f} s  {took_s:7.2f} s  {before or 'starting'}", file=sys.stderr)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Print what is run, too."""
        super().hear(event)
        if event["event"] == "start":
            print(f"    {event['phase']} {event['block'] or ''} {event['configuration']}", file=sys.stderr)


SUMS: dict[str, float] = defaultdict(float)


def main() -> int:
    """Run the command."""
    from advisor.faces.cli import run
    from advisor.show import progress

    progress.Ledger = Timeline  # type: ignore[misc]
    began = time.monotonic()
    status = run(sys.argv[1:], began)
    for stage, seconds in sorted(SUMS.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.2f} s  {stage or 'starting'}", file=sys.stderr)
    print(f"{time.monotonic() - began:8.2f} s in all", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
