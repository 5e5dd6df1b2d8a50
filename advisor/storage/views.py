"""The views that people read the database with: their SQL, in the spelling of either database.

Their columns keep names, order, types and words whatever is stored: what comes later stands at the end, or in a view of its own.
"""

from __future__ import annotations

from advisor.nouns.configuration import IMPLIED
from advisor.quality.method import METHOD

#: Which pieces of SQL the two databases spell differently: a JSON member as text, the version of a package, the batch that a
#: configuration names, a configuration in words, its stated choices as rows, what it says of the knob k, and the longest
#: sequence of a workload.
_SPELLING = {
    "sqlite": {
        "member": "json_extract({column}, '$.{name}')",
        "package": "json_extract({column}, '$.packages.{name}')",
        "batch": """(SELECT CAST(value AS INTEGER)
    FROM json_each({column}, '$.batch') WHERE value GLOB '[0-9]*' AND value NOT GLOB '*[^0-9]*')""",
        "words": """(SELECT group_concat(value, ' · ') FROM (SELECT j.value AS value
    FROM json_each({column}) j LEFT JOIN knobs o ON o.name = j.key ORDER BY COALESCE(o.place, 1000000), j.key))""",
        "stated": "json_each({column})",
        "said": "json_extract({column}, '$.\"' || k.name || '\"')",
        "longest": "(SELECT MAX(value) FROM json_each({column}, '$.lengths'))",
    },
    "postgresql": {
        "member": "(CAST({column} AS json) ->> '{name}')",
        "package": "(CAST({column} AS json) -> 'packages' ->> '{name}')",
        "batch": """(SELECT CAST(value AS INTEGER)
    FROM json_each_text(CAST({column} AS json)) WHERE key = 'batch' AND value ~ '^[0-9]{{1,9}}$')""",
        "words": """(SELECT string_agg(j.value, ' · ' ORDER BY COALESCE(o.place, 1000000), j.key COLLATE "C")
    FROM json_each_text(CAST({column} AS json)) j LEFT JOIN knobs o ON o.name = j.key)""",
        "stated": "json_each_text(CAST({column} AS json))",
        "said": "(CAST({column} AS json) ->> k.name)",
        "longest": """(SELECT MAX(CAST(value AS INTEGER))
    FROM json_array_elements_text(CAST({column} AS json) -> 'lengths'))""",
    },
}

_STUDY = """studies s
  JOIN models m ON m.id = s.model_id
  JOIN workloads w ON w.id = s.workload_id
  JOIN environments e ON e.id = s.environment_id"""


def views(dialect: str) -> dict[str, str]:
    """Return each view's name and SELECT in the spelling of `dialect` ("sqlite" or "postgresql").

    They are the public face for people who read with SQL: the columns are the same on both databases and stay.
    """
    made = {
        "v_trials": _trials,
        "v_recommendations": _recommendations,
        "v_refusals": _refusals,
        "v_trial_choices": _trial_choices,
        "v_measurements": _measurements,
    }
    return {name: body(dialect) for name, body in made.items()}


def _member(dialect: str, column: str, name: str) -> str:
    return _SPELLING[dialect]["member"].format(column=column, name=name)


def _words(dialect: str, column: str) -> str:
    return _SPELLING[dialect]["words"].format(column=column)


def _choice(dialect: str, column: str, knob: str) -> str:
    """Return the choice of a knob: the implied one where a configuration says nothing of it."""
    said, implied = _member(dialect, column, knob), IMPLIED[knob]
    return f"COALESCE({said}, '{implied}')" if implied else said


def _real(dialect: str, column: str, name: str) -> str:
    return f"CAST({_member(dialect, column, name)} AS DOUBLE PRECISION)"


def _median(metric: str) -> str:
    return f"(SELECT y.median FROM measurements y WHERE y.trial_id = t.id AND y.metric = '{metric}')"  # noqa: S608


def _question(dialect: str) -> dict[str, str]:
    """Return what a study was asked and where it ran, by the names of columns that explain themselves.

    workload: in words; padding: the share of pads in padded batches; objective: the stored metric that is made the best of;
    quality: the tier that was allowed; threads: of a CPU, 0 on a GPU; and the versions that answers change with.
    """
    package = {
        name: _SPELLING[dialect]["package"].format(column="e.payload", name=name) for name in ("torch", "transformers")
    }
    return {
        "workload": "w.words",
        "padding": "w.padding",
        "objective": f"COALESCE({_member(dialect, 's.objective', 'metric')}, 'tokens_per_s')",
        "quality": _member(dialect, "s.objective", "quality"),
        "threads": f"CAST({_member(dialect, 'e.payload', 'threads')} AS INTEGER)",
        "environment_key": "e.key",
        "driver": _member(dialect, "e.payload", "driver"),
        **package,
    }


