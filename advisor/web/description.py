"""Description: what the API's own description (OpenAPI) says of bodies and of answers: each option of `given`, each status."""

from __future__ import annotations

from typing import Any

from advisor.asking.submission import options_of_requests
from advisor.nouns.option import Option
from advisor.workloads import names

_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}

#: What a request may be answered beside what it is for, by status.
_WORDS = {
    400: "no JSON",
    401: "the token is missing or wrong",
    403: "a page of another site asks",
    404: "not here, or not measured",
    409: "not possible: nothing is admissible, no device is of that kind, or the job is over already",
    413: "too many bytes",
    415: "the body is not called JSON",
    421: "the daemon is not called by this name",
    422: "not understood",
    429: "too many jobs wait: Retry-After says when to come again",
    500: "a fault of the daemon's own, and how its log calls it",
    503: "the database is away, or too many listen: Retry-After says when to come again",
}

#: Of any request; of one that changes something, or asks with a body; of one with a body.
ANY, POSTED, BODY = (401, 421, 500, 503), (403, 413), (400, 415, 422)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how these statuses are described, each a problem."""
    return {status: {"description": _WORDS[status], **_PROBLEM} for status in sorted(set(statuses))}


def asked(**more: dict[str, Any]) -> dict[str, Any]:
    """Return how a body is described that names a model and options. more: its members beside these."""
    options = {option.name: {"description": words_of(option)} for option in options_of_requests()}
    options["workload"] = {"description": f"the kind of work; one of {', '.join(names())}"}
    given = {"type": "object", "properties": options, "description": "the options of `advisor tune`, by name"}
    members = {"model": {"type": "string", "minLength": 1, "maxLength": 1000}, "given": given, **more}
    return {"properties": members, "required": ["model"], "additionalProperties": False}


def words_of(option: Option) -> str:
    """Return what `--help` says of an option, and what it takes."""
    words = option.help.replace("%(default)s", str(option.default)).replace("%%", "%")
    form = f"one of {', '.join(option.choices)}" if option.choices else (option.metavar or "")
    return f"{words}; {form}" if form else words
