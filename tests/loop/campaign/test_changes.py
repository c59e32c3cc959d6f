"""Every key of the campaign file, edited between two rounds: taken up and said, or refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import LABELS, copied, make, texts
from fakes import CentroidStudent

from loop.campaign.changes import POLICIES, campaign_keys, changes, check_changes, policy_table
from loop.campaign.config import Config
from loop.campaign.extensions import BUILT_IN
from loop.campaign.store import Store
from loop.campaign.tables import Item
from loop.errors import ConfigError, DataError, LoopError, StoreError
from loop.next_round import open_campaign, open_round
from loop.report.collect import campaign_view
from loop.round import RUN, run_round, run_stage

BASE = {
    "campaign": {"name": "c", "task": "t"},
    "labels": [{"name": name} for name in LABELS],
    "texts": {"source": "x.csv", "gold_column": "g"},
    "annotator": {"kind": "recorded", "columns": ["llm", "llm_2"]},
    "budget": {"labels": 30},
    "rounds": {"batch_size": 15, "rounds": 2, "audit_frac": 0.2},
    "student": {"seeds": 3, "references": ["llm_only"]},
    "people": {"overlap": 1},
}

EDITS = {
    "campaign.name": "other",
    "campaign.task": "another task",
    "campaign.ordinal": True,
    "labels.name": [{"name": "bad"}, {"name": "fine"}],
    "labels.description": [{"name": n, "description": "d"} for n in LABELS],
    "texts.source": "y.csv",
    "texts.format": "csv",
    "texts.text_column": "body",
    "texts.gold_column": "h",
    "texts.split_column": "s",
    "texts.hf_split": "test",
    "texts.test_frac": 0.4,
    "texts.dev_items": 10,
    "annotator.kind": {"kind": "local_lm"},
    "annotator.model": "m",
    "annotator.columns": ["llm"],
    "annotator.prob_columns": ["p", "q"],
    "annotator.confidence_scale": {"confidence_scale": "percent", "prob_columns": ["p", "q"]},
    "annotator.batch_size": 4,
    "annotator.max_text_tokens": 100,
    "annotator.usd_per_million_tokens": 1.0,
    "annotator.usd_per_million_cached_tokens": 1.0,
    "annotator.usd_per_million_output_tokens": 1.0,
    "annotator.base_url": "http://127.0.0.1:1/v1",
    "annotator.api_key_env": "KEY",
    "annotator.concurrency": 2,
    "annotator.chat": True,
    "annotator.votes_when_no_logprobs": 3,
    "annotator.gpu_memory_utilization": 0.5,
    "annotator.options": {"x": 1},
    "prompt.shots": 1,
    "prompt.variants": 2,
    "prompt.calls_per_item": 1.5,
    "prompt.label_form": "ids",
    "prompt.calibrate": "none",
    "prompt.class_prior": {"bad": 0.3, "good": 0.7},
    "prompt.demonstrations": [{"text": "so sad", "label": "bad"}],
    "prompt.refresh": "round",
    "prompt.instruction": "{task}! {labels}",
    "prompt.item": "Post: {text}\nLabel:",
    "strategy.signals": ["margin"],
    "strategy.repair": "keep",
    "strategy.repair_students": "fine-tuned",
    "budget.labels": 40,
    "budget.usd": 9.0,
    "budget.usd_per_label": 0.01,
    "rounds.rounds": 3,
    "rounds.batch_size": 10,
    "rounds.audit_frac": 0.4,
    "rounds.audit": "uniform",
    "rounds.stop_below": 0.001,
    "rounds.stop": ["accuracy=0.999"],
    "rounds.seed": 1,
    "student.encoder": "e",
    "student.epochs": 5,
    "student.batch_size": 8,
    "student.lr": 1e-4,
    "student.weight_decay": 0.1,
    "student.warmup_frac": 0.1,
    "student.max_tokens": 64,
    "student.long_texts": "windows",
    "student.class_weights": "balanced",
    "student.checkpoint": "best",
    "student.seeds": 5,
    "student.if_nothing_learned": "go on",
    "student.keep_seeds": True,
    "student.warm_start": {"warm_start": True, "keep_seeds": True},
    "student.device": "cpu",
    "student.precision": "fp32",
    "student.references": [],
    "student.random_rounds": "last",
    "people.platform": "desk",
    "people.options": {"x": 1},
    "people.assist": "why",
    "people.assist_share": {"assist": "why", "assist_share": 0.5},
    "people.note": False,
    "people.overlap": 2,
    "people.rule": "ask-one-more",
    "people.early_stop": True,
    "people.max_overlap": {"rule": "ask-one-more", "max_overlap": 4},
    "people.adjudicator": "me@here.org",
    "people.check_frac": 0.1,
    "label_studio.url": "http://127.0.0.1:2",
    "label_studio.token_env": "TOKEN",
    "raters.kind": "gold",
    "raters.ratings_column": "r",
    "store.url": "sqlite:///other.db",
    "store.folder": "elsewhere",
    "tracking.to": ["mlflow"],
    "tracking.project": "other",
    "tracking.uri": "http://127.0.0.1:5000",
    "executor.kind": "ray",
    "executor.address": "local",
    "executor.workers": 2,
    "executor.gpus_per_worker": 0.5,
}


LONG = pytest.mark.long  # a case between two that every run tries


def build(folder, rows=None, **sections):
    raters = sections.pop("raters", None)
    ctx = make(folder, rows=rows, **(BASE | sections))
    if raters:
        ctx.config = Config.model_validate(ctx.config.model_dump() | {"raters": raters})
        ctx.config._folder = folder
    ctx.said = []
    ctx.say = ctx.said.append
    return ctx


@pytest.fixture(scope="module")
def after_one_round(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ctx = build(folder)
    assert run_round(ctx).stage == "done"
    ctx.store.close()
    return folder


@pytest.fixture
def begun(after_one_round, tmp_path):
    """A copy of a campaign that has finished its first round."""
    return copied(after_one_round, tmp_path / "campaign")


@pytest.fixture(scope="module")
def scored(after_one_round, tmp_path_factory):
    folder = copied(after_one_round, tmp_path_factory.mktemp("scored") / "campaign")
    ctx = build(folder)
    run_stage(ctx, "annotate")
    run_stage(ctx, "score")
    ctx.store.close()
    return folder


@pytest.fixture
def in_round_two(scored, tmp_path):
    """A copy of a campaign whose second round is scored."""
    return copied(scored, tmp_path / "campaign")


@pytest.fixture(autouse=True)
def _another_platform(monkeypatch):
    monkeypatch.setitem(BUILT_IN["reviewers"], "desk", "nowhere:build")


def edited(key, value=None):
    section, name = key.split(".")
    value = EDITS[key] if value is None else value
    if section == "labels":
        return {"labels": value}
    change = value if isinstance(value, dict) and name in value else {name: value}
    return {section: BASE.get(section, {}) | change}


def spent(store):
    return store.spent("c").votes, len(store.reviews("c")), len(store.rounds("c"))


def test_every_key_has_a_policy_and_an_edit():
    keys = list(campaign_keys())
    assert keys == list(POLICIES), (
        "state in loop.campaign.changes.POLICIES what an edit of the key does"
    )
    assert keys == list(EDITS)


def test_the_table_in_the_docs_is_up_to_date():
    page = (Path(__file__).parents[3] / "docs" / "campaign_file.md").read_text(encoding="utf-8")
    assert policy_table() in page, (
        "put loop.campaign.changes.policy_table() into docs/campaign_file.md"
    )


@pytest.mark.parametrize("key", EDITS)
def test_an_edit_between_rounds_is_said_or_refused(begun, key):
    ctx = build(begun, **edited(key))
    if key == "store.folder":  # which the copy's store does not name yet
        open_campaign(build(begun))
    before = spent(Store(f"sqlite:///{begun / 'c.db'}"))
    refused = POLICIES[key].when == "never" or key == "labels.name"
    if key in ("campaign.name", "store.url"):
        ctx.store.close()
        ctx.store = Store(f"sqlite:///{begun / 'other.db'}")
    if refused:
        with pytest.raises(LoopError, match=r"Nothing was spent|restore them"):
            run_round(ctx)
        assert spent(Store(f"sqlite:///{begun / 'c.db'}")) == before
        assert ctx.store.item_count(ctx.name) in (0, 120)
        return
    if key == "texts.split_column":  # the fake rows name no split
        with pytest.raises(DataError, match="has split ''"):
            run_round(ctx)
        assert spent(ctx.store) == before
        return
    open_campaign(ctx)
    assert ctx.said == []
    round_ = open_round(ctx)
    assert round_.number == 2
    assert any(f"{key} = " in line and "(was " in line for line in ctx.said)
    apart = [line for line in ctx.said if "not comparable" in line]
    assert len(apart) == (POLICIES[key].compared == "no")
    if POLICIES[key].compared == "common seeds":
        assert any("seeds that both have" in line for line in ctx.said)
    section, name = key.split(".")
    if section != "labels":
        assert round_.config[section][name] == ctx.config.model_dump(mode="json")[section][name]
    open_campaign(ctx)
    assert len([line for line in ctx.said if "has changed since" in line]) == 1
    ctx.store.close()


@pytest.mark.parametrize(
    "key", [key for key, policy in POLICIES.items() if policy.when == "between rounds"]
)
def test_what_a_round_has_used_is_refused_until_it_is_done(in_round_two, key):
    changed = build(in_round_two, **edited(key))
    before = spent(changed.store)
    with pytest.raises(ConfigError, match=r"round 2 has used it .*select.* Restore it"):
        run_round(changed)
    assert spent(changed.store) == before
    changed.store.close()
    if key == "prompt.calibrate":  # one stands for all: a restored file continues
        assert run_round(build(in_round_two)).stage == "done"


def test_an_edit_in_the_middle_of_a_round_is_said_once_and_kept_with_the_round(begun):
    ctx = build(begun)
    run_stage(ctx, "annotate")
    ctx.store.close()
    ctx = build(begun, student=BASE["student"] | {"lr": 1e-4})
    open_campaign(ctx)
    assert "since round 2 was opened: student.lr = 0.0001 (was unset)" in ctx.said[0]
    ctx.said.clear()
    round_ = run_round(ctx)
    assert ctx.said == []
    assert ctx.store.rounds("c")[-1].config["student"]["lr"] == 1e-4
    assert ctx.store.rounds("c")[-1].metrics.not_comparable == ("student.lr",)
    assert round_.stage == "done"
    ctx.store.close()


AFTER = {  # the first stage of a round that does not read the keys any more
    "select": ["strategy.signals"],
    "push": ["rounds.audit_frac", "rounds.batch_size"],
    "train": ["strategy.repair", "strategy.repair_students"],
}


@pytest.mark.parametrize("stage", AFTER)
def test_an_edit_after_the_stage_that_used_the_key_is_the_next_rounds(begun, monkeypatch, stage):
    def fails(ctx, round_):
        raise LoopError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setitem(RUN, stage, fails)
        ctx = build(begun)
        with pytest.raises(LoopError, match="the power is gone"):
            run_round(ctx)
        opened = ctx.store.last_round("c")
        assert (opened.number, opened.stage) == (2, stage)
        ctx.store.close()
    sections = {"rounds": BASE["rounds"] | {"rounds": 3}, "budget": {"labels": 60}}
    for key in AFTER[stage]:
        section, name = key.split(".")
        sections[section] = sections.get(section, {}) | {name: EDITS[key]}
    ctx = build(begun, **sections)
    assert run_round(ctx).stage == "done"
    told = "\n".join(ctx.said)
    for key in AFTER[stage]:
        section, name = key.split(".")
        assert ctx.store.rounds("c")[1].config[section][name] == opened.config[section][name]
        assert f"{key} = " not in told
    assert ctx.store.rounds("c")[1].metrics.predictor is not None  # as the round was scored
    new = open_round(ctx)
    told = "\n".join(ctx.said)
    for key in AFTER[stage]:
        section, name = key.split(".")
        assert new.config[section][name] == EDITS[key]
        assert f"{key} = " in told
    ctx.store.close()


def test_rounds_that_are_not_comparable_are_marked_and_not_compared(begun):
    ctx = build(begun, student=BASE["student"] | {"epochs": 5})
    run_round(ctx)
    first, second = ctx.store.rounds("c")
    assert (first.metrics.not_comparable, second.metrics.not_comparable) == (
        (),
        ("student.epochs",),
    )
    assert "previous" not in second.metrics.compared
    view = campaign_view(ctx.config, ctx.store)
    assert [r.name for r in view.ordered if r.arm == "loop"] == ["Round 1", "Round 2†"]
    assert any("student.epochs" in note and "not comparable" in note for note in view.notes)
    ctx.store.close()


def test_an_unchanged_file_says_nothing_and_rounds_are_compared(begun):
    ctx = build(begun)
    run_round(ctx)
    assert ctx.said == []
    assert "previous" in ctx.store.rounds("c")[-1].metrics.compared
    ctx.store.close()


def test_a_file_from_before_a_key_existed_has_its_default():
    now = Config.model_validate(BASE).model_dump(mode="json")
    old = {**now, "student": {k: v for k, v in now["student"].items() if k != "warm_start"}}
    assert changes(old, now) == {}
    assert changes(old, now | {"student": now["student"] | {"warm_start": True}}) == {
        "student.warm_start": (False, True)
    }


# seeds


@pytest.mark.parametrize(
    ("change", "seeds", "common"),
    [
        ({"student": {"seeds": 5, "references": ["llm_only"]}}, [0, 1, 2, 3, 4], 3),
        ({"student": {"seeds": 2, "references": ["llm_only"]}}, [0, 1], 2),
        ({"rounds": BASE["rounds"] | {"seed": 2}}, [2, 3, 4], 1),
        *(
            pytest.param({"rounds": BASE["rounds"] | {"seed": seed}}, seeds, common, marks=LONG)
            for seed, seeds, common in ((1, [1, 2, 3], 2), (9, [9, 10, 11], 0))
        ),
    ],
)
def test_other_seeds_are_said_before_training_and_the_campaign_goes_on(
    begun, change, seeds, common
):
    ctx = build(begun, **change)
    fit = CentroidStudent.fit

    class Watched(CentroidStudent):
        def fit(self, *args, **more):
            assert any("The students' seeds are" in line for line in ctx.said)
            fit(self, *args, **more)

    ctx.parts = replace(ctx.parts, student=Watched)
    assert run_round(ctx).stage == "done"
    line = next(line for line in ctx.said if "The students' seeds are" in line)
    metrics = ctx.store.rounds("c")[-1].metrics
    assert metrics.arms["loop"].seeds == metrics.arms["llm_only"].seeds == len(seeds)
    if common >= 2:
        assert f"compared over the {common} seeds" in line
        assert metrics.compared["previous"]["p_uc"].known
    else:
        assert "no paired comparison" in line
        assert "previous" not in metrics.compared
    assert metrics.compared["llm_only"]["p_uc"].known
    ctx.store.close()


# beginning again


def test_a_new_campaign_in_a_folder_of_its_own_may_begin(begun):
    ctx = build(begun, campaign={"name": "d", "task": "t"}, store={"folder": "runs-d"})
    open_campaign(ctx)
    assert ctx.store.item_count("d") == 120
    ctx.store.close()


def test_a_store_that_was_copied_goes_on(begun):
    shutil.copy(begun / "c.db", begun / "copy.db")
    ctx = build(begun)
    ctx.store = Store(f"sqlite:///{begun / 'copy.db'}")
    votes = ctx.store.spent("c").votes
    assert run_round(ctx).stage == "done"
    assert ctx.store.spent("c").votes == votes
    ctx.store.close()


def test_two_campaigns_do_not_share_a_folder(begun):
    other = build(begun, campaign={"name": "d", "task": "t"}, store={"folder": "runs-d"})
    open_campaign(other)
    other.store.close()
    with pytest.raises(StoreError, match="overwrite each other's models"):
        open_campaign(build(begun, campaign={"name": "d", "task": "t"}))


def test_a_campaign_whose_folder_was_deleted_goes_on_and_says_so(begun):
    shutil.rmtree(begun / "runs")
    ctx = build(begun)
    votes = ctx.store.spent("c").votes
    others = [row(f"another text {i}") for i in range(200)]
    with pytest.raises(DataError, match=r"another set of texts.*campaign\.name.*Nothing was spent"):
        run_round(build(begun, rows=others))
    ctx.parts = replace(ctx.parts, student=lambda: pytest.fail("paid for"))
    open_campaign(ctx)
    (line,) = ctx.said
    assert "has begun (round 1, done) and continues" in line
    assert "change campaign.name" in line
    ctx.store.close()
    ctx = build(begun)
    assert run_round(ctx).stage == "done"
    assert ctx.said == []
    assert ctx.store.spent("c").votes == votes
    ctx.store.close()


def test_another_set_of_texts_in_mid_round_is_refused_before_people_are_asked(in_round_two):
    others = [row(f"another text {i}") for i in range(200)]
    other = {"source": "y.csv", "gold_column": "g"}
    before = spent(build(in_round_two).store)
    with pytest.raises(DataError, match=r"another set of texts.*Nothing was spent"):
        run_round(build(in_round_two, rows=others, texts=other))
    assert spent(build(in_round_two).store) == before
    assert run_round(build(in_round_two, texts=other)).stage == "done"  # the same under a new name


@pytest.mark.parametrize(
    ("files", "stores"),
    [
        ("copied", "one store"),
        ("others", "a copy of it"),
        pytest.param("copied", "a copy of it", marks=LONG),
        pytest.param("others", "one store", marks=LONG),
    ],
)
def test_a_second_folder_of_a_campaign_is_refused_until_the_first_is_gone(
    begun, tmp_path, stores, files
):
    first = build(begun)
    open_campaign(first)
    first.store.close()
    second = shutil.copytree(begun, tmp_path / "second")
    if files == "others":  # such as those of a restored backup, or of another person's campaign
        shutil.rmtree(second / "runs")
    url = f"sqlite:///{(begun if stores == 'one store' else second) / 'c.db'}"
    before = spent(Store(url))
    with pytest.raises(StoreError, match=r"at work in .*campaign/runs.*Nothing was spent") as told:
        run_round(build(second, url=url))
    assert "\n" not in str(told.value)
    assert spent(Store(url)) == before
    link = tmp_path / "link"
    link.symlink_to(begun)
    open_campaign(build(link))  # the same folder by another way
    (begun / "runs").rename(begun / "away")
    again = build(second, url=url)
    assert run_round(again).stage == "done"
    assert [line for line in again.said if "continues in" in line] == again.said
    assert len(again.said) == (files == "others")
    again.store.close()


def test_a_store_that_is_gone_is_not_begun_anew(begun, tmp_path):
    from loop.cli.build import open_store

    ctx = build(begun)
    open_campaign(ctx)
    ctx.store.close()
    (begun / "c.db").rename(begun / "kept")
    with (
        pytest.raises(StoreError, match=r"does not hold any more.*goldloop restore.*was spent"),
        open_store(ctx.config),
    ):
        pass
    assert not (begun / "c.db").exists()  # where a backup is restored
    empty = build(begun)
    with pytest.raises(StoreError, match=r"does not hold any more"):
        run_round(empty)
    empty.store.close()
    (begun / "kept").replace(begun / "c.db")
    assert run_round(build(begun)).stage == "done"
    other = build(begun, url=f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(StoreError, match=r"belongs to campaign 'c'.*has not begun.*was spent"):
        run_round(other)
    (tmp_path / "elsewhere").mkdir()
    open_campaign(build(tmp_path / "elsewhere", url=f"sqlite:///{tmp_path / 'other.db'}"))
    with pytest.raises(StoreError, match=r"Two campaigns in one folder"):
        run_round(other)


@pytest.mark.parametrize("files", ["newer", "gone"])
def test_an_older_backup_comes_to_the_same(in_round_two, tmp_path, files):
    def outcome(ctx):
        assert run_round(ctx).stage == "done"
        gold = {i: g.label for i, g in ctx.store.gold("c").items()}
        runs = sorted((r.round_id, r.arm, r.seed, r.label_set) for r in ctx.store.runs("c"))
        ctx.store.close()
        return gold, runs, ctx.reviewer._load()["tasks"].keys()

    backup = shutil.copy(in_round_two / "c.db", tmp_path)
    first = outcome(build(in_round_two))
    shutil.copy(backup, in_round_two)  # Label Studio has tasks and answers that it does not know
    if files == "gone":
        shutil.rmtree(in_round_two / "runs")
    assert outcome(build(in_round_two)) == first


# the source


def row(text, gold="good"):
    meta = {"llm": gold or "good", "llm_2": "good"}
    return SimpleNamespace(text=text, gold=gold, split=None, meta=meta)


def test_new_texts_are_taken_in_and_old_ones_keep_split_and_answers(begun):
    old = {i.id: (i.split, i.row) for i in build(begun).store.items("c")}
    ctx = build(begun, rows=[*(row(f"new happy {i}") for i in range(40)), *texts()])
    asked = []
    annotate = ctx.annotator.annotate
    ctx.annotator.annotate = lambda v, items: (
        asked.extend(i.id for i in items) or annotate(v, items)
    )
    assert run_round(ctx).stage == "done"
    items = ctx.store.items("c")
    assert {i.id: (i.split, i.row) for i in items[:120]} == old
    new = items[120:]
    splits = [i.split for i in new]
    assert 2 <= splits.count("test") <= 16
    assert splits.count("test") + splits.count("pool") == 40
    assert set(asked) == {i.id for i in new if i.split == "pool"}
    assert f"Imported 40 new texts of x.csv ({splits.count('pool')} to label" in ctx.said[0]
    metrics = ctx.store.rounds("c")[-1].metrics
    assert metrics.compared["previous"]["accuracy"].known
    assert metrics.tests == sum(i.split == "test" for i in items)
    ctx.store.close()


def test_the_split_of_a_new_text_depends_on_it_alone(begun, tmp_path):
    def splits(folder, rows):
        ctx = build(folder, rows=[*texts(), *rows])
        open_campaign(ctx)
        open_round(ctx)
        ctx.store.close()
        return {i.text: i.split for i in ctx.store.items("c") if i.text.startswith("new")}

    new = [row(f"new {i}") for i in range(40)]
    other = copied(begun, tmp_path / "other")
    all_of_them = splits(begun, new)
    assert len(set(all_of_them.values())) == 2
    some = splits(other, new[::-2])
    assert some == {text: all_of_them[text] for text in some}


def test_texts_that_are_gone_stay_and_are_said(begun):
    ctx = build(begun, rows=texts()[:100])
    assert run_round(ctx).stage == "done"
    assert ctx.said == ["No longer in x.csv: 20 texts. The campaign keeps what it has."]
    assert ctx.store.item_count("c") == 120
    ctx.store.close()


@pytest.mark.parametrize(
    ("change", "split", "columns", "told"),
    [
        ({"llm": "good"}, "pool", ["llm", "llm_2"], 1),
        ({"llm": "good"}, "test", ["llm", "llm_2"], 0),  # the LLM was never asked about it
        ({"note": "x"}, "pool", ["llm", "llm_2"], 0),
        ({"new": "good"}, "pool", ["new", "llm_2"], 0),  # every label is read again
    ],
)
def test_recorded_labels_that_change_in_the_source_are_said_to_stay(
    begun, change, split, columns, told
):
    rows = texts()
    ctx = build(begun, rows=rows, annotator={"kind": "recorded", "columns": columns})
    of_split = {i.text for i in ctx.store.items("c") if i.split == split}
    for row in rows:
        row.meta["new"] = row.meta["llm"]
    first = next(row for row in rows if row.text in of_split and row.meta["llm"] == "bad")
    first.meta |= change
    open_round(ctx)
    stay = "Labels of the LLM that have changed there too: 1 text. The labels that were read stay."
    assert [line.startswith(stay) for line in ctx.said].count(True) == told
    ctx.store.close()


def test_recorded_labels_that_could_not_be_read_are_read_once_they_are_corrected(tmp_path):
    rows, wrong = texts(), texts()
    for row in wrong[::2]:
        row.meta = row.meta | {"llm": "goood"}
    ctx = build(tmp_path, rows=wrong)
    assert run_round(ctx).stage == "done"
    ctx.store.close()
    ctx = build(tmp_path, rows=rows)
    open_round(ctx)
    pool = sum(i.split == "pool" for i in ctx.store.items("c"))
    assert not any("labels that were read stay" in line for line in ctx.said)
    run_stage(ctx, "annotate")
    voted = ctx.store.voted("c", ctx.annotator.revision)
    assert [int(there.sum()) for there in voted.values()] == [pool, pool]
    ctx.store.close()


def test_known_labels_and_other_columns_follow_the_source(begun):
    rows = texts()
    rows[0].gold = "good"
    rows[1].meta["more"] = 1
    ctx = build(begun, rows=rows)
    open_round(ctx)
    assert len(ctx.said) == 2
    assert ctx.said[0] == "Known labels that have changed in x.csv and are taken up: 1 text."
    assert "columns that have changed in x.csv and are used from now on: 1 text." in ctx.said[1]
    first, second = ctx.store.items("c")[:2]
    assert (first.known_label, second.meta["more"]) == ("good", 1)
    ctx.store.close()


def test_another_set_of_texts_is_refused_before_it_costs(begun):
    ctx = build(begun, rows=[row(f"other {i}") for i in range(200)])
    before = spent(ctx.store)
    with pytest.raises(DataError, match=r"200 texts that campaign 'c' .* not know.*another set"):
        run_round(ctx)
    assert (spent(ctx.store), ctx.store.item_count("c")) == (before, 120)
    ctx.store.close()


def test_a_text_is_not_moved_to_another_split(begun):
    stored = {i.text: i.split for i in build(begun).store.items("c")}
    source = {"source": "x.csv", "gold_column": "g", "split_column": "s"}
    rows = texts()
    for r in rows:
        r.split = "train" if stored[r.text] == "pool" else stored[r.text]
    rows.append(SimpleNamespace(**vars(rows[0]) | {"text": "new one", "split": "test"}))
    ctx = build(begun, rows=rows, texts=source)
    open_round(ctx)
    assert ctx.store.items("c")[-1].split == "test"
    ctx.store.close()


def test_moving_a_text_to_another_split_is_refused(begun):
    rows = texts()
    for r in rows:
        r.split = "pool"
    source = {"source": "x.csv", "gold_column": "g", "split_column": "s"}
    ctx = build(begun, rows=rows, texts=source)
    with pytest.raises(DataError, match=r"24 texts of the campaign into another split.* test into"):
        run_round(ctx)
    ctx.store.close()


@pytest.mark.parametrize("changed", [False, True])
def test_a_source_that_cannot_be_read_stops_only_where_it_is_new(begun, changed):
    source = {"source": "y.csv" if changed else "x.csv", "gold_column": "g"}
    ctx = build(begun, texts=source)

    def broken():
        raise DataError("no such file")

    ctx.parts = replace(ctx.parts, texts=broken)
    if changed:
        with pytest.raises(DataError):
            open_round(ctx)
    else:
        assert open_round(ctx).number == 2
        assert "cannot be read now" in ctx.said[0]
    ctx.store.close()


def test_new_texts_without_gold_are_refused_where_every_text_needs_it(begun):
    student = BASE["student"] | {"references": ["llm_only", "all_gold"]}
    ctx = build(begun, rows=[*texts(), row("new without gold", None)], student=student)
    with pytest.raises(ConfigError, match="1 have none"):
        open_round(ctx)
    assert ctx.store.item_count("c") == 120
    ctx.store.close()


# caches and models that are damaged


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def _zero_block(path):
    content = bytearray(path.read_bytes())
    content[4096:6000] = bytes(6000 - 4096)
    path.write_bytes(bytes(content))


def _folder(path):
    path.unlink()
    path.mkdir()


def _arrays(**changed):
    def write(path):
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays}
        np.savez(path, **{name: change(found[name]) for name, change in changed.items()})

    return write


DAMAGES = {
    "cut": _cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": _zero,
    "a block of zeros": _zero_block,
    "noise": lambda path: path.write_bytes(b"no array" * 99),
    "a folder": _folder,
    "other type": _arrays(ids=lambda a: a, embeddings=lambda a: a.astype("f8")),
    "one axis": _arrays(ids=lambda a: a, embeddings=lambda a: a[:, 0]),
    "fewer rows": _arrays(ids=lambda a: a, embeddings=lambda a: a[:-1]),
    "not finite": _arrays(ids=lambda a: a, embeddings=lambda a: a * np.nan),
    "no ids": _arrays(embeddings=lambda a: a),
    "objects": lambda path: np.savez(path, ids=np.array([None]), embeddings=np.array([None])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_embeddings_are_computed_anew(begun, damage):
    from loop.student.kept_vectors import item_embeddings

    ctx = build(begun)
    items = ctx.store.items("c")
    path, *others = (begun / "runs" / "cache").glob("embeddings-*.npz")
    assert others == []
    right = np.array(item_embeddings(ctx, items))  # a copy, which damage to the file does not reach
    assert ctx.said == []
    DAMAGES[damage](path)
    assert np.array_equal(item_embeddings(ctx, items), right)
    assert "cannot be used" in ctx.said[0]
    assert "computed again" in ctx.said[0]
    ctx.said.clear()
    assert np.array_equal(item_embeddings(ctx, items), right)
    # a folder is not ours to remove: the campaign continues without keeping anything
    assert [("cannot be used" in line, "cannot be kept" in line) for line in ctx.said] == (
        [(True, False), (False, True)] if damage == "a folder" else []
    )
    ctx.store.close()


def test_only_new_texts_are_embedded(begun):
    from loop.student.kept_vectors import item_embeddings

    ctx = build(begun)
    items = ctx.store.items("c")
    item_embeddings(ctx, items)
    embedded = []

    class Counting(CentroidStudent):
        def embed(self, texts, *more):
            embedded.extend(texts)
            return super().embed(texts, *more)

    ctx.student = Counting()
    with ctx.store.transaction() as session:
        new = {"id": "x", "campaign": "c", "text": "new text", "split": "pool", "row": 10**6}
        ctx.store.insert(session, Item, [new | {"meta": {}}])
    more = ctx.store.items("c")
    found = item_embeddings(ctx, more)
    assert embedded == ["new text"]
    assert np.array_equal(found, CentroidStudent().embed([i.text for i in more]))
    ctx.store.close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"a": 3}',
        '{"a": [0]}',
        '{"a": [0, 7]}',
        '{"a": ["b", 1]}',
        '{"a": [0.5, 1]}',
    ],
)
def test_damaged_predictions_of_side_runs_are_made_anew(tmp_path, content):
    from loop.studies.side_runs import _Kept

    path = tmp_path / "kept.json"
    path.write_text(content)
    said = []
    kept = _Kept(path, said.append, n=2, k=2)
    assert kept.predictions == {}
    assert "are damaged" in said[0]
    kept.add("a", np.array([0, 1]))
    assert _Kept(path, said.append, n=2, k=2).predictions == {"a": [0, 1]}
    assert len(said) == 1


def test_a_warm_start_without_a_seeds_model_starts_it_fresh(tmp_path):
    student = {"seeds": 3, "references": [], "keep_seeds": True, "warm_start": True}
    ctx = build(tmp_path, student=student)
    run_round(ctx)
    shutil.rmtree(tmp_path / "runs" / "models" / "round-1-seed-1")
    starts = []

    class Watched(CentroidStudent):
        def fit(self, *args, start=None, **more):
            starts.append(sorted(start))
            super().fit(*args, start=start, **more)

    ctx.parts, ctx.said[:] = replace(ctx.parts, student=Watched), []
    del ctx.student
    assert run_round(ctx).stage == "done"
    assert starts == [[0, 2]]
    (line,) = ctx.said
    assert "for seed 1, so student.warm_start has no model to continue from" in line
    ctx.store.close()


def test_a_round_of_a_version_without_people_is_compared_and_the_note_is_said_once(tmp_path):
    ctx = build(tmp_path)
    open_campaign(ctx)
    open_round(ctx)
    with ctx.store.transaction() as session:  # the file as an earlier version kept it
        last = ctx.store.last_round("c")
        old = {key: value for key, value in last.config.items() if key != "people"}
        people = dict(last.config["people"])
        del people["platform"], people["options"]
        old["label_studio"] = old["label_studio"] | people
        ctx.store.set_round_config(session, last, old)
    assert changes(old, ctx.config.model_dump(mode="json")) == {}
    again = build(tmp_path, people={"overlap": 2})
    again.config._old_keys = ("overlap",)
    for _ in range(2):
        check_changes(again)
    assert [line for line in again.said if "these keys are about people" in line] == again.said[:1]
    assert again.store.last_round("c").config["people"]["overlap"] == 2
    again.store.close()
    ctx.store.close()
