"""advisor in Python: `suggest`, `load` and `tune`. What the command line's verbs do, as functions.

Keyword arguments are the command line's flags with underscores (`max_memory="24GiB"` is `--max-memory 24GiB`), with the same
defaults; values are Python's own, or the texts that the command line takes. Errors are exceptions of `advisor.errors`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from advisor.asking.options import EFFORT, ON, PLACE, objective_options
from advisor.asking.question import Question, effort_of, kind_of, question_of
from advisor.asking.resolve import resolve
from advisor.asking.verbs import Listener, answered, job_of, measured, open_to_write
from advisor.errors import NothingAdmissible, NotMeasured, spelled_for_python
from advisor.faces.answer import Answer
from advisor.faces.loading import Ready, loaded
from advisor.faces.signatures import documented
from advisor.nouns.environment import Machine
from advisor.nouns.near import meant
from advisor.workloads import DEFAULT_KIND, KINDS, Kind

if TYPE_CHECKING:  # the database's driver and Optuna take time to import
    from advisor.advice.recommendation import Recommendation
    from advisor.study.tuning import Job


class Flags(TypedDict, total=False):
    """What suggest, load and tune take: the workload and what is wanted. `advisor suggest --help` says what each means.

    workload: the kind of work, whose own flags are taken too: output is of a forward pass, method, rank and targets of training;
    lengths: a number, or all of them; max_memory: bytes or text;
    max_latency: seconds or text; calls: of the job; only, fix: choices by knob, or texts as the command line takes them; device:
    its name, or a torch.device; threads: of the CPU, without it what torch takes.
    """

    workload: str
    lengths: int | str | Sequence[int]
    lengths_from: str | os.PathLike[str] | None
    padding: float | None
    batch: int | str
    batches: int | None
    output: str | None
    method: str
    rank: int
    targets: str | Sequence[str] | None
    objective: str
    quality: str
    max_memory: int | str | None
    max_latency: float | str | None
    calls: int | None
    only: str | Sequence[str] | Mapping[str, str | int | Sequence[str | int]]
    fix: str | Sequence[str] | Mapping[str, str | int]
    ignore_rule: str | Sequence[str]
    allow_unjudged: bool
    allow_pickle: bool
    device: object
    threads: int | None


class SuggestFlags(Flags, total=False):
    """What suggest takes beside these: another environment than this machine's, by key or part of the device's name."""

    on: str | None


class TuneFlags(Flags, total=False):
    """What tune takes beside these: how much may be spent (seconds or text), and the search's seed."""

    budget: float | str | None
    payback: float | str | None
    trials: int | None
    exhaustive: bool
    blocks: int
    timeout: float | str
    seed: int


@contextmanager
def _in_python() -> Iterator[None]:
    """Have expected failures name keywords instead of flags, and so the stored words of what refuses each configuration."""
    try:
        with spelled_for_python():
            yield
    except NothingAdmissible as error:
        error.reasons = tuple(map(_with_keywords, error.reasons))
        raise


