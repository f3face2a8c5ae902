"""Worlds that crash leave tasks behind, which asyncio would complain of in some later test."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _what_crashes_leave_is_collected_here() -> Iterator[None]:
    logger = logging.getLogger("asyncio")
    logger.disabled = True
    try:
        yield
        gc.collect()
    finally:
        logger.disabled = False
