"""What became of the texts that were sent to people, in numbers that add up, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from loop.campaign.tables import DELETED, UNSERVED, Annotation, Review

CANNOT_SHOW = "the task cannot be shown"

MAX_REASONS, MAX_REASON_CHARS, MAX_TASKS = 6, 60, 10


@dataclass(frozen=True)
class Tally:
    """Texts by what became of them; all but ``chosen`` and ``sent`` add up to ``sent``.

    Attributes:
        back: people gave a label, disagreed or were unsure.
        out: people are still asked.
        unreadable: answered, but by nothing that can be used.
    """

    chosen: int
    sent: int
    back: int
    out: int
    unreadable: int
    skipped: int
    deleted: int

    def to_json(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


def tally(reviews: Sequence[Review]) -> Tally:
    """Counts what became of texts."""
    became = Counter(_became(r) for r in reviews if r.task_id is not None)
    return Tally(
        chosen=len(reviews),
        sent=became.total(),
        **{key: became[key] for key in ("back", "out", "unreadable", "skipped", "deleted")},
    )


def _became(review: Review) -> str:
    if review.outcome == DELETED:
        return "deleted"
    if review.outcome == UNSERVED:
        return "unreadable"
    if review.closed_at is None:
        return "out"
    return review.outcome if review.outcome in ("unreadable", "skipped") else "back"


def tally_line(sums: Tally) -> str:
    """``12 answered, 2 waiting``: everything that is not zero, and always what is answered."""
    counts = sums.to_json() | {"waiting": sums.out}
    shown = [f"{sums.back} answered"]
    for key in ("waiting", "unreadable", "skipped", "deleted"):
        shown += [f"{counts[key]} {key}"] * bool(counts[key])
    return ", ".join(shown)


def problems_of(reviews: Sequence[Review], answers: Iterable[Annotation]) -> Counter[str]:
    """Why answers cannot be used -> how many; tasks that cannot be shown are among them."""
    counts = Counter(str(a.problem) for a in answers if a.unreadable)
    if unserved := sum(r.outcome == UNSERVED for r in reviews):
        counts[CANNOT_SHOW] = unserved
    return counts


def unreadable_line(problems: Mapping[str, int]) -> str:
    """``5 unreadable: empty result 1, unknown label 'Positive' 1, …``; empty for none."""
    if not problems:
        return ""
    ranked = sorted(problems.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{_short(problem)} {n}" for problem, n in ranked[:MAX_REASONS]]
    if rest := sum(n for _, n in ranked[MAX_REASONS:]):
        shown.append(f"others {rest}")
    return f"{sum(problems.values())} unreadable: {', '.join(shown)}"


def answer_lines(
    reviews: Sequence[Review], answers: Iterable[Annotation], platform: str
) -> list[str]:
    """What somebody should look at on the platform where people label: one line a kind, or none."""
    lines = []
    if line := unreadable_line(problems_of(reviews, answers)):
        lines.append(f"{line}. An answer counts once somebody corrects it in {platform}.")
    if unserved := [str(r.task_id) for r in reviews if r.outcome == UNSERVED]:
        lines.append(
            f"{platform} fails to show {_tasks(unserved)}; delete the answers there, so that"
            " somebody can answer again."
        )
    if deleted := [str(r.task_id) for r in reviews if r.outcome == DELETED]:
        lines.append(
            f"Deleted in {platform} while waiting for people: {_tasks(deleted)}. Restore them"
            " there if that is possible, or let the texts be chosen again with `goldloop pull"
            " --withdraw` once their round is over (`goldloop run --close` ends it early)."
        )
    return lines


def _tasks(task_ids: Sequence[str]) -> str:
    ordered = sorted(task_ids, key=lambda task: (len(task), task))
    shown = ", ".join(ordered[:MAX_TASKS])
    more = f" and {len(ordered) - MAX_TASKS} more" if len(ordered) > MAX_TASKS else ""
    return f"task{'s' * (len(ordered) > 1)} {shown}{more}"


def _short(problem: str) -> str:
    if len(problem) <= MAX_REASON_CHARS:
        return problem
    return problem[: MAX_REASON_CHARS - 1] + "…"
