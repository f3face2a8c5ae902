from importlib.util import find_spec

import pytest

from tests.recipes.harness import place

# ``make recipes`` installs what these need, in an environment of its own.
collect_ignore_glob = [] if find_spec("celery") else ["test_*.py"]


@pytest.fixture
def here(tmp_path):
    with place(tmp_path) as made:
        yield made
