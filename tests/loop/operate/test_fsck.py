"""What does not fit together is found, said, and mended where that is safe."""

import json
import sqlite3

import numpy as np
import pytest
from operated import answer, at_work

from loop.errors import StoreError
from loop.files import replacing, replacing_folder
from loop.next_round import open_round
from loop.operate.fsck import check_campaign
from loop.people.answers import withdraw_unanswered
from loop.pool_arrays import suspicion_of
from loop.round import close_early, run_round, run_stage
from loop.training_sets import loop_labels


def findings(ctx, *, offline=False):
    return list(check_campaign(ctx.config, ctx.store, None if offline else lambda: ctx.reviewer))


@pytest.fixture
def ctx(campaign):
    context = at_work(campaign)
    yield context
    context.store.close()


def edit(campaign, *statements):
    with sqlite3.connect(campaign / "c.db") as connection:
        for statement in statements:
            connection.execute(*statement)
    connection.close()


def edit_studio(campaign, change):
    path = campaign / "studio.json"
    data = json.loads(path.read_text())
    change(data["tasks"])
    path.write_text(json.dumps(data))


def test_a_sound_campaign_has_nothing_to_say(ctx):
    assert findings(ctx) == []


def test_a_damaged_database_file_is_told_and_nothing_else_is_believed(campaign, ctx):
    store = campaign / "c.db"
    whole = store.read_bytes()
    store.write_bytes(whole[: 10 * 4096] + b"\xff" * 4096 + whole[11 * 4096 :])
    (found,) = findings(ctx)
    assert found.what.startswith("The database file is damaged: ")
    assert "goldloop restore" in found.do


def test_files_that_do_not_fit_are_found_and_mended(campaign, ctx):
    out = ctx.config.out
    (out / "models" / "round-1" / "model.txt").rename(out / "elsewhere")
    (out / "models" / "round-1").rmdir()
    (out / "cache" / "made.json").write_text("{")
    (out / "cache" / "embeddings-x.npz").write_bytes(b"PK\3\4 half a file")
    (out / "states").mkdir(exist_ok=True)
    (out / "states" / "states-x.bin").write_bytes(b"?")
    (out / ".report.html.0123456789ab.part").write_text("half")
    (campaign / "c.db").chmod(0o644)
    told = findings(ctx, offline=True)
    assert {f.where for f in told} == {"files"}
    words = (
        "trained models are gone",
        "made.json is damaged",
        "embeddings-x.npz",
        "hidden states",
        "half-written",
        "Other users can read",
    )
    assert [sum(word in f.what for f in told) for word in words] == [1] * len(words)
    assert all(f.repair is not None and f.repair() for f in told)
    assert findings(ctx, offline=True) == []


