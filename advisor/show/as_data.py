"""Arguments of from_pretrained as data: what choices say as Python expressions, read as values that JSON and YAML can hold.

There is no second table: each choice's own expression is parsed. A literal is its value, a dtype of torch its name, and a
call of a quantisation's class the dict that `from_pretrained` takes in its place. What is anything else is named, not dropped.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from advisor.knobs import call_arguments
from advisor.nouns.configuration import Configuration
from advisor.show.source_lines import setup_of

#: transformers' classes that `from_pretrained` also takes as a dict, by the word that tells it which one is meant.
_METHODS = {"BitsAndBytesConfig": "bitsandbytes"}

#: torchao's classes of settings are of this version in all that is taken of it; the classes that they hold are of the first.
_SETTINGS, _HELD = 2, 1


class Unsayable(ValueError):
    """An expression that no value of JSON stands for."""


@dataclass(frozen=True)
class Said:
    """What a configuration asks for, as far as it can be said in data.

    model_kwargs: arguments of from_pretrained as values of JSON; unsaid: those that none stands for, as "name=expression";
    call_kwargs: arguments of every call of the model, as Python expressions.
    """

    model_kwargs: dict[str, Any]
    unsaid: tuple[str, ...]
    call_kwargs: dict[str, str]


def said(configuration: Configuration) -> Said:
    """Return a configuration's arguments as data. Raises BadInput where it names a choice that is not known here."""
    values: dict[str, Any] = {}
    unsaid = []
    for name, expression in setup_of(configuration).arguments.items():
        try:
            values[name] = value_of(expression)
        except Unsayable:
            unsaid.append(f"{name}={expression}")
    return Said(values, tuple(unsaid), call_arguments(configuration))


def value_of(expression: str) -> Any:
    """Return the value of JSON that a Python expression stands for. Raises Unsayable."""
    try:
        return _value(_tree(expression))
    except (SyntaxError, ValueError) as error:
        raise Unsayable(f"no data stands for {expression}") from error


@lru_cache(maxsize=256)
def _tree(expression: str) -> ast.expr:
    """Return an expression taken apart: choices have the same few in every answer."""
    return ast.parse(expression, mode="eval").body


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Attribute(value=ast.Name(id="torch"), attr=dtype):
            return dtype
        case ast.Call(func=ast.Name(id=name), args=[], keywords=given) if name in _METHODS:
            return {"quant_method": _METHODS[name], **{_named(each): _value(each.value) for each in given}}
        case ast.Call(func=ast.Name(id="TorchAoConfig"), args=[ast.Call() as settings], keywords=[]):
            return {"quant_method": "torchao", "quant_type": {"default": _of_torchao(settings, _SETTINGS)}}
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(each) for each in elements]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {str(ast.literal_eval(key)): _value(value) for key, value in zip(keys, values, strict=True) if key}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise Unsayable(ast.unparse(node))
    return value


def _of_torchao(node: ast.Call, version: int) -> dict[str, Any]:
    """Return an object of torchao's as its own `config_from_dict` takes it. Raises Unsayable for what is no such object."""
    if not isinstance(node.func, ast.Name) or node.args:
        raise Unsayable(ast.unparse(node))
    settings = {
        _named(each): _of_torchao(each.value, _HELD) if isinstance(each.value, ast.Call) else _value(each.value)
        for each in node.keywords
    }
    return {"_type": node.func.id, "_version": settings.pop("version", version), "_data": settings}


def _named(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise Unsayable("**")
    return keyword.arg
