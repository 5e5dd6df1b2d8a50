"""Runs `-m advisor …` and `-c CODE` one after the other in this Python, for tests: each with its own variables and streams.

A request is a line of JSON on stdin, {"arguments": [...], "variables": {...}}; the answer is one on what was stdout,
{"status": n, "stdout": "...", "stderr": "..."}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from advisor.faces.cli import run


def status_of(arguments: Sequence[str]) -> int:
    """Run what Python would be given and return its exit status; what it does not catch is told as Python tells it."""
    try:
        if arguments[:2] == ["-m", "advisor"]:
            return run(arguments[2:])
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the next one is asked for whatever this one did
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Answer until stdin is closed."""
    gc.set_threshold(20_000, 20, 50)  # as in the process that asks
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in requests:
        request = json.loads(line)
        before = dict(os.environ)
        os.environ.update(request["variables"])
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            answer: dict[str, object] = {"status": status_of(request["arguments"])}
            for name, stream, file in (("stdout", sys.stdout, stdout), ("stderr", sys.stderr, stderr)):
                stream.flush()
                file.seek(0)
                answer[name] = file.read().decode()
        # What torch sets when it is asked for its compiler is no other environment for the next one's workers.
        os.environ.clear()
        os.environ.update(before)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
