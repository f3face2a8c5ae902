"""A headless Chromium for tests: one that is on the machine, or one that Playwright fetched."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

NEEDED = "SCHEDULER_TESTS_NEED_BROWSER"  # set: without a browser its tests fail, rather than being skipped
LONG_MS = 60_000  # a busy machine draws late
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chromium():
    """A browser; the test is skipped with the reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    with sync_api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=path, args=list(_OPTIONS))
        except sync_api.Error as exc:
            problem = str(exc).strip().splitlines()[0]
            reason = (
                f"no Chromium can be started ({problem}): install one from your distribution (apt install "
                "chromium), or by 'playwright install chromium'"
            )
            if os.environ.get(NEEDED):
                pytest.fail(reason)
            pytest.skip(reason)
        try:
            yield browser
        finally:
            browser.close()


def seen(locator):
    """What is to be seen there, sooner or later: each part of a page is drawn when its news come.

    To look once, as ``inner_text()`` and ``count()`` do, is a race against the next part; and
    ``wait_for_function`` may look once only, since the page lets nobody evaluate text as code.
    """
    from playwright.sync_api import expect

    expect.set_options(timeout=LONG_MS)
    return expect(locator)
