"""The signatures and docstrings of Python's functions, out of the options that are declared: help() shows them all."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from advisor.nouns.option import Option

Function = TypeVar("Function", bound=Callable[..., Any])


def documented(
    function: Function, options: Iterable[Option], types: type, own: Iterable[inspect.Parameter] = ()
) -> Function:
    """Give a function that takes keywords as a mapping the signature that they have, and a docstring that says what each means.

    types: a TypedDict with the type of every keyword; own: keywords that are no options. A keyword without a default is None.
    """
    known = {option.name: option for option in options}
    model, *_ = inspect.signature(function).parameters.values()
    keywords = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=known[name].default if name in known else None,
            annotation=getattr(kind, "__forward_arg__", kind),
        )
        for name, kind in types.__annotations__.items()
    ]
    function.__signature__ = inspect.Signature([model, *own, *keywords])  # type: ignore[attr-defined]
    said = [f"{name}: {_words(known[name])}" for name in types.__annotations__ if name in known]
    lines = [line for text in said for line in textwrap.wrap(text, 120, subsequent_indent="    ")]
    body = inspect.getdoc(function) or ""
    function.__doc__ = "\n".join([body, "", "Keywords, with the command line's meaning:", "", *lines])
    return function


def _words(option: Option) -> str:
    """Return an option's line of help as keywords have it."""
    default = "" if option.default is None or option.default == () else str(option.default)
    words = option.help.replace("%(default)s", default)
    words = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), words)
    return f"{words}; {' or '.join(map(repr, option.choices))}" if option.choices else words
