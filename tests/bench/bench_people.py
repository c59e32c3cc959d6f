"""Three simulated people of different care, from recorded ratings: does adjudication pay?

Each person repeats what real people said of a tweet (Hutto & Gilbert 2014): a single recorded
rating, no rating used twice for a text. The first never strays, the second gives a rating of
another text in 10 % of the texts, the poor one in 40 %. Gold is the label of the mean of all
ratings; a text without a decision counts as wrong. The adjudicator is a fourth person like the
first, who settles what the three leave open with a single rating and does not know the truth. With
``--expert`` the first person is far better than one rater can be, the mean of five ratings, and no
vote among the three beats that person.

Every rule is compared with the best of the three in the same draw; the intervals are of paired
differences over the draws, each with other texts and other ratings.

    python tests/bench/bench_people.py [--texts 600] [--draws 40] [--expert]
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import t

from connectors.downloads.hutto import LABELS, HuttoText, load, mean_label, rating_label
from loop.campaign.config import Panel, Rule
from loop.campaign.tables import Annotation
from loop.people.gold import decide_all, wanted_answers
from loop.people.person import Person
from loop.people.scorecards import people

EXPERT = 5
STRAYS = (0.0, 0.1, 0.4)
NAMES = ("steady", "usual", "poor")


def answers_of(
    text: HuttoText, other: HuttoText, rng: np.random.Generator, *, expert: bool = False
) -> list[str]:
    """What the three say of one text, in the order of NAMES, and what the adjudicator would."""
    drawn = [text.ratings[i] for i in rng.permutation(len(text.ratings))]
    said = [
        rating_label(other.ratings[rng.integers(len(other.ratings))] if strayed else own)
        for own, strayed in zip(drawn, rng.random(len(STRAYS)) < STRAYS, strict=False)
    ]
    if expert:
        said[0] = mean_label(float(np.mean(drawn[-EXPERT:])))
    return [*said, rating_label(drawn[len(STRAYS)])]


def answer(person: str, item: str, label: str) -> Annotation:
    """An answer as the store keeps it."""
    return Annotation(
        campaign="bench",
        annotation_id=f"{person}-{item}",
        updated_at="2024-01-01T00:00:00Z",
        task_id=item,
        item_id=item,
        annotator=person,
        label=label,
        skipped=False,
        note="",
        raw={},
    )


def panel_run(
    texts: list[HuttoText], seed: int, *, checks: int = 0, expert: bool = False
) -> tuple[dict[str, float], list[Person], float]:
    """Share of right labels of everybody and of each rule, the people judged, answers asked for."""
    rng = np.random.default_rng(seed)
    others = rng.permutation(len(texts))
    said = {t.id: answers_of(t, texts[others[i]], rng, expert=expert) for i, t in enumerate(texts)}
    known = {t.id: t.gold for t in texts[len(texts) - checks :]}  # hidden checks, judged by nobody
    gold = {t.id: t.gold for t in texts if t.id not in known}
    right = {
        name: float(np.mean([said[i][n] == gold[i] for i in gold])) for n, name in enumerate(NAMES)
    }
    everything = {i: [answer(w, i, x) for w, x in zip(NAMES, said[i], strict=False)] for i in said}
    whole = {i: answers for i, answers in everything.items() if i in gold}
    rules: tuple[Rule, ...] = ("majority", "dawid-skene")
    for rule in rules:
        panel = Panel(rule, overlap=3, adjudicator="judge")
        found = decide_all(whole, LABELS, panel)
        right[rule] = float(np.mean([found[i].label == gold[i] for i in gold]))
        tied = {i for i, d in found.items() if d.how == "conflict"}
        asked_judge = len(tied) / len(whole)
        for who, says in (("a fourth person", lambda i: said[i][-1]), ("the truth", gold.get)):
            settled = {
                i: [*whole[i], *([answer("judge", i, says(i))] if i in tied else [])] for i in whole
            }
            found = decide_all(settled, LABELS, panel)
            right[f"{rule}, {who} settles conflicts"] = float(
                np.mean([found[i].label == gold[i] for i in gold])
            )
        right[f"(texts in conflict, {rule})"] = asked_judge
    if checks:
        panel = Panel("dawid-skene", overlap=3)
        found = decide_all(everything, LABELS, panel, known)
        right[f"dawid-skene with {checks} hidden checks"] = float(
            np.mean([found[i].label == gold[i] for i in gold])
        )
    asked = 0
    early = Panel(overlap=3, early_stop=True)
    for item, answers in whole.items():
        given = 0
        while True:
            now = decide_all({item: answers[:given]}, LABELS, early)[item]
            wanted = wanted_answers(answers[:given], now, early)
            if wanted <= given:
                break
            given = wanted
        asked += given
    flat = [a for answers in everything.values() for a in answers]
    judged = people(flat, labels=LABELS, texts={t.id: t.text for t in texts}, checks=known)
    return right, judged, asked / len(whole)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--checks", type=int, default=60, help="further texts, with known labels")
    parser.add_argument("--expert", action="store_true")
    options = parser.parse_args()
    everything = load("tweets")
    rights, asked, flags = [], [], []
    for seed in range(options.draws):
        rng = np.random.default_rng([seed, 1])
        n = options.texts + options.checks
        chosen = [everything[i] for i in rng.permutation(len(everything))[:n]]
        right, judged, per_text = panel_run(
            chosen, seed, checks=options.checks, expert=options.expert
        )
        rights.append(right)
        asked.append(per_text)
        flags.append({p.name: p.flags for p in judged})
    print(f"{options.texts} tweets, {options.draws} draws: right labels in %, mean (sd)")
    print("and the paired difference to the best of the three, with its 95 % t interval")
    best = 100 * np.array([max(r[name] for name in NAMES) for r in rights])
    for name in rights[0]:
        values = 100 * np.array([r[name] for r in rights])
        line = f"  {name:46s} {values.mean():5.1f} ({values.std(ddof=1):.1f})"
        if not name.startswith("("):
            gain = values - best
            half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
            line += f"  {gain.mean():+.1f} ({gain.mean() - half:+.1f} to {gain.mean() + half:+.1f})"
        print(line)
    for name in NAMES:
        flagged = sum(bool(f[name]) for f in flags)
        print(f"  {name}: flagged in {flagged} of {options.draws} draws")
    print(f"  early stop asks {np.mean(asked):.2f} people a text instead of 3")


if __name__ == "__main__":
    main()
