"""Labels: configurations and choices as people write them, read back: what an output prints, every flag takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from advisor.errors import BadInput
from advisor.knobs import GENERIC, KNOBS, always
from advisor.nouns.checked import shortened
from advisor.nouns.configuration import Configuration
from advisor.nouns.near import meant
from advisor.nouns.objective import Tier

#: So many choices of a knob that was meant are named.
_FEW = 4


def choices_in(text: str) -> dict[str, str]:
    """Read what --why-not is about: one choice, several, or a whole configuration, as any of our outputs spells them; by knob.

    A configuration as it is printed has all knobs: those of which it says nothing have their implied choice. Else a word goes
    to the one knob that has such a choice and that no other word names. A generic one ("none") says nothing by itself: it
    needs its knob, or a whole configuration around it, in the order in which it is printed: between dots, or with a word for
    every knob. Raises BadInput.
    """
    joined = re.sub(rf"(?<![\w-])({'|'.join(KNOBS)})[=:\s]+", r"\1=", text)
    words = [word for word in re.split(r"[\s,;·|()]+", joined) if word not in ("", "with")]
    if not words:
        raise BadInput("--why-not names no choice", "advisor probe lists them")
    names_all = len(words) >= sum(knob.applies is always for knob in KNOBS.values())
    if ("·" in text or names_all) and (label := _label(words)) is not None:
        return dict(label.over(KNOBS))
    chosen = _chosen([word for word in words if word not in GENERIC], text)
    generic = [word for word in words if word in GENERIC]
    if generic:
        spelled = " or ".join(f"{knob}={generic[0]}" for knob in _knobs_of(generic[0]))
        raise BadInput(f"--why-not: {generic[0]} says nothing without its knob", f"write {spelled}")
    return chosen


def labelled(text: str) -> Configuration | None:
    """Return the configuration whose label this is, None where it is none, or of several."""
    return _label([word for word in re.split(r"[\s,·]+", text) if word])


def _label(words: Sequence[str]) -> Configuration | None:
    """Return the configuration whose label these words are: every knob without one has its implied choice."""
    needed = {name for name, knob in KNOBS.items() if knob.applies is always and not knob.implied}
    found = [
        dict(zip(knobs, words, strict=True))
        for knobs in combinations(KNOBS, len(words))
        if needed <= set(knobs) and all(map(_has_choice, knobs, words))
    ]
    return Configuration.of(found[0]) if len(found) == 1 else None


def _has_choice(knob: str, name: str) -> bool:
    return name in KNOBS[knob].choices


def _chosen(words: Sequence[str], text: str) -> dict[str, str]:
    """Return the choice by knob that words name. text: where they are from. Raises BadInput."""
    chosen: dict[str, str] = {}
    # What only one knob has leaves the others fewer.
    for word in sorted(words, key=lambda word: len(_knobs_of(word))):
        name = word.rpartition("=")[2]
        knobs = [knob for knob in _knobs_of(word) if chosen.get(knob, name) == name]
        if not knobs:
            what = f"a configuration has one choice of {_knobs_of(word)[0]}, and {shortened(text)} names two"
            raise BadInput(f"--why-not: {what}", "ask for each by itself")
        if len(knobs) > 1:
            spelled = " or ".join(f"{knob}={word}" for knob in knobs)
            raise BadInput(f"--why-not: {shortened(word)} is a choice of {' and of '.join(knobs)}", f"write {spelled}")
        chosen[knobs[0]] = name
    return chosen


def _knobs_of(word: str) -> list[str]:
    """Return the knobs that have a choice, given as CHOICE or KNOB=CHOICE. Raises BadInput where there is none."""
    knob, _, name = word.rpartition("=")
    if knob and knob not in KNOBS:
        theirs = _of_trainer(knob, name)
        hint = f"there is {' and '.join(theirs)}" if theirs else meant(knob, KNOBS) or f"there are {', '.join(KNOBS)}"
        raise BadInput(f"--why-not: there is no knob {shortened(knob)}", hint)
    found = [each.name for each in KNOBS.values() if name in each.choices and knob in ("", each.name)]
    if not found and word in KNOBS:
        raise BadInput(f"--why-not: {word} is a knob, not a choice", f"name one of {', '.join(KNOBS[word].choices)}")
    if not found:
        which = f"{knob} has" if knob else "there is"
        raise BadInput(f"--why-not: {which} no choice {shortened(name)}", _meant(name, knob))
    return found


def _of_trainer(argument: str, value: str) -> list[str]:
    """Return the choices that Trainer has this argument with this value for: optim=adamw_8bit, bf16=True."""
    choices = (choice for knob in KNOBS.values() for choice in knob.choices.values())
    return [choice.name for choice in choices if choice.trainer.get(argument) in (value, repr(value))]


def _meant(name: str, knob: str) -> str:
    """Return what to do about a name that no choice has: a quality tier is none, and those that are written alike are named.

    So are those that Trainer has an argument of that name for, and those that have it as a part of theirs.
    """
    if name in {str(tier) for tier in Tier}:
        return f"{name} is a quality tier: name a choice of it, advisor probe lists them"
    own = [each for each in KNOBS.values() if knob in ("", each.name)]
    known = [choice.name for each in own for choice in each.choices.values() if choice.traits.advised]
    theirs = [choice.name for each in own for choice in each.choices.values() if name in choice.trainer]
    parts = [each for each in known if name in re.split("[-_]", each)]
    if theirs or parts:
        return f"there is {' and '.join(theirs or parts)}; advisor probe lists them"
    said = [part for part in re.split("[-_]", name) if part in KNOBS and len(part) > 0.4 * len(name)]
    choices = [choice.name for choice in KNOBS[said[0]].choices.values()] if said and not knob else []
    if 0 < len(choices) <= _FEW:
        return f"the knob {said[0]} has {', '.join(choices)}"
    near = meant(name, [each for each in known if each not in GENERIC], alike=0.7)
    return f"{near} advisor probe lists them".strip()
