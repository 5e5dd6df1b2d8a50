"""A made-up knob that acts on every call of the model: ADVISOR_PLUGINS=made_up_call, and its folder on PYTHONPATH.

The model is asked for its hidden states too, which nobody reads. People read it right after the precision.
"""

from __future__ import annotations

from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading
from advisor.workloads import Workload

NAME, OFF, RETURNED = "made-up-call", "off", "returned"


def _read(model: Any, arguments: Any) -> Any:
    return {"asked": bool(arguments.get("output_hidden_states"))}


def _effective(reading: Reading) -> str:
    return RETURNED if reading.own[NAME]["asked"] else OFF


def _returned_proof(reading: Reading) -> str | None:
    return None if reading.own[NAME]["asked"] else "the model was not asked for hidden states"


def _applies(workload: Workload) -> bool:
    return len(workload.lengths) < 1000


KNOBS = [
    Knob(
        NAME,
        "what a call returns beside its output",
        reload=False,
        choices={
            OFF: Choice(NAME, OFF, "nothing"),
            RETURNED: Choice(
                NAME,
                RETURNED,
                "all hidden states",
                "https://example.org/made-up-call",
                call=lambda _: {"output_hidden_states": "True"},
                proof=_returned_proof,
            ),
        },
        default=lambda _: OFF,
        effective=_effective,
        applies=_applies,
        implied=OFF,
        place=25,
        read=_read,
    )
]
