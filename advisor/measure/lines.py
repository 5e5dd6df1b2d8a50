"""Messages as lines of JSON: what all of them are, how they are written, and how they are read. The only place of msgspec.

A message carries nouns, not their payloads: who gets one never parses again. A line that is none raises :class:`NoMessage`.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar, get_args

import msgspec

from advisor.errors import AdvisorError
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Quality
from advisor.workloads import Workload, workload_of

#: How json writes the first digits of half a character, of a byte in a file's name that is no text.
_HALF = b"\\ud"

_T = TypeVar("_T")

if TYPE_CHECKING:
    Noun = Annotated[_T, "read by _noun_of"]
else:

    class _OfWhatever(type):
        """msgspec asks whether what was read is an instance of what it was read as; `_noun_of` has seen to that."""

        def __instancecheck__(cls, value: object) -> bool:
            return True

    class Noun(Generic[_T], metaclass=_OfWhatever):
        """Marks a field that `_noun_of` reads: left alone, msgspec would take a dataclass apart by itself, and check less."""


class NoMessage(Exception):
    """A line that is no message of those that are read, and why."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What all messages and their parts share."""

    @property
    def fields(self) -> dict[str, Any]:
        """The values by field."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    def replaced(self, **values: Any) -> Self:
        """Return this message with some values replaced."""
        return type(self)(**{**self.fields, **values})


class Reader(Generic[_T]):
    """Reads lines as messages of some classes."""

    def __init__(self, kinds: Any) -> None:
        """Read these: a class, or a union of classes that are told apart by their tags."""
        self._kinds = kinds
        self._decoder: msgspec.json.Decoder[_T] = msgspec.json.Decoder(kinds, dec_hook=_noun_of)

    def read(self, line: bytes | str) -> _T:
        """Return the message. Raises NoMessage."""
        try:
            try:
                return self._decoder.decode(line)
            except msgspec.MsgspecError:
                if _HALF not in (line.encode() if isinstance(line, str) else line):
                    raise
                found: _T = msgspec.convert(json.loads(line), self._kinds, dec_hook=_noun_of, str_keys=True)
                return found
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise NoMessage(str(error)) from None


def encode(message: Message) -> bytes:
    """Return a message as a line of JSON, without the line's end. What JSON has not is None (floats that are not finite) or text.

    None is refused again when it is read where the field is always a number: of a trial's seconds, never of an optional figure,
    nor inside a reading or a gauge's state. Halves of characters, as file names can have them, are escaped.
    """
    plain = _plain(message)
    try:
        return _ENCODER.encode(plain)
    except UnicodeEncodeError:  # msgspec writes and reads whole characters alone, json halves too
        return json.dumps(_finite(msgspec.to_builtins(plain, enc_hook=_otherwise))).encode()


def _plain(value: Any) -> Any:
    """Return a message's value with nouns as their payloads: msgspec would write a dataclass field by field."""
    if isinstance(value, Configuration):
        return dict(value)
    if isinstance(value, (Workload, ModelFacts, Quality)):
        return value.payload
    if isinstance(value, Message):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        return tag | {name: _plain(each) for name, each in value.fields.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _otherwise(value: Any) -> Any:
    """Return what a value is written as that msgspec does not know: numpy's floats are Python's, anything else is a text."""
    return float(value) if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Return JSON values with None for floats that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _noun_of(kind: Any, payload: Any) -> Any:
    """Build a noun of its payload; what its own `of` refuses becomes msgspec's own error, which names the place."""
    (noun,) = get_args(kind)
    try:
        return workload_of(payload) if noun is Workload else noun.of(payload)
    except (AdvisorError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


_ENCODER = msgspec.json.Encoder(enc_hook=_otherwise)
