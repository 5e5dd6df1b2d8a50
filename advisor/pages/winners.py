"""Which choice wins where, for one model on one device: a cell for each length and padding that was measured, none made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from advisor.advice.kept_answers import answer_and_best
from advisor.advice.ranking import Candidate
from advisor.errors import DamagedRow, NotMeasured
from advisor.nouns.answer import Answer
from advisor.pages.about import asked_words
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord


@dataclass(frozen=True)
class Win:
    """What won one study. mark: a letter and a colour by the winner, from 0 on, in the order of their wins; None: nothing won.

    best: the fastest that was found, where that is not confirmed.
    """

    study: StudyRecord
    answer: Answer
    mark: int | None
    best: Candidate | None = None

    @property
    def place(self) -> tuple[float, int]:
        """The share of pads and the longest sequence in tokens: the cell."""
        return _place(self.study)

    @property
    def winner(self) -> str:
        """The winner's label."""
        return str(self.answer.configuration) if self.answer.configuration is not None else "nothing is right"

    @property
    def ratio(self) -> str:
        """Its ratio over the default, with the interval where there is one."""
        answer = self.answer
        if answer.ratio is None:
            return ""
        has_interval = answer.low is not None and answer.high is not None
        return f"{answer.ratio:.2f} ×" + (f" ({answer.low:.2f}–{answer.high:.2f})" if has_interval else "")

    @property
    def unconfirmed(self) -> str:
        """What was found faster and is not confirmed, in words; "" where nothing was."""
        return (
            "" if self.best is None else f"fastest found, unconfirmed: {self.best.configuration}{_measured(self.best)}"
        )

    @property
    def batch(self) -> str:
        """How many sequences a batch has."""
        return str(self.study.workload.batch or "auto")

    @property
    def asked(self) -> str:
        """What was made the best of, within what quality."""
        return f"{self.study.objective.aim.name}, {asked_words(self.study.objective)}"


@dataclass(frozen=True)
class WinnersMap:
    """What wins on a device. lengths, paddings: the columns and rows that have a cell; legend: each winner with its mark.

    others: other devices with studies of this model; unanswered: studies without an answer yet; damaged: a line for each row that
    could not be understood and was passed over.
    """

    model: str
    device: str
    wins: tuple[Win, ...]
    lengths: tuple[int, ...]
    paddings: tuple[float, ...]
    legend: tuple[tuple[int, str], ...]
    others: tuple[str, ...]
    unanswered: tuple[int, ...]
    damaged: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The page's title."""
        return f"What wins for {self.model}"

    def at(self, padding: float, length: int) -> tuple[Win, ...]:
        """Return what was measured in a cell, the smallest batch first."""
        return tuple(win for win in self.wins if win.place == (padding, length))

    @property
    def asks_alike(self) -> bool:
        """Whether all were asked the same, so that no cell has to say what."""
        return len({win.asked for win in self.wins}) == 1

    @property
    def environments(self) -> int:
        """How many environments the cells were measured under."""
        return len({win.study.environment_key for win in self.wins})


def letter(mark: int) -> str:
    """Return the letter of a winner's mark: A to Z, then AA."""
    return letter(mark // 26 - 1) + chr(65 + mark % 26) if mark >= 26 else chr(65 + mark)


def map_of(store: Store, model: str, architecture_key: str, on: str | None = None) -> WinnersMap:
    """Return what wins for the shapes of a model. on: an environment's key or a part of a device's name; None: the newest.

    Studies that can't be understood are passed over: `store.damaged` names them. Raises NotMeasured where nothing of it is
    stored there, DamagedRow where nothing of it can be understood.
    """
    studies = store.studies(architecture_key)
    if not studies and store.damaged:
        raise DamagedRow(store.damaged[0])
    meant = [study for study in studies if on is None or _is_meant(study, on)]
    devices = sorted({study.environment.device_name for study in studies})
    if not meant:
        where = f" on {on}" if on is not None else ""
        known = f"there are studies on: {', '.join(devices)}" if devices else "advisor tune measures it"
        raise NotMeasured(f"no study of {model}{where} is stored", known)
    device = meant[0].environment.device_name
    answers, unanswered = _answers(store, [s for s in meant if s.environment.device_name == device])
    if not answers and store.damaged and not unanswered:
        raise DamagedRow(store.damaged[0])
    if not answers:
        hint = "; ".join([*store.damaged[:1], "advisor tune goes on with it"])
        raise NotMeasured(f"no study of {model} on {device} has an answer yet", hint)
    wins, legend = _marked(answers)
    return WinnersMap(
        model=model,
        device=device,
        wins=wins,
        lengths=tuple(sorted({win.place[1] for win in wins})),
        paddings=tuple(sorted({win.place[0] for win in wins})),
        legend=legend,
        others=tuple(name for name in devices if name != device),
        unanswered=tuple(unanswered),
        damaged=tuple(store.damaged),
    )


def _is_meant(study: StudyRecord, on: str) -> bool:
    return study.environment_key.startswith(on) or on.lower() in str(study.environment).lower()


def _place(study: StudyRecord) -> tuple[float, int]:
    return round(study.workload.dealt.padding, 2), max(study.workload.lengths)


def _measured(best: Candidate) -> str:
    return f" ≈{best.search_ratio:.2f} ×" if best.search_ratio else ""


#: A study with its answer, and the fastest that was found where that is not confirmed.
_Answered = tuple[StudyRecord, Answer, Candidate | None]


def _answers(store: Store, studies: Sequence[StudyRecord]) -> tuple[list[_Answered], list[int]]:
    """Return of every question the newest study that has an answer, and the numbers of newer ones that have none yet.

    A question is one workload, objective and weights. studies: the newest first.
    """
    answers: dict[tuple[str, str, str], _Answered] = {}
    unanswered = []
    for study in studies:
        question = (study.workload_key, str(study.objective.payload), study.weights_digest)
        if question in answers:
            continue
        try:
            answers[question] = (study, *answer_and_best(store, study))
        except NotMeasured:
            unanswered.append(study.id)
        except DamagedRow as error:
            store.damaged.append(str(error))
    return list(answers.values()), unanswered


def _marked(answers: Sequence[_Answered]) -> tuple[tuple[Win, ...], tuple[tuple[int, str], ...]]:
    """Return each win with its winner's mark, by cell and batch, and the marks; who wins most often comes first."""
    names = sorted(str(answer.configuration) for _, answer, _ in answers if answer.configuration is not None)
    counted = sorted(((-len(list(same)), name) for name, same in groupby(names)))
    marks = {name: mark for mark, (_, name) in enumerate(counted)}
    wins = [Win(study, answer, marks.get(str(answer.configuration)), best) for study, answer, best in answers]
    ordered = sorted(wins, key=lambda win: (*win.place, win.study.workload.batch or 0, win.study.id))
    return tuple(ordered), tuple((mark, name) for name, mark in marks.items())
