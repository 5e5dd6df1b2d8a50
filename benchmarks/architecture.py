"""The package's file tree with a phrase a file, drawn from the modules' own first lines.

    python benchmarks/architecture.py --write docs/architecture.md

tests/test_docs.py compares the page with what this draws.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

_HEAD = """# Where what is

Drawn by `python benchmarks/architecture.py --write docs/architecture.md` from the first line of every module. Imports point
downward only (`[tool.importlinter]` in pyproject.toml): a folder imports those below it on this page. What ends in `_torch.py` is
loaded by the worker alone.
"""


def drawn(package: Path = ROOT / "advisor") -> str:
    """Return the page: the package's own files, then each folder's in the order in which they may import each other."""
    return _HEAD + "".join(_part(package, folder) for folder in (package, *_folders(package)))


def _folders(package: Path) -> list[Path]:
    """Return the package's folders from the top down, as the contract has them. Raises ValueError for one it lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == [package.name])
    order = [name for layer in layers for name in layer.split(" | ")]
    folders = [file.parent for file in package.rglob("__init__.py") if file.parent != package]
    return sorted(folders, key=lambda folder: (order.index(folder.relative_to(package).parts[0]), folder))


def _part(package: Path, folder: Path) -> str:
    files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
    width = max(len(file.name) for file in files)
    lines = "\n".join(f"  {file.name:{width}}  {phrase_of(file)}" for file in files)
    name = folder.relative_to(package.parent).as_posix()
    return f"\n## {name}/\n\n{phrase_of(folder / '__init__.py')}.\n\n```\n{lines}\n```\n"


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
