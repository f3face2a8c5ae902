import pytest

from tests.processes.harness import Children, File


@pytest.fixture
def children():
    made = Children()
    yield made
    made.end()


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "scheduler.db")
