"""An engine that panics is never the end of the process: what it did is settled, httpx goes on."""

import pytest

from scheduler import Request, Scheduler
from scheduler.cli import doctor
from scheduler.errors import CallFailed
from scheduler.providers import engines
from scheduler.providers.engines import HttpxEngine, QuickEngine
from scheduler.providers.openai import OpenAI
from tests.test_secrets import KEY, MARKER, server, shown

__all__ = ["server"]  # a fixture


class PanicException(BaseException):
    """As PyO3 makes it."""


def panicking(*args, **options):
    raise PanicException(f"called `Option::unwrap()` on a `None` value: {KEY}")


@pytest.mark.parametrize("kind", [PanicException, OSError, RuntimeError, ImportError])
async def test_one_that_cannot_be_made_is_replaced(server, monkeypatch, kind, caplog):
    def fails(*args, **options):
        raise kind(KEY)

    monkeypatch.setattr(engines, "QuickEngine", fails)
    provider = OpenAI(api_key=KEY, base_url=server.url)
    answer = await provider.send(Request.chat("m", "fine", max_tokens=5))
    assert isinstance(provider._engine, HttpxEngine)
    await provider.aclose()

    assert answer.status_code == 200
    assert MARKER not in caplog.text
    assert ("slower" in caplog.text) is (kind is not ImportError)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_panic_in_a_call_is_an_unknown_outcome_and_the_next_goes_by_httpx(
    server, monkeypatch, is_stream
):
    monkeypatch.setattr(QuickEngine, "stream" if is_stream else "post", panicking)
    provider = OpenAI(api_key=KEY, base_url=server.url)
    async with Scheduler(providers=provider, prices={"m": "1/1"}, max_attempts=1) as s:
        request = Request.chat("m", "fine", max_tokens=5)
        with pytest.raises(CallFailed, match="PanicException") as caught:
            await (s.stream(request).response() if is_stream else s.run(request))
        assert s.stats().suspense_nusd > 0
        response = await s.run(request)
        assert isinstance(provider._engine, HttpxEngine)

    assert response.status_code == 200
    assert MARKER not in shown(caught.value)


def test_the_doctor_notes_an_engine_that_panics(monkeypatch):
    import builtins

    real = builtins.__import__

    def load(name, *rest):
        if name == "pyreqwest":
            raise PanicException("no more files")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", load)
    assert doctor.check_engine().verdict is doctor.Verdict.NOTE
