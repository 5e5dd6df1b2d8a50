"""The commands that write pages for browsers: the report of a study, two beside each other, and the map of a model."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import BadInput, NotMeasured
from advisor.faces.printing import note
from advisor.terminal import in_a_line

if TYPE_CHECKING:
    from advisor.nouns.environment import Environment
    from advisor.nouns.model import ModelSource
    from advisor.storage.store import Store


def _report(options: argparse.Namespace, _: float) -> int:
    from advisor.storage.place import default_url
    from advisor.storage.store import Store

    if options.study is not None and options.compare is not None:
        raise BadInput("a report is of one study, or of two with --compare A B", "advisor trials lists them")
    with Store.open(default_url(), write=False) as store:
        from advisor.pages.comparison import compared
        from advisor.pages.rendering import compared_html, report_html
        from advisor.pages.study_report import report_of
        from advisor.study.history import newest_study

        numbers = options.compare or [newest_study(store).id if options.study is None else options.study]
        where = [_source_of(store, number, allow_pickle=options.allow_pickle) for number in numbers]
        reports = [
            report_of(store, number, source, _here(store, number))
            for number, source in zip(numbers, where, strict=True)
        ]
        text = report_html(reports[0]) if len(reports) == 1 else compared_html(compared(*reports))
        note(store.damaged)
    return _write(text, options.file, f"advisor-report-{'-'.join(map(str, numbers))}.html")


def _map(options: argparse.Namespace, _: float) -> int:
    from advisor.models.checkpoint import find_model
    from advisor.pages.rendering import map_html
    from advisor.pages.winners import map_of
    from advisor.storage.place import default_url
    from advisor.storage.store import Store

    source = find_model(options.model, allow_pickle=options.allow_pickle, download=False)
    with Store.open(default_url(), write=False) as store:
        text = map_html(map_of(store, source.name, source.architecture_key, options.on))
        note(store.damaged)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source.name).name if Path(source.name).exists() else source.name)[:100]
    return _write(text, options.file, f"advisor-map-{name.removesuffix('.json')}.html")


def _here(store: Store, study: int) -> list[Environment]:
    """Return the environments of this machine's devices, the CPU with a study's threads."""
    from advisor.machine import probe

    try:
        threads = store.study(study).environment.threads
    except NotMeasured:  # there is no such study, which whoever asks for it will say
        return []
    return [machine.environment for machine in probe.machines(threads or None)]


def _source_of(store: Store, study: int, *, allow_pickle: bool) -> ModelSource | None:
    """Return where the model of a study is now; None, and a note of why, where it is not found."""
    from advisor.models.checkpoint import find_model

    try:
        name = store.study(study).model_name
        return find_model(name, allow_pickle=allow_pickle, download=False)
    except NotMeasured:  # there is no such study, which whoever asks for it will say
        return None
    except (BadInput, OSError) as error:  # a database has names of other machines
        note([f"the code names the model of study {study} as it was measured: {error}"])
        return None


def _write(text: str, file: str | None, usual: str) -> int:
    """Write a page to a file, whole or not at all, and print its path; to stdout where the file is -. Raises BadInput."""
    if file == "-":
        stream = getattr(sys.stdout, "buffer", None)
        if stream is None:
            print(text)
        else:
            stream.write(text.encode())
        return 0
    path = Path(usual if file is None else file)
    try:
        _refuse_no_file(path)
        _replace(path.resolve(), text)  # of a link, the file that it names
    except OSError as error:
        raise BadInput(f"{path} can't be written: {error.strerror}") from None
    except RuntimeError:  # what pathlib makes of links that name one another
        raise BadInput(f"-o: {path} is a link that leads back to itself") from None
    print(in_a_line(str(path)))
    return 0


def _refuse_no_file(path: Path) -> None:
    """Raise BadInput for what is there and no file, and for a file in no folder."""
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise BadInput(f"-o: {what}", "name a file in a folder that exists")
    if path.exists() and not path.is_file():
        raise BadInput(f"-o: {path} is no regular file", "-o - writes to stdout")


def _replace(path: Path, text: str) -> None:
    """Put a text where a path says: until it is whole, what was there stays."""
    import tempfile

    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        Path(beside).chmod(0o666 & ~mask)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


#: What runs each of these commands, as `advisor.faces.commands.COMMANDS` has it.
PAGES: dict[str, Callable[[argparse.Namespace, float], int]] = {"report": _report, "map": _map}
