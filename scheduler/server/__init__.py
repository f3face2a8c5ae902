"""How do those come to wait for money who cannot change a line, or do not write Python?

A gateway: the scheduler behind the HTTP APIs that their clients know already. `front` checks who
comes, and hands over to the parts; `gateway` is the part that passes calls on, one `exchange` each;
`tokens` says who may spend what; `listen` is the server below all of it. And a page to watch it on: `page/`.

All of it needs the extra ``server``.
"""

from __future__ import annotations

__all__ = ["NEEDS"]

NEEDS = "the gateway needs the extra 'server': pip install 'llm-budget-scheduler[server]'"
"""What to say where Starlette or uvicorn is missing."""
