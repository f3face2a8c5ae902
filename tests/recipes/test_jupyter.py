"""A real kernel: its running loop, its interrupt, its restart."""

from __future__ import annotations

import contextlib
import re
import time
from queue import Empty

import pytest
from jupyter_client import KernelManager

from tests.processes.harness import wait_for
from tests.recipes.harness import PROGRAMS, ROOT

CELLS = PROGRAMS["cells.py"]
NOTEBOOK = re.search(
    r"^## A notebook\n.*?```python\n(.*?)```\n\n```text\n(.*?)```",
    (ROOT / "docs" / "recipes.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


class Kernel:
    """Cells go in, what they print comes out."""

    def __init__(self, here) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(here.path), env=here.environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=40)

    def run(self, cell: str, seconds: float = 40) -> str:
        """Run a cell to its end; gives its output, and the name of its error."""
        return self.read(self.client.execute(cell), seconds)

    def read(self, message_id: str, seconds: float = 40) -> str:
        out, until_s = "", time.monotonic() + seconds
        while time.monotonic() < until_s:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != message_id:
                continue
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                out += content["text"]
            elif message["msg_type"] == "error":
                out += f"{content['ename']}: {content['evalue']}\n"
            elif content.get("execution_state") == "idle":
                return out
        raise AssertionError(f"the cell did not end; it said {out}")

    def restart(self) -> None:
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=40)

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(here):
    made = Kernel(here)
    try:
        yield made
    finally:
        with contextlib.suppress(RuntimeError):
            made.end()


def cells(text: str) -> list[str]:
    return ["#" + cell for cell in text.split("# %%")[1:]]


def test_cells_await_in_the_kernels_own_loop_and_a_restart_pays_nothing_again(here, kernel):
    opening, wrapped, keyed = cells(CELLS)

    assert kernel.run(opening) == ""
    assert kernel.run(wrapped) == "True\n"
    assert kernel.run(keyed) == "2 asked and paid\n"
    here.check_books_exactly(2)

    kernel.restart()

    assert kernel.run(opening) == ""
    assert kernel.run(keyed) == "0 asked and paid\n"
    here.check_books_exactly(2)


def test_the_notebook_that_blocks_does_so_in_a_kernel(kernel):
    program, output = NOTEBOOK.groups()

    assert "".join(kernel.run(cell) for cell in cells(program)) == output


@pytest.mark.parametrize("way", ["await", "blocking"])
def test_a_parked_cell_is_interrupted_at_no_cost_and_the_next_one_runs(here, kernel, way):
    opening, wrapped, _ = cells(CELLS.replace("$5/day", "$0.00000001"))
    if way == "blocking":
        here.write("llm.py", limit='"$0.00000001"')
        opening, wrapped = "import llm\nb = llm.opened()", "print(bool(llm.ask('Hi')))"
    assert kernel.run(opening) == ""
    asked = kernel.client.execute(wrapped)
    here.wait_until_parked()

    kernel.manager.interrupt_kernel()

    told = kernel.read(asked)
    assert told.startswith(("KeyboardInterrupt", "CancelledError")), told
    here.wait_until_parked(0)
    here.check_nothing_was_spent()
    here.raise_limit()
    assert kernel.run(wrapped) == "True\n"
    here.check_books_exactly(1)


def test_a_restart_while_a_call_is_parked_costs_nothing(here, kernel):
    opening, wrapped, _ = cells(CELLS.replace("$5/day", "$0.00000001"))
    kernel.run(opening)
    kernel.client.execute(wrapped)
    here.wait_until_parked()

    kernel.restart()

    assert kernel.run(opening) == ""
    here.check_nothing_was_spent()
    here.raise_limit()
    assert kernel.run(wrapped) == "True\n"
    wait_for(lambda: here.provider.bill()["calls"] == 1, "the one call")
    here.check_books_exactly(1)
