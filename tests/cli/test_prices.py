import json

import pytest


def shown(cli, store, *words):
    done = cli("prices", "show", "--json", "--store", store, *words)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_price_of_your_own_is_kept_shown_and_removed(cli, tmp_path):
    store = tmp_path / "scheduler.db"

    done = cli("prices", "set", "my-model", "--in", "0.10", "--out", "$0.20", "--store", store)
    assert done.exit_code == 0, done.output
    assert "0.10/0.20" in done.stdout
    assert str(store) in done.stderr
    (row,) = shown(cli, store)
    assert (row["model"], row["in_usd"], row["out_usd"]) == ("my-model", "0.10", "0.20")
    assert row["source"] == "own"

    assert cli("prices", "remove", "my-model", "--store", store).exit_code == 0
    assert shown(cli, store) == []


def test_setting_a_price_again_tells_the_old_one(cli, filled):
    cli("prices", "set", "m", "--in", "1", "--out", "2", "--store", filled)

    done = cli(
        "prices", "set", "m", "--in", "3", "--out", "15", "--cached", "0.3", "--store", filled
    )

    assert "1/2 → 3/15/0.3" in done.stdout
    (row,) = shown(cli, filled, "m")
    assert row["cached_usd"] == "0.30"


def test_the_catalogue_is_shown_without_a_store(cli, tmp_path):
    missing = tmp_path / "scheduler.db"

    (row,) = shown(cli, missing, "gpt-4o-mini", "--source", "openai")

    assert (row["in_usd"], row["out_usd"]) == ("0.15", "0.60")
    assert row["source"] != "own"
    assert not missing.exists()


def test_a_model_without_a_price_exits_3_and_says_how_to_set_one(cli, tmp_path):
    done = cli("prices", "show", "no-such-model-at-all", "--store", tmp_path / "x.db")

    assert done.exit_code == 3
    assert "scheduler prices set no-such-model-at-all" in done.stderr


@pytest.mark.parametrize(
    ("price_in", "price_out"), [("-1", "2"), ("a lot", "2"), ("1", "nan"), ("1", "9999999999")]
)
def test_an_absurd_price_is_refused_and_nothing_is_kept(cli, filled, price_in, price_out):
    done = cli("prices", "set", "m", f"--in={price_in}", f"--out={price_out}", "--store", filled)

    assert done.exit_code == 3
    assert len(done.stderr.splitlines()) == 1
    assert shown(cli, filled) == []


def test_removing_a_price_that_was_never_set_is_an_error(cli, filled):
    done = cli("prices", "remove", "m", "--store", filled)

    assert done.exit_code == 3
    assert "'m'" in done.stderr


def test_without_prices_of_your_own_the_way_to_the_catalogue_is_told(cli, filled):
    done = cli("prices", "show", "--store", filled)

    assert done.exit_code == 0
    assert "scheduler prices show MODEL" in done.stderr
