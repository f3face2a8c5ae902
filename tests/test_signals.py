"""Signals reach a loop on every system, and what took them before has them back."""

import asyncio
import signal
import sys

import pytest

from scheduler.guards.signals import signals_to


@pytest.mark.parametrize("knows_signals", [True, False], ids=["posix", "windows"])
async def test_a_signal_is_told_to_the_loop(monkeypatch, knows_signals):
    if sys.platform == "win32":
        pytest.skip("raise_signal would interrupt the tests")
    loop, told = asyncio.get_running_loop(), asyncio.Queue()
    if not knows_signals:

        def refuse(*args):
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_signal_handler", refuse)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with signals_to(told.put_nowait):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            async with asyncio.timeout(60):
                assert await told.get() == number

    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert after == before or knows_signals  # a loop leaves its own defaults


async def test_in_another_thread_there_are_none_and_that_is_no_error():
    async def within():
        with signals_to(print):
            await asyncio.sleep(0)
        return True

    assert await asyncio.to_thread(asyncio.run, within())


async def test_the_end_of_a_terminal_is_told_unless_it_is_ignored(monkeypatch):
    if sys.platform == "win32":
        pytest.skip("no terminal hangs up there")
    told = asyncio.Queue()
    with signals_to(told.put_nowait):
        signal.raise_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            assert await told.get() == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals_to(told.put_nowait):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
