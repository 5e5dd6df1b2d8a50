"""python -m advisor."""

import sys
import time

#: A budget counts from here.
_BEGAN = time.monotonic()


def main() -> None:
    """Run the command line and exit with its status; an interrupt while it is being imported is one too."""
    try:
        from advisor.faces.cli import run
    except KeyboardInterrupt:
        sys.stderr.write("advisor: interrupted\n")
        sys.exit(130)
    sys.exit(run(sys.argv[1:], _BEGAN))


if __name__ == "__main__":
    main()
