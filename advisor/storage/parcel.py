"""A study on its way from one database to another, for `advisor.storage.store`: what is read here is written there.

Ids stay behind, and who ran a trial. So does what follows from the rest, medians, intervals, ratios, verdicts and
the answer: it is computed again where the study arrives. The device's own number stays behind too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, Text, insert, select, type_coerce, update

from advisor.errors import NotMeasured
from advisor.nouns.checked import Malformed, parsed
from advisor.nouns.configuration import Configuration, canonical_json, key_of
from advisor.nouns.measurement import Comparison, Measurement
from advisor.storage import answers, keyed_rows, rows, trial_rows
from advisor.storage.known_studies import DIFFERING, differs
from advisor.storage.tables import (
    CEILINGS,
    COMPARISONS,
    CONFIGURATIONS,
    ENVIRONMENTS,
    MEASUREMENTS,
    MODELS,
    REFUSALS,
    STUDIES,
    TRIALS,
    WORKLOADS,
    UtcDateTime,
)

Values = dict[str, Any]

#: Columns whose text is JSON.
_JSON = frozenset("payload objective budget facts quality reading samples device_state block_ratios".split())  # noqa: SIM905

#: Columns that stay behind, beside all ids: who imports a row counts and words it anew.
_LEFT = frozenset(
    "id owner lease reused_from device_uuid n median low high statistic ratio blocks words padding".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Link:
    """A trial whose measurements are another one's: studies by their keys, trials by their numbers."""

    study: str
    number: int
    finished_at: datetime | None
    source: str
    source_number: int


@dataclass(frozen=True)
class Parcel:
    """A study with all that belongs to it: columns by name, JSON as values.

    key: the study's name in every database, see :func:`study_key`. A trial has its configurations (`requested`,
    `effective`), its `measurements` and, in `reused_from`, a study's key and a number; a comparison has its configurations
    (`candidate`, `baseline`) and no verdict.
    """

    key: str
    environment: Values
    ceilings: Values | None
    model: Values
    workload: Values
    study: Values
    trials: Sequence[Values]
    comparisons: Sequence[Values]
    refusals: Sequence[Values]

    @property
    def links(self) -> list[Link]:
        """The trials that have their measurements from others."""
        return [
            Link(self.key, t["number"], t["finished_at"], *t["reused_from"]) for t in self.trials if t["reused_from"]
        ]


def study_key(environment: str, architecture: str, weights: str, workload: str, objective: str) -> str:
    """Return the key that a study has in every database, made of the keys of what it is about."""
    return key_of([environment, architecture, weights, workload, objective])


def study_keys(connection: Connection) -> dict[int, str]:
    """Return every study's key by its id, oldest first."""
    statement = (
        select(
            type_coerce(STUDIES.c.started_at, Text),
            STUDIES.c.id,
            ENVIRONMENTS.c.key,
            MODELS.c.architecture_key,
            MODELS.c.weights_digest,
            WORKLOADS.c.key.label("workload_key"),
            STUDIES.c.objective_key,
        )
        .join(ENVIRONMENTS, ENVIRONMENTS.c.id == STUDIES.c.environment_id)
        .join(MODELS, MODELS.c.id == STUDIES.c.model_id)
        .join(WORKLOADS, WORKLOADS.c.id == STUDIES.c.workload_id)
    )
    found = []
    for began, row_id, *keys in connection.execute(statement):
        with rows.in_row("studies", row_id):
            found.append((rows.moment(began), study_key(*keys), row_id))
    found.sort()
    return {row_id: key for _, key, row_id in found}


# ------------------------------------------------------------------------------------------------------------- packing


def with_sources(connection: Connection, keys: Iterable[int], wanted: Iterable[int] | None) -> list[int]:
    """Return the studies to pack: all, or the wanted ones and, again and again, those whose trials they reuse.

    Raises NotMeasured for an id that no study has.
    """
    if wanted is None:
        return list(keys)
    chosen = set(wanted)
    if missing := chosen - set(keys):
        raise NotMeasured(f"there is no study {min(missing)}")
    source = TRIALS.alias("source")
    reused = select(TRIALS.c.study_id, source.c.study_id.label("of")).join(source, source.c.id == TRIALS.c.reused_from)
    pairs = [(row.study_id, row.of) for row in connection.execute(reused.distinct())]
    while more := {of for study_id, of in pairs if study_id in chosen} - chosen:
        chosen |= more
    return [study_id for study_id in keys if study_id in chosen]


