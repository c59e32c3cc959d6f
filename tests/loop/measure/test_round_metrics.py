"""What a round's metrics say beside the arms themselves, on a whole campaign of quick parts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import LABELS, make, texts

from loop.campaign.metrics import Metric, RoundMetrics, as_json
from loop.campaign.tables import Round, Run
from loop.errors import LoopError, StageError
from loop.measure import round_metrics
from loop.measure.held_out import Truth, evaluation_items, truth_of
from loop.measure.stability import paired_differences
from loop.next_round import open_campaign, why_finished
from loop.people.gold import people_alpha
from loop.report.collect import campaign_view
from loop.report.rounds_json import rounds_json
from loop.report.status import campaign_status, status_lines
from loop.report.wording import RANDOM_PARTS
from loop.round import repaired_labels, run_round, run_stage
from loop.serve.progress import campaign_progress
from loop.studies.plateau import measure_plateau
from loop.studies.side_runs import side_runs, write_result
from loop.studies.variance import measure_variance


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A campaign of two rounds."""
    ctx = make(tmp_path_factory.mktemp("campaign"))
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)
    return ctx


def predictions(ctx, number):
    rounds = {r.number: r.id for r in ctx.store.rounds("c")}
    runs = [r for r in ctx.store.runs("c") if r.arm == "loop" and r.round_id == rounds[number]]
    return np.array([r.predictions for r in sorted(runs, key=lambda r: r.seed)])


def test_a_round_is_compared_with_the_one_before(finished):
    first, second = finished.store.rounds("c")
    assert "previous" not in first.metrics.compared
    found = second.metrics.compared["previous"]
    y = truth_of(finished, evaluation_items(finished)).y
    d = paired_differences(
        predictions(finished, 1),
        predictions(finished, 2),
        y,
        ["accuracy"],
        k=2,
        rng=np.random.default_rng(0),
    )["accuracy"]
    assert found["accuracy"].value == pytest.approx(d.value)
    view = campaign_view(finished.config, finished.store)
    assert any(
        line.startswith("Round 2 compared with the round before, on the same test texts: alpha_K")
        and line.endswith("more stable.")
        for line in view.comparisons
    )


def test_the_llm_and_its_students_stand_side_by_side(finished):
    last = finished.store.rounds("c")[-1]
    llm = last.metrics.label_quality
    assert np.sum(llm.confusion) == pytest.approx(1)
    assert llm.n_gold == len(finished.store.gold("c"))
    for arm in ("loop", "llm_only"):
        matrix = np.array(last.metrics.confusion[arm])
        recall = matrix.diagonal() / matrix.sum(axis=1)
        told = [m.value for m in last.metrics.arms[arm].recall]
        np.testing.assert_allclose(recall, told)
    view = campaign_view(finished.config, finished.store)
    shown, status = rounds_json(view), campaign_status(finished.config, finished.store)
    assert view.llm == llm
    (newest,) = [r for r in shown["rows"] if (r["arm"], r["round"]) == ("loop", 2)]
    assert shown["llm"] == newest["label_quality"] == status["label_quality"] == as_json(llm)
    told = (*view.verdict.paragraphs, *view.notes, *status_lines(status))
    assert sum("LLM's labels are right" in line for line in told) == 2
    assert [row.label for row in view.rows[0].per_class] == list(LABELS)


def test_the_frozen_student_is_held_against_the_full_one(finished):
    found = finished.store.rounds("c")[-1].metrics.frozen
    assert found.same.low <= found.same.value <= found.same.high
    arms = finished.store.rounds("c")[-1].metrics.arms
    assert found.accuracy.full == pytest.approx(arms["loop"].accuracy.value)
    view = campaign_view(finished.config, finished.store)
    assert any(line.startswith("The frozen student gives") for line in view.notes)


class BrokenOffError(Exception):
    """Someone pulls the plug."""


def test_side_runs_go_on_where_they_broke_off(finished):
    runs = side_runs(finished, "frozen")
    fit, trained = runs.student.fit, []

    def watched(train, texts, labels, seeds, *, on_seed, **rest):
        def once(result):
            on_seed(result)
            trained.append(result.seed)
            if len(trained) == 4:
                raise BrokenOffError

        fit(train, texts, labels, seeds, on_seed=once, **rest)

    runs.student.fit = watched
    with pytest.raises(BrokenOffError):
        measure_variance(runs, 3, repaired_labels)
    first = json.dumps(measure_variance(runs, 3, repaired_labels).to_json())
    once = [*range(12), *3 * [0, 1]]  # then two of each base, of labels mended again
    assert sorted(trained) == sorted(once), "each run is trained once"
    assert json.dumps(measure_variance(runs, 3, repaired_labels).to_json()) == first
    assert len(trained) == len(once)
    assert not [r for r in finished.store.runs("c") if r.seed > 10], "the store holds no side run"


