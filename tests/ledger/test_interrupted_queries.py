"""An interrupt that comes within a query is one: DuckDB gives another error in its place."""

import os
import signal
import threading

import pytest

from pipeline.ledger.database import Database

pytestmark = pytest.mark.lengthy

LONG = "select sum(a.range * b.range) as product from range(30000) a, range(30000) b"
MANY = "select a.range + b.range as sum from range(30000) a, range(30000) b"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "asks",
    [
        lambda database: database.value(LONG),
        lambda database: database.execute(LONG),
        lambda database: database.table(LONG),
        lambda database: list(database.rows(LONG)),
        lambda database: sum(batch.num_rows for batch in database.batches(MANY)),
    ],
    ids=["value", "execute", "table", "rows", "batches"],
)
def test_an_interrupt_within_a_query_is_one(asks, number):
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler)
    database = Database()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            asks(database)
    finally:
        timer.cancel()
        timer.join()
        signal.signal(number, before)
    assert database.value("select 1") == 1
    database.close()
