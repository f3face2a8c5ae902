"""The page as somebody sees it: a real browser, a real batch, a real provider on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest

from scheduler.providers.simulated.server import running_server
from tests.server.browser import LONG_MS, chromium, seen

ROWS = 24


@contextmanager
def running(*words, cwd, **env):
    """A command in a process of its own, told to stop in the end."""
    words = [sys.executable, "-m", "scheduler", *words]
    process = subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OPENAI_API_KEY": "k", **env},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def dashboard(cwd, *options):
    """A page of the store there; gives the link."""
    with running("dashboard", "--store", "./s.db", "--json", *options, cwd=cwd) as process:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["link"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def tab(browser):
    """A tab that notes what goes wrong in it, and what it asks of other places."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(LONG_MS)
    page.wrong, page.asked = [], []
    page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def make_batch(folder, name="row-{}"):
    lines = [
        {"custom_id": name.format(n), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "sim-small", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}}
        for n in range(ROWS)
    ]  # fmt: skip
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_of(folder, url, budget):
    return running(
        "run", "in.jsonl", "-o", "out.jsonl", "--store", "./s.db", "--budget", budget, "--base-url",
        f"{url}/v1" if not url.endswith("/v1") else url, "--price", "sim-small=1/2", "--progress", "none",
        "--tag", "user=<i>ann</i>", "--tag", "team=red", "--fair-by", "user", "--weight", "<i>ann</i>=2",
        cwd=folder,
    )  # fmt: skip


def make_budget(folder, name, limit="$1/day"):
    words = ("budget", "set", name, limit, "--create", "--store", "./s.db")
    with running(*words, cwd=folder) as made:
        assert made.wait(60) == 0, made.stderr.read()


def wait_for(tab, count, word):
    said = re.compile(rf"^\s*{re.escape(str(count))}\s+{word}\s*$")
    seen(tab.locator("#counts li").filter(has_text=said)).to_have_count(1)


