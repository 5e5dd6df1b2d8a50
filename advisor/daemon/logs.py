"""Logs as lines of JSON on stderr: a moment, a level, what happened, and what it is about. No secret is ever in one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

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


@contextmanager
def logged_as_json() -> Iterator[None]:
    """Have the log written as by :func:`log_json` for a while: a stderr that is closed by then is not written to afterwards."""
    root, own = logging.getLogger(), logging.getLogger("advisor")
    handlers, levels = root.handlers[:], (root.level, own.level)
    root.handlers[:] = []
    try:
        log_json()
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip((root, own), levels, strict=True):
            logger.setLevel(level)


def log_json() -> None:
    """Have advisor's own log written as lines of JSON, and of libraries what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("advisor").setLevel(logging.INFO)
