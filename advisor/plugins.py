"""Plugins: modules outside this package whose kinds of work, knobs and choices are registered beside our own.

ADVISOR_PLUGINS names them (comma separated). `advisor.knobs` reads them when it is imported: by then all that they use is there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from advisor.errors import BadInput

#: Names of the modules.
PLUGINS = tuple(name.strip() for name in os.environ.get("ADVISOR_PLUGINS", "").split(",") if name.strip())


def register_all(registers: Mapping[str, Callable[[Any], None]]) -> None:
    """Register what the modules have. registers: by the name of a list that a module may have, what takes each of its members.

    Raises BadInput for a module that can't be imported, has none of the lists, or has a member that is refused (ValueError).
    """
    for name in PLUGINS:
        try:
            module = importlib.import_module(name)
            if not any(hasattr(module, table) for table in registers):
                raise AttributeError(f"it has none of {', '.join(registers)}")
            for table, register in registers.items():
                for member in getattr(module, table, ()):
                    register(member)
        except Exception as error:  # noqa: BLE001  (somebody else's module: whatever it raises is told in a line)
            text = str(error) if isinstance(error, (AttributeError, ValueError)) else f"{type(error).__name__}: {error}"
            raise BadInput(f"ADVISOR_PLUGINS names {name!r}, which can't be used: {text}") from None