def test_labels_can_be_mended_again_from_the_same_gold(finished):
    for round_ in finished.store.rounds("c"):
        kept = finished.store.all_training_labels(round_.id)
        again = repaired_labels(finished, round_)  # gold of later rounds has come since
        np.testing.assert_array_equal(again.probs, kept.probs)
        np.testing.assert_array_equal(again.weight, kept.weight)
    other = repaired_labels(finished, Round(**round_.model_dump() | {"seed": 99}))
    assert (other.source == "gold").tolist() == (kept.source == "gold").tolist()
    assert np.abs(other.probs - kept.probs).max() > 0.01


def test_both_results_stand_in_the_report_and_its_json(finished):
    from loop.report.html import render
    from loop.report.rounds_json import rounds_json

    runs = side_runs(finished, "frozen")
    write_result(finished, "variance", measure_variance(runs, 3, repaired_labels).to_json())
    curves = measure_plateau(runs, sizes=3, seeds=2)
    write_result(finished, "plateau", curves.to_json())
    view = campaign_view(finished.config, finished.store)
    assert view.plateau.told == curves.told
    names = [c.name for c in view.plateau.curves]
    assert names == ["LLM labels", "corrected labels", "gold labels"]
    page = render(view)
    assert "Where the instability comes from" in page
    assert RANDOM_PARTS["mending"].replace("'", "&#39;") in page
    assert "Would more LLM labels help?" in page
    json.dumps(rounds_json(view), allow_nan=False)
    path = finished.config.out / "variance.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LoopError, match=r"variance.json cannot be read; delete it"):
        campaign_view(finished.config, finished.store)
    path.unlink()


def test_both_commands_say_their_sentence_and_leave_their_files(finished, monkeypatch, capsys):
    from contextlib import nullcontext

    from loop.cli import __main__ as cli
    from loop.cli import studies

    def goldloop(*args):
        monkeypatch.setattr("sys.argv", ["goldloop", *args])
        monkeypatch.setattr(studies, "at_work", lambda _file, _command: nullcontext(finished))
        try:
            cli.main()
        except SystemExit as exc:
            return exc.code or 0, capsys.readouterr()
        return 0, capsys.readouterr()

    code, shown = goldloop("variance", "--student", "frozen", "--bases", "3")
    assert code == 0
    told = json.loads((finished.config.out / "variance.json").read_text())["told"]
    assert shown.out.strip() == told
    code, shown = goldloop("plateau", "--sizes", "3", "--seeds", "2", "--json")
    assert code == 0
    assert json.loads(shown.out)["verdict"] in ("will not help", "will help", "cannot be told")
    assert (finished.config.out / "plateau.svg").read_text().startswith("<svg xmlns=")
    assert "Would more LLM labels help?" in (finished.config.out / "report.html").read_text()
    for wrong in (("--student", "tiny"), ("--metric", "auc"), ("--sizes", "2")):
        code, shown = goldloop("plateau", *wrong)
        assert code == 2
        assert shown.err
    for name in ("variance.json", "plateau.json", "plateau.svg"):
        (finished.config.out / name).unlink()


def test_there_must_be_a_measured_round(tmp_path):
    ctx = make(tmp_path)
    open_campaign(ctx)
    with pytest.raises(StageError, match="No round is measured yet"):
        side_runs(ctx, "frozen")


def test_where_the_audit_measures_stability_is_still_compared(tmp_path):
    rows = texts()
    truth = {row.text: row.gold for row in rows}
    for row in rows:
        row.gold = None
    ctx = make(tmp_path, rows=rows, raters=False, student={"seeds": 3, "references": ["llm_only"]})
    open_campaign(ctx)
    by_id = {i.id: truth[i.text] for i in ctx.store.items("c")}
    while why_finished(ctx) is None:
        run_round(ctx)
        for item_id in ctx.reviewer.open_items(1):
            ctx.reviewer.answer(item_id, "somebody", by_id[item_id])
        run_round(ctx)
    first, last = (r.metrics for r in ctx.store.rounds("c"))
    assert last.accuracy_from == "audit"
    assert last.evaluated > first.evaluated, "audit texts are added from round to round"
    assert set(last.compared["previous"]) == {"alpha_k", "p_uc"}
    tests = len(ctx.store.items("c", "test"))
    d = paired_differences(
        predictions(ctx, 1)[:, :tests],
        predictions(ctx, 2)[:, :tests],
        None,
        ["p_uc"],
        k=2,
        rng=np.random.default_rng(0),
    )["p_uc"]
    assert last.compared["previous"]["p_uc"].value == pytest.approx(d.value)


