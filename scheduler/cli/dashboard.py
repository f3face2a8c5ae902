"""``scheduler dashboard``: a page to watch a store on, and to change limits from."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, StoreOption, opened
from scheduler.cli.output import say, tell

EXAMPLES = """\
scheduler dashboard
scheduler dashboard --store postgresql://host/db --allow-changes"""
GRACE_S = 1  # for answers that are on their way; whoever watches is on its way for ever


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("dashboard", cls=Command, epilog=EXAMPLES)(dashboard)


def dashboard(
    store: StoreOption = DEFAULT_STORE,
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="0: any.")
    ] = 0,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes",
            help="Let limits be changed, budgets be paused, outcomes be resolved.",
        ),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in a browser.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell the link as a line of JSON; opens no browser.")
    ] = False,
) -> None:
    """Serve a page that shows a store, live, on this machine alone, until Ctrl-C.

    Who has the link sees it: a link is good for one browser, and after it another one is told.
    """
    asyncio.run(_serve(store, port, allow_changes, open_browser and not as_json, as_json))


async def _serve(
    url: str, port: int, may_change: bool, opens: bool, as_json: bool
) -> None:  # fmt: skip
    from scheduler.guards.signals import signals_to
    from scheduler.server.listen import bind, listening, url_at
    from scheduler.server.page import Desk, Keys, page_app

    stop = asyncio.Event()
    async with opened(url) as store:
        at = bind("127.0.0.1", port)
        address = url_at(at)

        def show_another() -> None:
            say(f"the link was used; another one: {address}/?token={keys.link()}")

        keys = Keys(show_another)
        link = f"{address}/?token={keys.link()}"
        app = page_app(Desk(store, url, may_change=may_change), keys)

        with signals_to(lambda number: stop.set()):
            async with listening(app, at, GRACE_S):
                _tell(address, link, may_change, as_json)
                if opens:
                    _open(link)
                await stop.wait()


def _tell(address: str, link: str, may_change: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": address, "link": link}), flush=True)
        return
    tell(link)
    said = "shows and changes" if may_change else "shows (--allow-changes to change)"
    say(f"{said} the store until Ctrl-C")


def _open(link: str) -> None:
    """In a browser, where there is one; nothing is lost where there is none."""
    import webbrowser

    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    browser.open(link)
