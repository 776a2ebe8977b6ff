"""``python -m pipeline.prefect_sqlite server start …``: Prefect's own command, whose writers to SQLite take turns.

Prefect begins most transactions as ones that read. Where such a one writes later, and another has written since, SQLite
refuses it at once (``database is locked``): what it read is out of date, and no waiting would mend that. The server
answers 503, which Prefect's client repeats and its UI shows as an error. Here each transaction begins as one that
writes, as Prefect has it only where a run's state changes, and so waits for the one before it. What reads outside of
transactions waits for nobody, and on Postgres nothing is changed.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WritersInTurn(AioSqliteConfiguration):
    """Prefect's SQLite, each of whose transactions holds the right to write from its start."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - always so here
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """A transaction, once no other one writes."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def main() -> None:
    """Run Prefect's command line in this process, which is also the server's."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        set_database_config(WritersInTurn(connection_url=url))
    app()


if __name__ == "__main__":
    main()
