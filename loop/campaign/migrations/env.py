"""Alembic's entry: runs inside the transaction that the store began and commits."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import loop.campaign.tables  # noqa: F401  registers the tables

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
