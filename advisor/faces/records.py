"""The commands on what is stored: list it, show one trial, move studies from database to database, and say where it is."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from advisor.errors import BadInput, NotMeasured
from advisor.faces.printing import note, print_json, print_json_line
from advisor.nouns.reading import read_study, read_trial
from advisor.terminal import printable_json


def _trials(options: argparse.Namespace, _: float) -> int:
    from advisor.models.checkpoint import find_model
    from advisor.show.history_report import print_trials
    from advisor.show.rows import as_csv, trial_rows
    from advisor.storage.place import default_url
    from advisor.storage.store import Store
    from advisor.study.history import listed

    key = None
    if options.model is not None:
        key = find_model(options.model, allow_pickle=options.allow_pickle, download=False).architecture_key
    with Store.open(default_url(), write=False) as store:
        found, shown = listed(store, key, options.study, failed=options.failed, limit=options.limit), 0
        if options.format == "csv":
            rows = trial_rows(found)
            print(as_csv(rows), end="")
            shown = len(rows)
        for each in found:
            if options.format == "json":
                print_json_line(each.payload)
            else:
                print_trials(each, is_next=shown > 0)
            shown += len(each.trials)
        note(store.damaged)
    if shown == options.limit:
        newest = "this is the newest trial" if shown == 1 else f"these are the newest {shown} trials"
        note([f"{newest}: --limit N lists more, --limit 0 all"])
    return 0


def _show(options: argparse.Namespace, _: float) -> int:
    from advisor.show.history_report import print_trial
    from advisor.storage.place import default_url
    from advisor.storage.store import Store
    from advisor.study.history import labelled_trial, over_calls_of, stored_trial, study_payload, trial_payload

    number = read_trial(options.trial) if options.label is None else read_study(options.trial)
    with Store.open(default_url(), write=False) as store:
        if isinstance(number, tuple):
            study, trial = stored_trial(store, *number)
        else:
            study, trial = labelled_trial(store, number, options.label)
        over = over_calls_of(store, study, trial)
    if options.format == "json":
        told = {} if over is None else {"over_calls": over.payload(study)}
        print_json({**study_payload(study), "trial": {**trial_payload(study, trial), **told}})
    else:
        print_trial(study, trial, over)
    return 0


def _export(options: argparse.Namespace, _: float) -> int:
    from advisor.storage.exchange import export_lines
    from advisor.storage.place import default_url
    from advisor.storage.store import Store

    with Store.open(default_url(), write=False) as store:
        for study in options.study or ():
            try:
                store.study(study)
            except NotMeasured as error:
                raise BadInput(str(error), "advisor trials lists them") from None
        for line in export_lines(store, options.study):
            print(printable_json(line))
    return 0


def _import(options: argparse.Namespace, _: float) -> int:
    from advisor.advice.kept_answers import keep_answers
    from advisor.asking.verbs import open_to_write
    from advisor.storage.exchange import bounded_lines, import_lines

    with _opened(options.file) as lines, open_to_write() as store:
        try:
            done = import_lines(store, bounded_lines(lines))
        except BadInput as error:
            raise BadInput(f"{options.file}, {error}", "whole studies before it are stored") from None
        keep_answers(store)
    counts = ", ".join(f"{count} {name}" for name, count in done.new.items() if count)
    print(f"new here: {counts or 'nothing'}; known already: {sum(done.known.values())} rows")
    if done.differing:
        many = "1 study is" if done.differing == 1 else f"{done.differing} studies are"
        note(
            [f"{many} here with other trials than in the file, and was left as it is: import it into another database"]
        )
    return 0


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """Open what is to be imported, or stdin, as lines of UTF-8."""
    if file == "-":
        if sys.stdin is None:
            raise BadInput("there is no stdin to read from")
        yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
        return
    try:
        stream = Path(file).open(encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}") from None
    with stream:
        yield stream


def _db(options: argparse.Namespace, _: float) -> int:
    from advisor.storage.database import upgrade
    from advisor.storage.place import database_path, default_url, shown_url
    from advisor.storage.store import Store

    if options.action == "upgrade":
        from advisor.advice.kept_answers import keep_answers

        revision = upgrade(default_url())
        with Store.open(default_url(), write=True) as store:
            keep_answers(store)  # of databases from before answers were stored, or made by older rules
        print(f"{shown_url(default_url())} is at revision {revision}")
    elif options.action == "url":
        path = database_path(default_url())
        print(f"sqlite:///{path}" if path else shown_url(default_url()))
    else:
        path = database_path(default_url())
        if path is None:
            raise BadInput("this database is no file", "advisor db url shows where it is")
        print(path)
    return 0


def _completion(options: argparse.Namespace, _: float) -> int:
    import shtab

    from advisor.faces.arguments import build_parser

    print(shtab.complete(build_parser(), shell=options.shell))
    return 0


#: What runs each of these commands, as `advisor.faces.commands.COMMANDS` has it.
STORED: dict[str, Callable[[argparse.Namespace, float], int]] = {
    "trials": _trials,
    "show": _show,
    "export": _export,
    "import": _import,
    "db": _db,
    "completion": _completion,
}
