"""Which rules cover a request is found by the tags and models that they name, however many there are."""

from __future__ import annotations

import random

import pytest

from scheduler.budget import Budget
from scheduler.ledger.matching import BudgetBook
from scheduler.naming import names_of


class Counted(Budget):
    """A budget that counts how often its rules are looked at."""

    looks = 0

    def covers(self, model, tags):
        type(self).looks += 1
        return super().covers(model, tags)


def book_of(rules):
    Counted.looks = 0
    return BudgetBook((n, Counted(f"b{n}", "$1", **rule)) for n, rule in enumerate(rules, 1))


MANY = 2_000


@pytest.mark.parametrize(
    ("rule", "tags", "model"),
    [
        (lambda n: {"tags": {"user": f"u{n}"}}, lambda n: {"user": f"u{n}"}, "m"),
        # What all of them have in common is not what they are found by.
        (lambda n: {"tags": {"team": "a", "user": f"u{n}"}},
         lambda n: {"team": "a", "user": f"u{n}"}, "m"),
        (lambda n: {"tags": {"user": f"u{n}-*"}}, lambda n: {"user": f"u{n}-7"}, "m"),
        (lambda n: {"tags": {"user": f"*@{n}.example"}}, lambda n: {"user": f"x@{n}.example"}, "m"),
        (lambda n: {"tags": {"user": f"u{n}"}, "models": ["gpt-*"]},
         lambda n: {"user": f"u{n}"}, "gpt-4o"),
        (lambda n: {"tags": {f"on-{n}": "*"}}, lambda n: {f"on-{n}": "yes"}, "m"),
        (lambda n: {"models": [f"own/m{n}"]}, lambda n: {}, "own/m5"),
    ],
    ids=["a value", "two tags", "a beginning", "an end", "with a model", "a tag's name", "a model"],
)  # fmt: skip
def test_a_request_looks_at_a_handful_of_many_rules(rule, tags, model):
    book = book_of([rule(n) for n in range(MANY)])
    for n in range(50):
        asked = model.replace("5", str(n))
        drawn = book.draws_on(asked, {**tags(n), "request": str(n)}, ())
        assert drawn == (n + 1,)

    assert Counted.looks <= 50 * 3


def test_tags_that_no_rule_asks_for_ask_nothing_again():
    book = book_of([{"tags": {"user": f"u*{n}*"}} for n in range(MANY)])
    for n in range(500):
        book.draws_on("m", {"user": "u7", "trace": str(n)}, ())

    assert Counted.looks <= 2 * MANY


def test_rules_that_went_are_not_looked_at_and_their_tags_not_asked_for():
    rules = [{"tags": {"user": f"u{n}-*"}} for n in range(20)]
    book = book_of(rules)
    book.remove(f"b{n}" for n in range(1, 20))
    book.update([(20, Counted("b20", "$1", tags={"team": "*-x"}))])

    assert book.draws_on("m", {"user": "u3-x"}, ()) == ()
    assert book.draws_on("m", {"team": "a-x"}, ()) == (20,)
    book.remove(["b20"])
    assert book.draws_on("m", {"team": "a-x"}, ()) == ()
    assert not book._rules.tags
    assert not book._rules


def test_the_same_rules_are_found_as_by_looking_at_all_of_them():
    draw = random.Random(7)
    values = ["a", "ab", "a*", "*b", "a?", "[ab]b", "a[", "a]b", "*", "*x*", "b-*-c", ""]
    models = ["m", "gpt-4o", "gpt-*", "openai/gpt-4o", "mistralai/m", "Claude-3-5-x", "*"]
    budgets = []
    for n in range(1, 400):
        tags = {draw.choice("pqr"): draw.choice(values) for _ in range(draw.randrange(3))}
        asks = draw.sample(models, draw.randrange(3))
        if tags or asks:
            budgets.append((n, Budget(f"b{n}", "$1", tags=tags, models=asks)))
    book = BudgetBook(budgets)
    for n in range(400):
        if n == 200:
            book.remove([budget.name for _, budget in budgets[::2]])
            budgets = budgets[1::2]
        tags = {draw.choice("pqrs"): draw.choice(["a", "ab", "b", "axb", "b-7-c", "a[", "a]b", ""])
                for _ in range(draw.randrange(4))}  # fmt: skip
        model = draw.choice(["m", "openai/gpt-4o-2024-08-06", "mistral/m", "claude-3.5-x", "gpt-4"])
        covering = [each for each, budget in budgets if budget.covers(names_of(model), tags)]

        assert list(book.draws_on(model, tags, ())) == covering, (model, tags)