def packed(connection: Connection, study_id: int, keys: Mapping[int, str]) -> Parcel:
    """Return a study with all that belongs to it. keys: of all studies, by id."""
    (study,) = _read(connection, STUDIES, STUDIES.c.id == study_id)
    (environment,) = _read(connection, ENVIRONMENTS, ENVIRONMENTS.c.id == study["environment_id"])
    (workload,) = _read(connection, WORKLOADS, WORKLOADS.c.id == study["workload_id"])
    (model,) = _read(connection, MODELS, MODELS.c.id == study["model_id"])
    if model["facts"] is None:
        known = (MODELS.c.architecture_key == model["architecture_key"], MODELS.c.facts.is_not(None))
        model["facts"] = next((other["facts"] for other in _read(connection, MODELS, *known)), None)
    if study["state"] == "running":  # here, but not where it goes
        study["state"] = "interrupted"
    ceilings = _read(connection, CEILINGS, CEILINGS.c.environment_id == environment["id"])
    trials = _packed_trials(connection, study_id, keys)
    comparisons = _read(connection, COMPARISONS, COMPARISONS.c.study_id == study_id)
    compared = _configurations(connection, comparisons, "candidate_id", "baseline_id")
    for row in comparisons:
        sides = (("candidate", "candidate_id"), ("baseline", "baseline_id"))
        row |= {side: _there(compared, row, name, "comparisons") for side, name in sides}
        del row["verdict"]
    refusals = _read(connection, REFUSALS, REFUSALS.c.study_id == study_id)
    return Parcel(
        keys[study_id],
        _carried(environment),
        _carried(ceilings[0]) if ceilings else None,
        _carried(model),
        _carried(workload),
        _carried(study),
        trials,
        list(map(_carried, comparisons)),
        list(map(_carried, refusals)),
    )


def _packed_trials(connection: Connection, study_id: int, keys: Mapping[int, str]) -> list[Values]:
    trials = _read(connection, TRIALS, TRIALS.c.study_id == study_id, order="number")
    ran = _configurations(connection, trials, "requested_id", "effective_id")
    of_trials = MEASUREMENTS.c.trial_id.in_(select(TRIALS.c.id).where(TRIALS.c.study_id == study_id))
    measured = defaultdict(list)
    for row in _read(connection, MEASUREMENTS, of_trials):
        measured[row["trial_id"]].append(_carried(row))
    source = TRIALS.alias("source")
    reused = (
        select(TRIALS.c.id, source.c.study_id, source.c.number)
        .join(source, source.c.id == TRIALS.c.reused_from)
        .where(TRIALS.c.study_id == study_id)
    )
    # A study that was begun after the others were listed has no key yet: it is not packed either.
    sources = {row.id: [keys[row.study_id], row.number] for row in connection.execute(reused) if row.study_id in keys}
    return [
        {
            **_carried(row),
            "requested": _there(ran, row, "requested_id"),
            "effective": _there(ran, row, "effective_id"),
            "measurements": measured[row["id"]],
            "reused_from": sources.get(row["id"]),
        }
        for row in trials
    ]


def _there(configurations: Mapping[int | None, Any], row: Values, name: str, table: str = "trials") -> Any:
    with rows.in_row(table, row["id"]):
        if row[name] is not None and row[name] not in configurations:
            raise Malformed("its configuration is missing")
        return configurations.get(row[name])


def _read(connection: Connection, table: Table, *where: ColumnElement[bool], order: str = "id") -> list[Values]:
    moments = {column.name for column in table.c if isinstance(column.type, UtcDateTime)}
    columns = [type_coerce(column, Text).label(column.name) if column.name in moments else column for column in table.c]
    found = connection.execute(select(*columns).where(*where).order_by(table.c[order])).mappings()

    def read(row: Values) -> Values:
        with rows.in_row(table.name, row["id"]):
            told = {name: rows.moment(row[name]) for name in moments if row[name] is not None}
            told |= {name: parsed(row[name]) for name in _JSON & row.keys() if row[name] is not None}
            # Refuses what JSON and SQLite can say and nobody can store again, like 1e999.
            canonical_json([value for name, value in (row | told).items() if name not in moments])
            return row | told

    return [read(dict(row)) for row in found]


def _configurations(connection: Connection, of: Sequence[Values], *names: str) -> dict[int | None, dict[str, str]]:
    ids = {row[name] for row in of for name in names} - {None}
    return {row["id"]: row["payload"] for row in _read(connection, CONFIGURATIONS, CONFIGURATIONS.c.id.in_(ids))}


def _carried(row: Values) -> Values:
    return {name: value for name, value in row.items() if name not in _LEFT and not name.endswith("_id")}


# ------------------------------------------------------------------------------------------------------------ unpacking


def statistics_of(parcel: Parcel) -> list[tuple[int, Values]]:
    """Return a trial's number and a measurement's columns for each; it takes time, which no lock should be held for."""
    return [
        (row["number"], trial_rows.measurement_values(Measurement(**{**each, "samples": tuple(each["samples"])})))
        for row in parcel.trials
        for each in row["measurements"]
    ]


