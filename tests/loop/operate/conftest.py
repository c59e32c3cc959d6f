"""What tests of the operator's commands share."""

import pytest
from campaigns import copied, no_plots
from operated import CAMPAIGN, answer, at_work

from loop.next_round import open_campaign
from loop.round import run_round


@pytest.fixture(scope="session")
def begun(tmp_path_factory):
    """Folder of a campaign whose first round is done, and whose second waits for people."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        no_plots(patch.setattr)
        ctx = at_work(folder)
        open_campaign(ctx)
        run_round(ctx)
        answer(ctx)
        assert run_round(ctx).stage in ("pull", "done")
        answer(ctx)
        if ctx.store.last_round("c").stage == "pull":
            assert run_round(ctx).stage == "done"
        assert run_round(ctx).stage == "pull"
        answer(ctx, 3)
        assert run_round(ctx).stage == "pull"
        ctx.store.close()
    (folder / "x.csv").write_text("text,g,llm,llm_2\nfine,good,good,good\n")
    (folder / "goldloop.toml").write_text(CAMPAIGN)
    (folder / "runs" / "cache").mkdir(exist_ok=True)
    (folder / "runs" / "cache" / "made.json").write_text("{}")
    return folder


@pytest.fixture
def campaign(begun, tmp_path):
    """A copy of it that may change."""
    return copied(begun, tmp_path / "campaign")