def test_what_is_parked_is_seen_raised_by_a_click_and_seen_going_on(tab, tmp_path):
    make_batch(tmp_path, "<b>row-{}</b>")
    with running_server() as url, run_of(tmp_path, url, "$0.0005/day") as run:
        while not (tmp_path / "s.db").exists():
            assert run.poll() is None, run.stderr.read()
        with dashboard(tmp_path, "--allow-changes") as link:
            tab.goto(link)
            tab.wait_for_selector("#live.is-live")
            seen(tab.locator("#standing")).to_contain_text("parked")
            seen(tab.locator("#standing")).to_contain_text("missing of")
            seen(tab).to_have_title(re.compile("parked"))
            assert "token" not in tab.url
            seen(tab.get_by_role("img", name="of $0.0005")).to_have_count(1)
            # A name is text, whatever is in it.
            tab.get_by_role("button", name="<b>row-", exact=False).first.click()
            tab.wait_for_selector("#life[open]")
            seen(tab.locator("#life-title")).to_have_text(re.compile("^Request <b>row-"))
            tab.keyboard.press("Escape")

            tab.get_by_role("button", name="Change the limit of default").first.click()
            tab.get_by_label("New limit").fill("a lot")
            tab.get_by_role("button", name="Set the limit").click()
            tab.wait_for_selector("#ask-trouble:not([hidden])")
            tab.get_by_label("New limit").fill("$1/day")
            tab.keyboard.press("Enter")

            wait_for(tab, ROWS, "done")
            assert run.wait(60) == 0
            seen(tab.locator("#acts")).to_contain_text("$0.0005/day")
            seen(tab.locator("#ask")).to_be_hidden()
            assert tab.wrong == [
                "Failed to load resource: the server responded with a status of 400 (Bad Request)"
            ]
            own = link.partition("?")[0]
            assert all(each.startswith(own) for each in tab.asked)
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(results) == ROWS


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A page of a store with something of everything."""
    folder = tmp_path_factory.mktemp("page")
    make_batch(folder)
    with running_server("--fail", "reset=0.2") as url, run_of(folder, url, "$0.0005/day") as run:
        while not (folder / "s.db").exists():
            assert run.poll() is None, run.stderr.read()
        with dashboard(folder) as link, dashboard(folder, "--allow-changes") as other:
            yield link, other


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_can_be_used_by_all_and_fits_the_screen(tab, looked_at, colors, width, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    link = use(looked_at, 1)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=colors, reduced_motion="reduce")
    tab.context.add_cookies(link)
    tab.goto(link[0]["url"])
    tab.wait_for_selector("#live.is-live")
    tab.wait_for_selector("#requests table")
    tab.wait_for_selector("#burn-chart svg")
    tab.wait_for_selector("#tags table")
    tab.wait_for_selector("#tenants table")

    found = axe.run(tab).response["violations"]
    assert [(each["impact"], each["id"], each["nodes"][0]["html"]) for each in found] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.get_by_role("button", name="Change the limit of default").first.click()
    found = axe.run(tab).response["violations"]
    assert [(each["impact"], each["id"], each["nodes"][0]["html"]) for each in found] == []
    assert tab.wrong == []


_cookies = {}


def use(links, which):
    """The cookies of whoever used a link; it is good for one browser."""
    import httpx

    link = links[which]
    if link not in _cookies:
        answer = httpx.get(link)
        name, _, rest = answer.headers["set-cookie"].partition("=")
        _cookies[link] = [
            {"name": name, "value": rest.partition(";")[0], "url": link.partition("?")[0]}
        ]
    return _cookies[link]


def test_it_tells_when_all_will_be_done_by_tags_and_who_shares(tab, looked_at):
    cookies = use(looked_at, 0)
    tab.context.add_cookies(cookies)
    tab.goto(cookies[0]["url"])
    seen(tab.locator("#finish")).to_have_text(re.compile("raise|done about"))
    seen(tab.locator("#tiles")).to_contain_text("All done")
    tab.get_by_label("Which tag").select_option("user")
    seen(tab.locator("#tags td.name")).to_have_text("<i>ann</i>")
    seen(tab.locator("#tags th").first).to_have_text("user")
    seen(tab.locator("#tenants td").nth(0)).to_have_text("<i>ann</i>")
    seen(tab.locator("#tenants td").nth(4)).to_have_text("2")
    assert tab.wrong == []


def test_a_page_that_only_shows_has_nothing_to_click_that_changes(tab, looked_at):
    cookies = use(looked_at, 0)
    tab.context.add_cookies(cookies)
    tab.goto(cookies[0]["url"])
    tab.wait_for_selector("#budgets table")

    seen(tab.locator("#store")).to_contain_text("read-only")
    for words in ("Change the limit", "Pause", "Resolve"):
        seen(tab.get_by_role("button", name=words)).to_have_count(0)


def test_it_is_used_by_keyboard_alone(tab, looked_at):
    cookies = use(looked_at, 1)
    tab.context.add_cookies(cookies)
    tab.goto(cookies[0]["url"])
    tab.wait_for_selector("#budget-actions button")
    reached = set()
    for _ in range(80):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate("document.activeElement.id || document.activeElement.dataset.act || ''")
        )
        if "state-choice" in reached:
            break

    assert {"budget-choice", "tag-choice", "state-choice"} <= reached
    assert any(each.startswith("toplimit") for each in reached)
    tab.locator("[data-act^=toplimit]").first.focus()
    tab.keyboard.press("Enter")
    seen(tab.locator("#ask")).to_be_visible()
    seen(tab.locator("#ask-input")).to_be_focused()
    tab.keyboard.press("Escape")
    seen(tab.locator("#ask")).to_be_hidden()


def test_a_server_that_ends_is_told_and_looked_for_again(tab, tmp_path):
    make_batch(tmp_path)
    make_budget(tmp_path, "team")
    with dashboard(tmp_path) as link:
        tab.goto(link)
        tab.wait_for_selector("#live.is-live")
    tab.wait_for_selector("#live.is-lost")
    seen(tab.locator("#live-text")).to_contain_text("trying again")


def test_news_that_come_while_it_is_drawn_are_drawn_too(tab, tmp_path):
    """They may be the last for hours."""
    make_budget(tmp_path, "first")
    held = []
    tab.route("**/api/acts", lambda route: held.append(route), times=1)
    with dashboard(tmp_path) as link:
        tab.goto(link)
        seen(tab.get_by_role("img", name="of $1.00")).to_be_visible()
        make_budget(tmp_path, "first", "$7/day")
        seen(tab.locator("#tiles")).to_contain_text("of $7.00")
        held[0].continue_()

        seen(tab.get_by_role("img", name="of $7.00")).to_be_visible()


def test_what_could_not_be_asked_is_asked_again(tab, tmp_path):
    make_budget(tmp_path, "first")
    tab.route("**/api/burn/**", lambda route: route.fulfill(status=503, body="busy"), times=1)
    with dashboard(tmp_path) as link:
        tab.goto(link)
        seen(tab.locator("#trouble")).to_contain_text("busy")

        seen(tab.get_by_role("img", name="of $1.00")).to_be_visible()
        seen(tab.locator("#trouble")).to_be_hidden()


def test_a_late_answer_about_another_budget_is_not_drawn(tab, tmp_path):
    make_budget(tmp_path, "first")
    make_budget(tmp_path, "second", "$2/day")
    held = []
    with dashboard(tmp_path) as link:
        tab.route("**/api/burn/**", lambda route: held.append(route), times=1)
        tab.goto(link)
        choice = tab.get_by_label("Which budget")
        seen(choice.locator("option")).to_have_count(2)
        names = choice.locator("option").all_inner_texts()
        chosen = choice.locator("option:checked").inner_text()
        other = "$2.00" if chosen.startswith("first") else "$1.00"
        choice.select_option(label=next(name for name in names if name != chosen))
        seen(tab.get_by_role("img", name=f"of {other}")).to_be_visible()
        with tab.expect_response("**/api/burn/**"):
            held[0].continue_()
        tab.evaluate("new Promise((drawn) => setTimeout(drawn, 100))")

        seen(tab.get_by_role("img", name=f"of {other}")).to_be_visible()
