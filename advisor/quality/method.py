"""By which rules, gate and statistic an answer is made: a stored answer of another version is stale and is made again."""

from __future__ import annotations

from advisor.knobs import RULES_VERSION
from advisor.nouns.measurement import STATISTIC
from advisor.quality.judge import GATE_VERSION

#: The three versions together, as they are stored with every answer.
METHOD = f"rules/{RULES_VERSION} {GATE_VERSION} {STATISTIC}"
