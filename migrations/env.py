"""Alembic's entry: run the migrations on the connection that advisor.storage.store hands over, or on the default database."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from advisor.storage.place import default_url, place_of
from advisor.storage.tables import METADATA


def run(connection: Connection) -> None:
    """Run the migrations in one transaction: a database is upgraded as a whole or not at all.

    advisor.storage.store begins its transactions itself on SQLite, so that DDL is part of them there too.
    """
    context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with create_engine(place_of(default_url())).connect() as own:
        run(own)
        own.commit()