def _trials(dialect: str) -> str:
    """One row a trial. What came later stands at the end, for those who count columns."""
    ran = "COALESCE(f.payload, r.payload)"
    knobs = ",\n  ".join(
        f"{_choice(dialect, ran, knob)} AS {knob}" for knob in ("attention", "precision", "quantization", "packing")
    )
    batch = f"CAST({_member(dialect, 'w.payload', 'batch')} AS INTEGER)"
    later = ",\n  ".join(
        f"{_median(metric)} AS {metric}" for metric in ("slowest_batch_s", "joules_per_token", "sequences_per_s")
    )
    about = ", ".join(f"{column} AS {name}" for name, column in _question(dialect).items())
    return f"""SELECT s.id AS study, t.number AS number, t.phase AS phase, t.block AS block, m.name AS model,
  w.key AS workload_key, w.kind AS kind,
  {batch} AS batch,
  {_member(dialect, "w.payload", "output")} AS output,
  {_SPELLING[dialect]["longest"].format(column="w.payload")} AS longest,
  {_member(dialect, "e.payload", "device_name")} AS device,
  {_words(dialect, "r.payload")} AS requested,
  {_words(dialect, "f.payload")} AS effective,
  {knobs},
  t.outcome AS outcome, t.reason AS reason,
  x.median AS tokens_per_s, x.low AS tokens_per_s_low, x.high AS tokens_per_s_high,
  t.peak_bytes AS peak_bytes, t.load_s AS load_s, t.first_call_s AS first_call_s,
  {_real(dialect, "t.quality", "kl")} AS kl,
  {_real(dialect, "t.quality", "top1")} AS top1,
  CASE WHEN t.reused_from IS NULL THEN 0 ELSE 1 END AS reused,
  COALESCE({_SPELLING[dialect]["batch"].format(column=ran)}, {batch}) AS batch_size,
  {later},
  {_real(dialect, "t.quality", "cosine")} AS cosine,
  {_real(dialect, "t.quality", "top10")} AS top10,
  {about},
  t.finished_at AS measured_at
FROM {_STUDY}
  JOIN trials t ON t.study_id = s.id
  JOIN configurations r ON r.id = t.requested_id
  LEFT JOIN configurations f ON f.id = t.effective_id
  LEFT JOIN measurements x ON x.trial_id = t.id AND x.metric = 'tokens_per_s'"""  # noqa: S608


def _recommendations(dialect: str) -> str:
    """The answer that is stored with every study; stale where what it was made of, or how it is made, has changed since.

    Rows of before have a ratio of 1 for a default that was compared with nothing, and an interval for a single block.
    """
    about = ", ".join(f"{column} AS {name}" for name, column in _question(dialect).items())
    return f"""SELECT s.id AS study, m.name AS model,
  {_member(dialect, "e.payload", "device_name")} AS device, w.key AS workload_key,
  {_words(dialect, "k.payload")} AS configuration, k.key AS configuration_key,
  CASE WHEN a.blocks > 0 THEN a.ratio END AS ratio, CASE WHEN a.blocks > 1 THEN a.low END AS low,
  CASE WHEN a.blocks > 1 THEN a.high END AS high, a.verdict AS verdict, a.blocks AS blocks,
  a.tried AS tried, a.admissible AS admissible,
  CASE WHEN a.method <> '{METHOD}'
    OR EXISTS (SELECT 1 FROM trials t WHERE t.study_id = s.id AND t.finished_at > a.made_at)
    OR EXISTS (SELECT 1 FROM comparisons c WHERE c.study_id = s.id AND c.made_at > a.made_at)
  THEN 1 ELSE 0 END AS stale, a.made_at AS made_at,
  {_SPELLING[dialect]["longest"].format(column="w.payload")} AS longest,
  CAST({_member(dialect, "w.payload", "batch")} AS INTEGER) AS batch,
  {_member(dialect, "w.payload", "output")} AS output,
  {about},
  COALESCE(s.finished_at, s.started_at) AS measured_at
FROM {_STUDY}
  JOIN recommendations a ON a.study_id = s.id
  LEFT JOIN configurations k ON k.id = a.configuration_id"""  # noqa: S608


def _refusals(dialect: str) -> str:
    return f"""SELECT s.id AS study, m.name AS model,
  {_member(dialect, "e.payload", "device_name")} AS device,
  x.subject AS subject, x.about AS about, x.rule AS rule, x.verdict AS verdict, x.reason AS reason, x.remedy AS remedy
FROM {_STUDY}
  JOIN refusals x ON x.study_id = s.id"""  # noqa: S608


def _measurements(_: str) -> str:
    """One row a figure that was measured of a trial, whatever the kind of work: no new metric changes this view."""
    return """SELECT t.study_id AS study, t.number AS number, t.phase AS phase, t.block AS block, t.outcome AS outcome,
  x.metric AS metric, x.unit AS unit, x.n AS n, x.median AS median, x.low AS low, x.high AS high
FROM trials t
  JOIN measurements x ON x.trial_id = t.id"""


def _trial_choices(dialect: str) -> str:
    """One row a knob of each trial's requested configuration, and one of its effective one: of every knob there ever was.

    A knob that says nothing has its implied choice here too, by the table of knobs: no new knob changes this view.
    """
    stated, said = (_SPELLING[dialect][name].format(column="c.payload") for name in ("stated", "said"))
    parts = []
    for requested, column in ((1, "requested_id"), (0, "effective_id")):
        trials = f"FROM trials t JOIN configurations c ON c.id = t.{column}"
        for knob, choice, beside in (
            ("j.key", "j.value", f"CROSS JOIN {stated} j"),
            ("k.name", "k.implied", f"JOIN knobs k ON k.implied <> '' AND {said} IS NULL"),
        ):
            columns = (
                f"t.study_id AS study, t.number AS number, {knob} AS knob, {choice} AS choice, {requested} AS requested"
            )
            parts.append(f"SELECT {columns}\n{trials} {beside}")
    return "\nUNION ALL\n".join(parts)