def test_people_of_an_ordinal_campaign_are_compared_by_how_far_they_lie_apart(tmp_path):
    labels = ("low", "mid", "high")
    rows = texts()
    for i, row in enumerate(rows):
        row.gold = row.meta["llm"] = row.meta["llm_2"] = labels[i % 3]
    found = {}
    for ordinal in (False, True):
        folder = tmp_path / str(ordinal)
        folder.mkdir()
        ctx = make(
            folder,
            rows=rows,
            raters=False,
            overlap=2,
            campaign={"name": "c", "task": "t", "ordinal": ordinal},
            labels=[{"name": name} for name in labels],
        )
        open_campaign(ctx)
        run_round(ctx)
        truth = {i.id: i.known_label for i in ctx.store.items("c")}
        for item_id in ctx.reviewer.open_items(2):
            ctx.reviewer.answer(item_id, "ann", truth[item_id])
            near = "mid" if truth[item_id] == "low" else truth[item_id]
            ctx.reviewer.answer(item_id, "bob", near)
        run_stage(ctx, "pull")
        answers = ctx.store.annotations("c")
        assert len(answers) == 30
        found[ordinal] = campaign_progress(ctx.config, ctx.store)["agreement"]
        assert found[ordinal] == people_alpha(answers, labels, ordinal=ordinal)
    assert 0 < found[False] < found[True] < 1


@pytest.mark.parametrize(("low", "high", "share"), [(0.06, 0.14, 0.5), (-0.02, 0.22, None)])
def test_a_gap_within_its_interval_is_no_gap(low, high, share):
    values = {"loop": 0.65, "llm_only": 0.6, "all_gold": 0.7}
    arms = {
        arm: SimpleNamespace(metric=lambda _key, value=value: Metric(value))
        for arm, value in values.items()
    }
    found = round_metrics._recovered(arms, {"accuracy": Metric(0.1, low, high)})["accuracy"]
    assert found.noise == pytest.approx((high - low) / 2)
    assert found.share == (share if share is None else pytest.approx(share))


def test_votes_of_students_are_weighted_like_accuracy():
    classes = np.array([[0, 0, 1, 1], [0, 0, 1, 0]])
    weight = np.array([1.0, 3.0, 1.0, 5.0])
    truth = Truth(np.array([0, 1, 1, 0]), np.zeros(4, bool), weight, "audit")
    found = round_metrics._votes(classes, truth, 2)
    assert found.accuracy == pytest.approx((1 + 1 + 5) / 10)
    assert found.bins == ((0.5, 1.0, 1), (1.0, pytest.approx(2 / 5), 3))
    assert found.ece == pytest.approx(0.5 * 0.5 + 0.5 * (1 - 2 / 5))


@pytest.mark.parametrize(("seeds", "shared"), [((0, 1, 2), (1, 2)), ((0, 1), None)])
def test_one_seed_in_common_is_no_comparison(seeds, shared, monkeypatch):
    before, now = (
        Round(id=r, campaign="c", number=r, stage="done", seed=0, config={}, versions={})
        for r in (1, 2)
    )
    before.metrics = RoundMetrics(evaluated=3, tests=3)
    runs = [
        Run(id=10 * r + seed, round_id=r, arm="loop", seed=seed, label_set=f"s{r}", predictions=p)
        for r, of_round in ((1, seeds), (2, (1, 2, 3)))
        for seed in of_round
        for p in [[r, seed, 0]]
    ]
    monkeypatch.setattr(round_metrics, "seeds_of", lambda _ctx, _round: (1, 2, 3))
    truth = Truth(np.zeros(3, int), np.ones(3, bool), np.ones(3), "test")
    pair = round_metrics._same_seeds(None, runs, before, now, truth)
    if shared is None:
        assert pair is None
    else:
        assert [side[:, 1].tolist() for side in pair] == [list(shared)] * 2
