"""The package's file tree with a phrase a file, drawn from the modules' own first lines.

    python benchmarks/architecture.py --write docs/architecture.md

tests/test_docs.py compares the page with what this draws.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

_HEAD = """# Where what is

Drawn by `python benchmarks/architecture.py --write docs/architecture.md` from the first line of every module. Imports point
downward only (`[tool.importlinter]` in pyproject.toml); what ends in `_torch.py` is loaded by the worker alone.

"""


def drawn(package: Path = ROOT / "advisor") -> str:
    """Return the page: every module of the package, a folder after its files."""
    return f"{_HEAD}```\n{package.name}/\n" + "\n".join(_lines(package, 1)) + "\n```\n"


def _lines(folder: Path, depth: int) -> Iterator[str]:
    files = sorted(path for path in folder.glob("*.py"))
    width = max((len(file.name) for file in files), default=0)
    for file in files:
        yield f"{'  ' * depth}{file.name:{width}}  {phrase_of(file)}"
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))):
        yield f"{'  ' * depth}{inner.name}/"
        yield from _lines(inner, depth + 1)


def phrase_of(file: Path) -> str:
    """Return the first line of a module's docstring, without its full stop. Raises ValueError where there is none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{file} does not say what it is")
    return docstring.splitlines()[0].removesuffix(".")


def main() -> int:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description="Draw the package's file tree.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="instead of printing it")
    arguments = parser.parse_args()
    if arguments.write is None:
        print(drawn(), end="")
    else:
        arguments.write.write_text(drawn(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