def unpacked(connection: Connection, parcel: Parcel, statistics: Sequence[tuple[int, Values]]) -> Counter[str]:
    """Write a study from elsewhere, unless it is here; return how many rows of which tables are new.

    statistics: from :func:`statistics_of`.
    """
    new: Counter[str] = Counter()

    def put(table: Table, values: Values, *key: str) -> int:
        new[table.name] += keyed_rows.insert_unless_there(connection, table, _stored(values))
        row_id = keyed_rows.found(connection, table, {name: values[name] for name in key})
        assert row_id is not None
        return row_id

    workload = put(WORKLOADS, parcel.workload, "key")  # in the order of Store.open_study: nobody waits in a circle
    environment = put(ENVIRONMENTS, parcel.environment, "key")
    if parcel.ceilings is not None:
        put(CEILINGS, {**parcel.ceilings, "environment_id": environment}, "environment_id")
    model = put(MODELS, parcel.model, "architecture_key", "weights_digest")
    if parcel.model["facts"] is not None:
        unread = update(MODELS).where(MODELS.c.id == model, MODELS.c.facts.is_(None))
        connection.execute(unread.values(_stored({"facts": parcel.model["facts"]})))
    about = {"workload_id": workload, "environment_id": environment, "model_id": model}
    study = put(STUDIES, {**parcel.study, **about}, *about, "objective_key")
    if new["studies"]:
        ids = keyed_rows.configuration_ids(connection, *_all_configurations(parcel))
        _unpack_trials(connection, parcel.trials, study, ids)
        numbers = select(TRIALS.c.number, TRIALS.c.id).where(TRIALS.c.study_id == study)
        trial_ids = {row.number: row.id for row in connection.execute(numbers)}
        _insert(connection, MEASUREMENTS, [{**each, "trial_id": trial_ids[number]} for number, each in statistics])
        compared = _newest(_compared(row, study, ids) for row in parcel.comparisons)
        _insert(connection, COMPARISONS, compared)
        _insert(connection, REFUSALS, [{**_stored(row), "study_id": study} for row in parcel.refusals])
        link(connection, parcel.links)
        new.update(trials=len(parcel.trials), comparisons=len(compared), refusals=len(parcel.refusals))
    elif differs(connection, study, parcel.study["state"], parcel.trials):
        new[DIFFERING] += 1
    return new


def link(connection: Connection, links: Sequence[Link]) -> None:
    """Say of trials from elsewhere whose measurements they have, as far as both are here by now."""
    studies = {key: row_id for row_id, key in study_keys(connection).items()} if links else {}
    for each in links:
        if each.study in studies and each.source in studies:
            source = select(TRIALS.c.id).where(
                TRIALS.c.study_id == studies[each.source], TRIALS.c.number == each.source_number
            )
            # Of a study that was here before, the trial of this number may be another one: then it ended at another time.
            same = (
                TRIALS.c.study_id == studies[each.study],
                TRIALS.c.number == each.number,
                TRIALS.c.finished_at == each.finished_at,
                TRIALS.c.reused_from.is_(None),
            )
            connection.execute(update(TRIALS).where(*same).values(reused_from=source.scalar_subquery()))


def _unpack_trials(
    connection: Connection, trials: Sequence[Values], study: int, ids: Mapping[Configuration, int]
) -> None:
    beside = ("requested", "effective", "measurements", "reused_from")
    values = [
        {
            **_stored({name: value for name, value in row.items() if name not in beside}),
            "study_id": study,
            "requested_id": ids[Configuration.of(row["requested"])],
            "effective_id": None if row["effective"] is None else ids[Configuration.of(row["effective"])],
        }
        for row in trials
    ]
    _insert(connection, TRIALS, values)


def _compared(row: Values, study: int, ids: Mapping[Configuration, int]) -> Values:
    statistics = answers.comparison_values(Comparison("", "", tuple(row["block_ratios"]), row["planned"]))
    sides = {f"{side}_id": ids[Configuration.of(row[side])] for side in ("candidate", "baseline")}
    return {**statistics, **sides, "study_id": study, "made_at": row["made_at"]}


def _newest(comparisons: Iterable[Values]) -> list[Values]:
    """Return the newest comparison of each pair: of exports whose configurations spelled out what is implied, or did not."""
    ordered = sorted(comparisons, key=lambda row: row["made_at"])
    return list({(row["candidate_id"], row["baseline_id"]): row for row in ordered}.values())


def _all_configurations(parcel: Parcel) -> Iterable[Configuration | None]:
    for row in parcel.trials:
        yield from (_configuration(row["requested"]), _configuration(row["effective"]))
    for row in parcel.comparisons:
        yield from (_configuration(row["candidate"]), _configuration(row["baseline"]))


def _configuration(choices: Mapping[str, str] | None) -> Configuration | None:
    return None if choices is None else Configuration.of(choices)


def _stored(values: Values) -> Values:
    """Return columns as they are stored: JSON as text, and text that both databases take."""
    return {
        name: rows.as_json(value)
        if name in _JSON and value is not None
        else rows.plain(value)
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }


def _insert(connection: Connection, table: Table, values: Sequence[Values]) -> None:
    if values:
        connection.execute(insert(table), values)