def _with_keywords(text: str) -> str:
    """Return a text whose flags, where a function takes them, are spelled as its keywords: `max_memory`, `only`."""
    own = (option.name for kind in KINDS.values() for option in kind.options)
    taken = {*TuneFlags.__annotations__, *SuggestFlags.__annotations__, *own}

    def keyword(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return name if name in taken else match[0]

    return re.sub(r"(?<![\w-])--([a-z][a-z-]*)", keyword, text)


@_in_python()
def suggest(model: str | bytes | os.PathLike[str], **flags: Unpack[SuggestFlags]) -> Answer:
    """Return what stored measurements recommend for a model and a workload. Needs no GPU and no torch.

    model: a hub id, a directory, or a config.json; workload: the kind of work. Figures of the answer are in the units of
    their names (`_s`, `_bytes`, `_per_s`); ratios are over the default, above 1 where better.

    Raises NotMeasured where nothing stored answers, NothingAdmissible where nothing is left, BadInput.

        >>> found = advisor.suggest("meta-llama/Llama-3.1-8B", lengths=2048, padding=0.3, batch=8)
        >>> print(found.configuration, found.verdict)
        flash_attention_2 · bf16 · packed faster
    """
    return Answer.of(_suggested("suggest", model, flags, SuggestFlags)[0])


@_in_python()
def load(model: str | bytes | os.PathLike[str], **flags: Unpack[Flags]) -> Ready:
    """Load a model as it is recommended for a workload on this machine, by the code that the measurement ran.

    Nothing is measured: raises NotMeasured where this workload was not tuned on this machine, and what suggest raises.
    It switches what the recommendation switches for the whole process (fp32 products, sdpa's kernels, CPU threads).
    What it returns is called with a padded batch as a model of transformers is, or with token ids; shapes: see Ready.

        >>> ready = advisor.load("meta-llama/Llama-3.1-8B", lengths=2048, padding=0.3, batch=8)
        >>> for batch in ready.batches(sequences):  # your own token ids
        ...     logits = ready.results([sequences[i] for i in batch])  # [sequences in the batch, vocabulary]
    """
    recommendation, machine = _suggested("load", model, flags, Flags)
    if recommendation.chosen is None:
        raise NothingAdmissible(
            [f"{c.configuration}: {text}" for c in recommendation.rejected for text in c.objections]
        )
    if recommendation.stale:
        raise NotMeasured(
            f"{recommendation.source.name}: {recommendation.stale_words}", "advisor.tune measures it again"
        )
    if recommendation.study.environment_key != machine.environment.key:
        raise NotMeasured(
            f"{recommendation.source.name} was tuned on {recommendation.study.environment}, not on this "
            f"machine's {machine.user_device}",
            "advisor.tune measures here",
        )
    return loaded(recommendation, machine)


@_in_python()
def tune(
    model: str | bytes | os.PathLike[str],
    *,
    listen: Listener | None = None,
    progress: bool | None = None,
    **flags: Unpack[TuneFlags],
) -> Answer:
    """Measure configurations of a model, store what was found, and return what is recommended.

    The same call goes on where an interrupted one stopped. listen: is called with every event, a mapping whose "event" says
    what it is. progress: whether a line a trial is shown; None: in notebooks. Raises BadInput, NothingAdmissible and StoreError.

        >>> found = advisor.tune("meta-llama/Llama-3.1-8B", lengths_from="prompts.jsonl", batch="auto", budget="20m")
        >>> found.chosen.trial.tokens_per_s
        104523.6
    """
    began = time.monotonic()
    question = _question("tune", model, flags, TuneFlags)
    job, notes = job_of(question, effort_of(flags, question.objective), began)
    with open_to_write() as store, _told(job, listen, progress=progress) as hear:
        found = measured(job, store, hear)
    return Answer.of(replace(found, notes=(*notes, *found.notes)))


@contextmanager
def _told(job: Job, listen: Listener | None, *, progress: bool | None) -> Iterator[Listener]:
    """Yield who hears a tune's events: the caller, and the progress where that is shown."""
    if not (_in_notebook() if progress is None else progress):
        yield listen or (lambda _: None)
        return
    from advisor.show.progress import Progress

    with Progress(job) as shown:

        def hear(event: Mapping[str, Any]) -> None:
            shown.hear(event)
            if listen is not None:
                listen(event)

        yield hear


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and "IPKernelApp" in running.config


def _suggested(
    verb: str, model: str | bytes | os.PathLike[str], flags: Mapping[str, Any], known: type
) -> tuple[Recommendation, Machine]:
    from advisor.storage.place import default_url
    from advisor.storage.store import Store

    question = _question(verb, model, flags, known)
    asked = resolve(question, to_measure=False)
    with Store.open(default_url(), write=False) as store:
        found = answered(asked, store, question.on)
    return replace(found, notes=(*asked.notes, *found.notes)), asked.machine


def _question(verb: str, model: str | bytes | os.PathLike[str], flags: Mapping[str, Any], known: type) -> Question:
    """Return what keyword arguments ask. Raises TypeError for one that the function does not take, BadInput."""
    _refuse_unknown(verb, flags, known, kind_of(flags))
    name = os.fsdecode(model)
    # A name like a flag would be one in the command that an answer prints.
    return question_of(f"./{name}" if name.startswith("-") else name, flags)


def _refuse_unknown(verb: str, flags: Mapping[str, Any], known: type, kind: Kind) -> None:
    others = {option.name for each in KINDS.values() for option in each.options}
    names = known.__annotations__.keys() - others | {option.name for option in kind.options}
    for name in sorted(flags.keys() - names):
        near = meant(name, sorted(names), most=1)
        raise TypeError(f"{verb}() got an unexpected keyword argument {name!r}{f': {near}' if near else ''}")


def _document() -> None:
    """Show in help() and in editors what the functions take: a kind of work that comes from a plugin has flags beside these."""
    of_kinds = {option.name: option for kind in reversed(KINDS.values()) for option in kind.options}
    shared = (*of_kinds.values(), *objective_options(DEFAULT_KIND), *PLACE)
    heard = [
        inspect.Parameter("listen", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Listener | None"),
        inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="bool | None"),
    ]
    documented(suggest, (*shared, ON), SuggestFlags)
    documented(load, shared, Flags)
    documented(tune, (*shared, *EFFORT), TuneFlags, heard)


_document()
