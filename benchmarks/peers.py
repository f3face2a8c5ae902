"""Other gateways beside ours: LiteLLM's proxy from PyPI, Portkey's from npm, each as it comes.

They are put into folders of their own when they are first measured, and left out, with the reason,
where they cannot be had.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEY = "sk-benchmark"
START_S, INSTALL_S = 90.0, 900.0


class LeftOut(Exception):
    """It cannot be measured; says why."""


@dataclass(frozen=True)
class Begun:
    """A gateway that answers.

    Attributes:
        headers: What a client says beside its question.
    """

    process: subprocess.Popen[str]
    port: int
    headers: Sequence[str] = field(default_factory=list)


def begin_litellm(provider_url: str, folder: Path, *, installs: bool) -> Begun:
    """LiteLLM's proxy with one model and a key of its own, without a database."""
    home = ROOT / ".venv-litellm"
    program = home / ("Scripts" if os.name == "nt" else "bin") / "litellm"
    if not program.exists():
        _may(installs, "litellm")
        _done([sys.executable, "-m", "venv", str(home)])
        _done([str(program.with_name("python")), "-m", "pip", "install", "--quiet",
               "litellm[proxy]>=1.84"])  # fmt: skip
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n- model_name: gpt-4o-mini\n  litellm_params:\n    model: openai/gpt-4o-mini\n"
        f"    api_base: {provider_url}/v1\n    api_key: k\n"
    )
    port = _free_port()
    words = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    more = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return Begun(_begun(words, port, more), port, [f"authorization: Bearer {KEY}"])


def begin_portkey(provider_url: str, folder: Path, *, installs: bool) -> Begun:
    """Portkey's gateway; a client names the provider and its address."""
    home, node, npm = ROOT / ".node-portkey", shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise LeftOut("there is no node, or no npm")
    program = home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    if not program.exists():
        _may(installs, "@portkey-ai/gateway")
        _done([npm, "install", "--silent", "--no-save", "--no-package-lock", "--no-audit",
               "--no-fund", "--prefix", str(home), "@portkey-ai/gateway"])  # fmt: skip
    port = _free_port()
    headers = ["authorization: Bearer k", "x-portkey-provider: openai",
               f"x-portkey-custom-host: {provider_url}/v1"]  # fmt: skip
    words = [node, str(program), f"--port={port}", "--headless"]
    return Begun(_begun(words, port, {"NODE_ENV": "production"}), port, headers)


PEERS = {"Portkey": (begin_portkey, 3.0), "LiteLLM": (begin_litellm, 20.0)}
"""How each is begun, and how many times its rate is ours to be."""


def _may(installs: bool, name: str) -> None:
    if not installs:
        raise LeftOut(f"{name} is not installed, which takes minutes; run it without --quick")


def _done(words: Sequence[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LeftOut(f"it cannot be installed: {exc}") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise LeftOut(f"it cannot be installed: {' '.join(last)[:150]}")


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as at:
        at.bind(("127.0.0.1", 0))
        return int(at.getsockname()[1])


def _begun(words: Sequence[str], port: int, more: Mapping[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        words, env={**os.environ, **more}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as tried:
            tried.connect(("127.0.0.1", port))
            return process
        time.sleep(0.2)
    process.kill()
    process.wait()
    raise LeftOut(f"it did not begin to listen within {START_S:g} s")