def test_files_of_others_and_of_commands_that_run_are_left_alone(campaign, ctx):
    out = ctx.config.out
    others = [campaign / ".env.old", campaign / ".photos.part", out / ".notes.old"]
    others += [campaign / ".git.0123456789ab.old", campaign / ".thesis.0123456789ab.part"]
    for path in others:
        path.mkdir()
        (path / "mine").write_text("mine")
    left = [
        out / "cache" / ".embeddings-x.npz.0123456789ab.part",
        out / "models" / ".round-1.0123456789ab.part",
        out / "states" / ".states-x.bin.0123456789ab.part",
        out / ".report.html.0123456789ab.part",
        campaign / ".c.db.0123456789ab.part",
        campaign / ".c.db.0123456789ab.part-wal",
        campaign / ".mine.goldloop.zip.0123456789ab.part",
        campaign / "c.db.schema-0008.partial",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with replacing(campaign / "now.goldloop.zip") as file, replacing_folder(out / "final") as part:
        file.write(b"half")
        told = findings(ctx, offline=True)
        words = ["1 half-written"] * 4 + ["4 half-written", "Other users"]
        assert sorted(" ".join(f.what.split()[:2]) for f in told) == words, told
        assert all(f.repair() for f in told)
        assert not any(path.exists() for path in left)
        assert all((path / "mine").exists() for path in others)
        assert part.exists()
    assert (campaign / "now.goldloop.zip").read_bytes() == b"half"
    assert findings(ctx, offline=True) == []


def test_in_a_folder_shared_with_others_only_known_names_are_leftovers(campaign, ctx):
    section = ctx.config.store.model_copy(update={"folder": "."})
    ctx.config = ctx.config.model_copy(update={"store": section})
    (campaign / ".thesis.0123456789ab.part").write_text("mine")
    (campaign / ".rounds.json.0123456789ab.part").write_text("half")
    told = [f for f in findings(ctx, offline=True) if "half-written" in f.what]
    assert len(told) == 1
    assert told[0].repair()
    assert (campaign / ".thesis.0123456789ab.part").exists()
    assert not (campaign / ".rounds.json.0123456789ab.part").exists()


def test_a_folder_that_a_killed_command_moved_away_is_put_back(ctx):
    models = ctx.config.out / "models"
    (models / "round-1").rename(models / ".round-1.0123456789ab.old")
    (found,) = findings(ctx, offline=True)
    assert "round-1: a killed command had moved it away" in found.what
    assert found.repair()
    assert (models / "round-1").is_dir()
    assert findings(ctx, offline=True) == []


def test_late_corrections_in_a_finished_campaign_are_found_and_read(campaign, ctx):
    answer(ctx)
    while run_round(ctx).stage != "done":
        answer(ctx)
    assert findings(ctx) == []
    gold = ctx.store.gold("c")

    def turn(there):
        for task in there.values():
            for given in task["answers"].values():
                given["label"] = {"good": "bad", "bad": "good"}[given["label"]]
                given["at"] += 1000

    edit_studio(campaign, turn)
    (found,) = findings(ctx)
    assert "answers differ" in found.what
    assert "goldloop pull --all" in found.do
    assert found.repair()
    run_stage(ctx, "pull")
    assert findings(ctx) == []
    turned = ctx.store.gold("c")
    assert all(turned[i].label != gold[i].label for i in gold)


def test_texts_that_were_taken_back_are_not_missed(ctx):
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    assert withdraw_unanswered(ctx)
    assert findings(ctx) == []


def test_an_answer_that_is_stored_otherwise_than_it_came_is_found(campaign, ctx):
    edit(campaign, ("update annotation set label = 'good'",))
    (found,) = findings(ctx)
    assert "not stored as Label Studio has them" in found.what
    assert found.repair is None
    ctx.config = ctx.config.model_copy(
        update={"people": ctx.config.people.model_copy(update={"platform": "desk"})}
    )
    (found,) = findings(ctx)
    assert (found.where, "not stored as desk has them" in found.what) == ("desk", True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("delete from vote_block", "The LLM's answers to 48 texts of round 1 are gone"),
        ("delete from variant", "2 prompts are gone"),
        ("delete from run", "Round 1 is past stage train"),
        ("update round set metrics = '{}'", "Round 1 is past stage measure"),
        ("update review set task_id = null", "Round 1 is past stage push"),
        ("delete from review where round_id = 1", "8 texts that were chosen for people are gone"),
        ("update annotation set label = 'ugly'", "answers have labels that the campaign has not"),
        ("update item set text = '' where row < 5", "5 texts are not those that were imported"),
    ],
)
def test_what_a_passed_stage_must_have_is_looked_for(campaign, ctx, damage, words):
    edit(campaign, (damage,))
    told = findings(ctx, offline=True)
    assert any(words in f.what for f in told), told


def test_gold_that_is_gone_is_decided_again(campaign, ctx):
    gold = ctx.store.gold("c")
    edit(campaign, ("delete from gold",))
    (found,) = findings(ctx, offline=True)
    assert f"{len(gold)} texts were decided by people" in found.what
    assert found.repair()
    answer(ctx)
    run_round(ctx)
    assert {i: g.label for i, g in ctx.store.gold("c").items()}.items() >= {
        i: g.label for i, g in gold.items()
    }.items()


def test_label_studio_and_store_that_differ_are_found(campaign, ctx):
    tasks = json.loads((campaign / "studio.json").read_text())["tasks"]
    open_items = [i for i, t in tasks.items() if not t["answers"]]
    answered = next(i for i, t in tasks.items() if t["answers"])
    assert open_items

    def change(there):
        del there[open_items[0]]
        there[answered]["answers"].popitem()
        there["nobody"] = {"id": "999", "answers": {}, "at": 0, "assisted": False}

    edit_studio(campaign, change)
    told = findings(ctx)
    words = ("tasks are gone", "unknown to the store", "answers differ")
    assert [sum(word in f.what for f in told) for word in words] == [1, 1, 1], told
    mended = [f.repair() for f in told if f.repair is not None]
    assert len(mended) == 2
    run_stage(ctx, "pull")
    (left,) = findings(ctx)
    assert "unknown to the store" in left.what


