"""Messages as lines of JSON: what all of them are, how they are written, and how they are read. The only place of msgspec.

A message carries nouns, not their payloads: who gets one never parses again. A line that is none raises :class:`NoMessage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar, get_args

import msgspec

from advisor.errors import AdvisorError
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Quality
from advisor.workloads import Workload, workload_of

#: A part of a line that is read later.
Raw = msgspec.Raw

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
        self._decoder: msgspec.json.Decoder[_T] = msgspec.json.Decoder(kinds, dec_hook=_noun_of)

    def read(self, line: bytes | Raw) -> _T:
        """Return the message. Raises NoMessage."""
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NoMessage(str(error)) from None


def encode(message: Message) -> bytes:
    """Return a message as a line of JSON, without the line's end. What JSON has not is None (floats that are not finite) or text.

    None is refused again when it is read where the field is always a number: of a trial's seconds, never of an optional figure,
    nor inside a reading or a gauge's state. Halves of characters, as file names can have them, are replaced.
    """
    plain = _plain(message)
    try:
        return _ENCODER.encode(plain)
    except UnicodeEncodeError:
        return _ENCODER.encode(_whole(msgspec.to_builtins(plain, enc_hook=_otherwise)))


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


def _whole(value: Any) -> Any:
    """Replace halves of characters in all texts of JSON values."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list) else value


def _noun_of(kind: Any, payload: Any) -> Any:
    """Build a noun of its payload; what its own `of` refuses becomes msgspec's own error, which names the place."""
    (noun,) = get_args(kind)
    try:
        return workload_of(payload) if noun is Workload else noun.of(payload)
    except (AdvisorError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


_ENCODER = msgspec.json.Encoder(enc_hook=_otherwise)
