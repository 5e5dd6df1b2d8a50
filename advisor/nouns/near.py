"""What was meant by a word that is none of those there are: the nearest of them, in the words of every error."""

from __future__ import annotations

from collections.abc import Iterable

#: How alike two words are at least (difflib's ratio): two letters changed places in six are 0.83, one of four that differs 0.75.
_ALIKE = 0.6


def nearest(word: str, known: Iterable[str], most: int = 3, alike: float = _ALIKE) -> list[str]:
    """Return the known words that are nearest to one, the nearest first; whatever the case: what differs in that alone is it."""
    from difflib import get_close_matches

    spelled = {each.lower(): each for each in reversed(list(known))}
    if (same := spelled.get(word.lower())) is not None:
        return [same]
    return [spelled[each] for each in get_close_matches(word[:200].lower(), spelled, n=most, cutoff=alike)]


def meant(word: str, known: Iterable[str], most: int = 3, alike: float = _ALIKE) -> str:
    """Return "did you mean …?" with the known words that are nearest to one, "" where none is near. most: how many are named."""
    *others, last = nearest(word, known, most, alike) or [""]
    return f"did you mean {' or '.join([', '.join(others), last] if others else [last])}?" if last else ""
