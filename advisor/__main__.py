"""python -m advisor."""

import signal
import sys
import time

#: A budget counts from here.
_BEGAN = time.monotonic()


def main() -> None:
    """Run the command line and exit with its status; an interrupt while it is being imported is one too."""
    try:
        from advisor.faces.cli import run

        status = run(sys.argv[1:], _BEGAN)
    except KeyboardInterrupt:
        sys.stderr.write("advisor: interrupted\n")
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends: what is left is to end the warm parents
    # CPython keeps in mind that an interrupt passed through code made from text (every dataclass and namedtuple that is
    # being defined is such), though it was caught, and `python -m` then ends by the signal instead of with the status.
    # Running other text makes it forget (run_eval_code_obj in CPython's pythonrun.c).
    exec("")  # noqa: S102 - see above
    sys.exit(status)


if __name__ == "__main__":
    main()
