"""The data set card says where labels come from and how good they are, whatever they are called."""

import re

import pytest
from campaigns import LABELS, make

from loop.deliver.data_card import COLUMNS, data_card, refuse_other_files
from loop.deliver.export import final_labels
from loop.errors import DataError
from loop.next_round import open_campaign, why_finished
from loop.round import run_round


def test_the_card_of_a_campaign(tmp_path):
    ctx = make(tmp_path)
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)
    records = final_labels(ctx.config, ctx.store)
    simulated = ctx.config.raters.model_copy(update={"kind": "gold"})
    card = data_card(ctx.config.model_copy(update={"raters": simulated}), ctx.store, records)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert 'pretty_name: "c"' in front
    assert "machine-generated" in front
    assert "**simulated** raters" in body
    assert "expert-generated" not in front  # simulated people are no experts
    assert "expert-generated" in data_card(ctx.config, ctx.store, records)
    assert "labels recorded in the columns llm, llm\\_2" in body
    for label in LABELS:
        row = re.search(rf"^\| {label} \| (.*) \|$", body, re.MULTILINE)[1].split(" | ")
        assert sum(map(int, row)) == sum(r["label"] == label for r in records)
    assert re.search(r"Of the LLM's labels \d+\.\d % \(\d+\.\d to \d+\.\d\) are right", body)
    assert set(COLUMNS) <= set(records[0])


def test_files_and_models_are_named_without_the_folders_of_this_machine(tmp_path):
    ctx = make(tmp_path, texts={"source": str(tmp_path / "reviews.csv"), "gold_column": "g"})
    open_campaign(ctx)
    run_round(ctx)
    with ctx.store.transaction() as session:
        round_ = ctx.store.last_round("c")
        config = round_.config | {"annotator": {"kind": "local_lm", "model": "~/models/little"}}
        ctx.store.set_round_config(session, round_, config)
    card = data_card(ctx.config, ctx.store, final_labels(ctx.config, ctx.store))
    assert "texts of reviews.csv. The question" in card
    assert "every text: little. In 1" in card


def test_names_are_text_and_nothing_else(tmp_path):
    ctx = make(tmp_path, campaign={"name": "c", "task": "<b>Is</b> it | `good`?\n---"})
    open_campaign(ctx)
    run_round(ctx)
    card = data_card(ctx.config, ctx.store, final_labels(ctx.config, ctx.store))
    assert "<b>" not in card
    assert "&lt;b&gt;Is&lt;/b&gt; it \\| \\`good\\`? ---" in card
    assert card.count("\n---\n") == 1


def test_a_card_takes_the_place_of_a_card_alone(tmp_path):
    ctx = make(tmp_path)
    open_campaign(ctx)
    run_round(ctx)
    card = tmp_path / "card.md"
    refuse_other_files(card)
    card.write_text(data_card(ctx.config, ctx.store, final_labels(ctx.config, ctx.store)))
    refuse_other_files(card)
    readmes = (b"# My project\n", b"", b"---\ntags:\n- films\n---\n- goldloop\n", b"\xff\x00")
    for readme in readmes:
        card.write_bytes(readme)
        with pytest.raises(DataError, match=r"card\.md is no data set card of goldloop's; name"):
            refuse_other_files(card)