def test_a_store_that_was_changed_by_hand_is_found(campaign, ctx):
    gold = next(iter(ctx.store.gold("c")))
    other = next(r.item_id for r in ctx.store.reviews("c") if r.item_id != gold and r.task_id)
    edit(
        campaign,
        ("pragma foreign_keys=off",),
        ("delete from annotation where item_id = ?", (gold,)),
        ("update annotation set item_id = 'nobody' where item_id = ?", (other,)),
        ("update gold set label = 'ugly' where item_id = ?", (gold,)),
        ("update review set task_id = '7'",),
        (
            "insert into unanswered (item_id, variant_hash, annotator, reason, tokens, usd,"
            " seconds, created_at) values ('gone', 'v', 'a', 'r', 0, 0, 0, '2026-01-01')",
        ),
    )
    told = findings(ctx, offline=True)
    words = (
        "no answer behind",
        "labels that the campaign has not",
        "does not know",
        "more than one text",
        "unanswered without its item",
    )
    assert [sum(word in f.what for f in told) for word in words] == [1] * len(words), told
    unfounded = next(f for f in told if "no answer behind" in f.what)
    before = ctx.store.pull_cursor("c")
    assert before is not None
    assert unfounded.repair()
    assert ctx.store.pull_cursor("c") is None


def test_votes_scores_and_training_labels_that_do_not_fit_are_found(campaign, ctx):
    (annotator,) = ctx.store.annotators("c")
    variant = ctx.store.variants("c", annotator)[0].hash
    row = ctx.store.keys("c", "pool")[0].row
    with ctx.store.transaction() as session:
        ctx.store.add_votes(
            session,
            "c",
            annotator,
            variant,
            rows=np.array([row, 9999]),
            probs=np.array([[1.0, 0.0], [-1.0, np.nan]]),
            off_label_mass=np.zeros(2),
            tokens=0,
            usd=0.0,
            seconds=0.0,
        )
    edit(
        campaign,
        ("delete from score_block where round_id = 1",),
        ("delete from training_block",),
        ("update score_block set rows = ? where round_id = 2", (np.full(48, 77, "<i4").tobytes(),)),
    )
    told = [f.what for f in findings(ctx, offline=True)]
    words = (
        "1 votes of the LLM are of texts that the store does not know",
        "1 votes of the LLM are no probabilities",
        "1 votes of the LLM were stored twice",
        "Round 1 is past stage score",
        "Round 1 is past stage repair",
        "48 scores and training labels of round 2",
    )
    assert [sum(word in what for what in told) for word in words] == [1] * len(words), told
    assert len(told) == len(words), told


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("vote_block", "probs"),
        ("vote_block", "rows"),
        ("score_block", "suspicion"),
        ("score_block", '"values"'),
        ("training_block", "weight"),
        ("training_block", "probs"),
    ],
)
@pytest.mark.parametrize("left", [0, 7, 8])
def test_a_damaged_block_is_one_sentence(campaign, ctx, table, column, left):
    cut = f"update {table} set {column} = substr({column}, 1, {left})"  # noqa: S608
    edit(campaign, (cut,))
    (first, *_) = ctx.store.rounds("c")
    read = {
        "vote_block": lambda: list(ctx.store.votes("c", ctx.annotator.revision)),
        "score_block": lambda: ctx.store.all_scores(first.id),
        "training_block": lambda: ctx.store.all_training_labels(first.id),
    }
    with pytest.raises(StoreError, match=r"damaged.*restore"):
        read[table]()
    if table == "vote_block":
        assert [f for f in findings(ctx, offline=True) if "damaged" in f.what]


@pytest.mark.parametrize(
    ("change", "reads"),
    [
        (("update score_block set rows = zeroblob(length(rows))",), "suspicion"),
        (("update score_block set llm = ?", (np.full(48, 9, "<i4").tobytes(),)), "scores"),
        (("update score_block set llm = 'no bytes'",), "scores"),
        (("update training_block set rows = zeroblob(length(rows))",), "labels"),
        (("update training_block set sources = '[]'",), "labels"),
    ],
)
def test_blocks_that_do_not_fit_the_texts_are_one_sentence(campaign, ctx, change, reads):
    first = ctx.store.rounds("c")[0]
    edit(campaign, ("update item set row = row + 1000",), change)
    read = {
        "suspicion": lambda: suspicion_of(ctx, first, ctx.keys("pool")),
        "scores": lambda: ctx.store.scores(first.id),
        "labels": lambda: loop_labels(ctx, first),
    }
    with pytest.raises(StoreError, match=r"damaged.*restore"):
        read[reads]()
