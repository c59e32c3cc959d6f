"""Where a campaign stands."""

from __future__ import annotations

from typing import Any

from loop.campaign.config import Config
from loop.campaign.metrics import COMPARED, METRICS, RoundMetrics, as_json
from loop.campaign.store import Store
from loop.campaign.tables import RIVAL_MARK, STAGES
from loop.errors import counted
from loop.llm.ask import RETRY
from loop.measure.collapsed import collapsed_line, failed_seeds_line, measured_rounds
from loop.measure.llm_quality import quality_lines
from loop.measure.stopping import why_stop
from loop.money import account, labels_left
from loop.next_round import how_to_extend, next_step, what_next
from loop.people.scorecards import campaign_people, people_lines
from loop.people.tally import Tally, answer_lines, problems_of, tally, tally_line
from loop.report.verdict import campaign_verdict


def campaign_status(config: Config, store: Store) -> dict[str, Any]:
    """Round, stage, what is sent, back and gold, money, latest metrics, next command."""
    name = config.campaign.name
    rounds = store.rounds(name)
    last = rounds[-1] if rounds else None
    reviews = store.reviews(name)
    current = [r for r in reviews if last is not None and r.round_id == last.id]
    spent_on_llm = store.spent(name)
    money = account(config, store)
    answers = store.annotations(name)
    measured = measured_rounds(rounds)
    last_measured, newest = measured[-1] if measured else (None, RoundMetrics())
    students = newest.arms.get("loop")
    enough = why_stop(config, rounds)
    in_all = tally(reviews).to_json()
    return {
        "campaign": name,
        "texts": store.item_count(name),
        "round": last.number if last else 0,
        "rounds": config.rounds.rounds,
        "stage": last.stage if last else STAGES[0],
        "this_round": tally(current).to_json(),
        **in_all,
        "unreadable_answers": dict(problems_of(reviews, answers)),
        "answers_to_look_at": answer_lines(reviews, answers, config.people.platform_name),
        "gold": len(store.gold(name)),
        "budget": {
            "labels": config.budget.labels,
            "labels_left": labels_left(config, store),
            "llm_votes": spent_on_llm.votes,
            "llm_tokens": spent_on_llm.tokens,
            "llm_seconds": spent_on_llm.seconds,
            "llm_usd": spent_on_llm.usd,
            "llm_unanswered": sum(
                len(store.unanswered(name, a))
                for a in store.annotators(name)
                if RIVAL_MARK not in a
            ),
            "llm_unanswered_next": "goldloop check"
            if config.annotator.kind == "recorded"
            else RETRY,
            "answers": money.answers,
            "usd_spent": money.spent_usd,
            "usd_committed": money.committed_usd,
            "usd": config.budget.usd,
        },
        "metrics": students and as_json(students),
        "nothing_learned": collapsed_line(newest) or failed_seeds_line(newest),
        "student": {
            "encoder": config.student.encoder,
            "seeds": config.student.seeds,
            "lr": config.student.lr,
            "lr_why": config.lr_why,
        },
        "good_enough": enough,
        "label_quality": newest.label_quality and as_json(newest.label_quality),
        "predictor": newest.predictor and as_json(newest.predictor),
        "suspects": newest.suspects and as_json(newest.suspects),
        "verdict": campaign_verdict(config, store, what_next(config, store)).to_json(),
        "what_gold_says": quality_lines(newest),
        "measured_round": last_measured.number if last_measured else None,
        "people_to_look_at": people_lines(campaign_people(config, store)),
        "simulated_raters": config.raters.kind != "people",
        "next": next_step(config, store),
        "to_extend": how_to_extend(config, store) if rounds else "",
    }


def student_lines(student: dict[str, Any]) -> list[str]:
    """Encoder, seeds and learning rate of the students, and why they have that rate."""
    if student["lr"] is None:
        return []
    why = f", which {student['lr_why']} (student.lr sets another)" if student["lr_why"] else ""
    return [
        f"Students: {student['encoder']}, {student['seeds']} seeds, learning rate"
        f" {student['lr']:g}{why}"
    ]


def status_lines(status: dict[str, Any]) -> list[str]:
    """The status for people to read."""
    budget, this, verdict = status["budget"], status["this_round"], status["verdict"]
    money = ""
    if budget["usd_committed"] or budget["usd"] is not None:
        money = f", ${budget['usd_spent']:.2f} spent"
        if budget["usd_committed"] > budget["usd_spent"]:
            money += f", ${budget['usd_committed']:.2f} with the answers that are still to come"
    if budget["usd"] is not None:
        money += f", of ${budget['usd']:.2f}"
    in_all = Tally(**{key: status[key] for key in this})
    people = "simulated raters" if status["simulated_raters"] else "people"
    lines = [
        f"Campaign {status['campaign']}: {status['texts']} texts",
        *(paragraph for name, paragraph in verdict.items() if name != "next"),
        f"Round {status['round']} of {status['rounds']}, stage {status['stage']}:"
        f" {counted(this['chosen'], 'text')} chosen, {this['sent']} sent to {people}"
        f" ({tally_line(Tally(**this))})",
        f"In all: {status['sent']} sent ({tally_line(in_all)}); {status['gold']} gold labels",
        *student_lines(status["student"]),
        f"Budget: {budget['labels_left']} of {budget['labels']} labels left,"
        f" {budget['llm_votes']:,} LLM answers ({budget['llm_tokens']:,} tokens,"
        f" {budget['llm_seconds'] / 60:,.1f} minutes, ${budget['llm_usd']:.2f}){money}",
    ]
    if budget["llm_unanswered"]:
        lines.append(
            f"Missing LLM answers: {budget['llm_unanswered']} (`{budget['llm_unanswered_next']}`)"
        )
    if status["metrics"]:
        figures = [
            f"{METRICS[key].title} {100 * metric['value']:.1f}"
            for key in COMPARED
            if (metric := status["metrics"].get(key)) and metric["value"] is not None
        ]
        shown = ", ".join(figures) or "nothing, as too few texts are there to test on"
        lines.append(f"Round {status['measured_round']} measured (times 100): {shown}")
    if status["nothing_learned"]:
        lines.append(f"{status['nothing_learned']}.")
    lines += [f"{line}." for line in status["what_gold_says"]]
    lines += status["answers_to_look_at"]
    lines += [f"Look at {line} (`goldloop people`)" for line in status["people_to_look_at"]]
    if status["stage"] == "pull":
        lines.append("These are the answers read so far; `goldloop pull` reads new ones.")
    if at := status.get("label_at"):
        lines.append(f"People label at {at}")
    lines.append(verdict["next"])
    return lines
