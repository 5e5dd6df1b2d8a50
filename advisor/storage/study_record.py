"""StudyRecord: a study as the database has it, with all that says what it was about."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from advisor.nouns.answer import SearchEnd
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget, Objective
from advisor.workloads import Workload

#: What a study can be.
STATES = ("running", "done", "interrupted")


@dataclass(frozen=True)
class StudyRecord:
    """A study with all that says what it was about; `facts` are those it was made with, or of any model of its shapes.

    admissible: how many configurations could be tried, None where that was not stored. budget: of its last tune; end: how its
    search ended, None where it never did.
    """

    id: int
    environment: Environment
    environment_key: str
    objective: Objective
    model_name: str
    weights_digest: str
    workload: Workload
    state: str
    started_at: datetime
    finished_at: datetime | None
    facts: ModelFacts | None
    workload_key: str
    admissible: int | None = None
    budget: Budget = field(default_factory=Budget)
    end: SearchEnd | None = None
