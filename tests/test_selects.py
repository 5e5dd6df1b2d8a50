"""SELECTs that are read with the driver's own cursor: their values, their errors, and a connection that is lost."""

from __future__ import annotations

import pickle
import subprocess
import sys

import psycopg
import pytest

from advisor.errors import StoreError
from advisor.nouns.configuration import Configuration
from advisor.storage.selects import selected
from advisor.storage.store import Store


def test_values_are_named_and_the_rest_of_a_statement_stays(database_url: str) -> None:
    """A value stands behind a colon; a percent sign is one; and the transaction is the connection's."""
    with Store.open(database_url, write=True) as store, store._database.reading() as connection:
        statement = "SELECT :first, ':' || :second, 7 % 4, 'a%b' LIKE 'a%'"
        ((first, second, rest, alike),) = selected(connection, statement, first="x", second="50 %")
        assert (first, second, rest, bool(alike)) == ("x", ":50 %", 3, True)
        assert selected(connection, "SELECT 1 WHERE 1 = :one", one=2) in ([], ())


def test_what_goes_wrong_is_told_without_the_statement(database_url: str) -> None:
    """As of any other statement: one line, and the store answers on."""
    with Store.open(database_url, write=True) as store:
        with pytest.raises(StoreError) as raised, store._database.reading() as connection:
            selected(connection, "SELECT secret FROM nowhere_at_all WHERE id = :id", id=1)
        assert "SELECT" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert store.studies() == []


def test_a_connection_that_is_lost_is_not_used_again(postgres_url: str, postgres: str) -> None:
    """Cut amid an answer it is a StoreError, and the next answer has another one."""
    with Store.open(postgres_url, write=True) as store, psycopg.connect(postgres, autocommit=True) as admin:

        def cut() -> None:
            with store._database.reading() as connection:
                ((backend,),) = selected(connection, "SELECT pg_backend_pid()")
                admin.execute("SELECT pg_terminate_backend(%s)", (backend,))
                selected(connection, "SELECT 1")

        with pytest.raises(StoreError, match="can't be reached"):
            cut()
        assert store.studies() == []


def test_a_configuration_is_found_in_another_process() -> None:
    """Its hash is remembered, and of its process alone: one that was sent is found among those that are made there."""
    sent = Configuration.of({"attention": "sdpa", "precision": "bf16"})
    assert {sent: 1}[Configuration.of(dict(sent))] == 1
    code = (
        "import pickle, sys; import advisor.knobs; from advisor.nouns.configuration import Configuration; "
        "sent = pickle.loads(sys.stdin.buffer.read()); sys.exit({Configuration.of(dict(sent)): 3}[sent])"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(sent), check=False)
    assert ran.returncode == 3
