"""Logs as lines of JSON on stderr: a moment, a level, what happened, and what it is about. No secret is ever in one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: What every record has: all else was given with `extra`.
_USUAL = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "taskName"}


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "what": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _USUAL},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def log_json() -> None:
    """Have advisor's own log written as lines of JSON, and of libraries what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("advisor").setLevel(logging.INFO)


def log_event(log: logging.Logger, event: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Log what of a tune's events an operator asks for: how trials end, and what is waited for. about: what every line has."""
    if event["event"] == "trial":
        trial = event["trial"]
        words = {"trial": trial.number, "configuration": str(trial.requested), "outcome": str(trial.outcome)}
        log.info("a trial ended", extra={**about, **words, "why": trial.reason})
    elif str(event.get("stage", "")).startswith("waiting"):
        log.info(event["stage"], extra=about)
