"""What nobody awaits is told all the same: the check that every test runs under."""

import asyncio
import logging

import pytest

from tests.conftest import Complaints


async def lose_an_exception():
    async def fail():
        raise ValueError("nobody hears this")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task


@pytest.mark.asyncio_complains
def test_an_exception_that_nobody_retrieves_is_heard():
    complaints = Complaints()
    logging.getLogger("asyncio").addHandler(complaints)
    try:
        asyncio.run(lose_an_exception())
    finally:
        logging.getLogger("asyncio").removeHandler(complaints)

    (heard,) = complaints.heard
    assert "exception was never retrieved" in heard
    assert "nobody hears this" in heard
