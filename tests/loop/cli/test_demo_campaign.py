import pytest

from loop.campaign.config import load
from loop.cli.demo_campaign import campaign_text, closing_lines


@pytest.mark.parametrize("pool", [100, 400])
@pytest.mark.parametrize("by_hand", [False, True])
def test_the_demo_campaign_is_valid_and_says_who_the_people_are(tmp_path, by_hand, pool):
    path = tmp_path / "goldloop.toml"
    path.write_text(campaign_text(by_hand=by_hand, pool=pool))
    config = load(path)
    assert config.raters.kind == ("people" if by_hand else "recorded")
    assert config.rounds.rounds == 3
    assert config.budget.labels == 3 * config.rounds.batch_size <= pool
    assert ("simulated" in path.read_text()) is not by_hand
    assert "llm_only" in config.student.references


def test_the_end_says_where_the_campaign_is_and_how_to_label(tmp_path):
    login = ("http://127.0.0.1:1", "me@x", "pw")
    text = "\n".join(closing_lines(tmp_path / "g.toml", 120, 90, login))
    for expected in (
        "1.5 minutes",
        "after 2.0 minutes of fetching",
        "g.toml",
        "http://127.0.0.1:1",
        "me@x",
        "--by-hand",
    ):
        assert expected in text
