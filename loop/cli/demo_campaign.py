"""The embedded default campaign: tweets, a small LLM, a small encoder, simulated raters."""

from __future__ import annotations

from pathlib import Path

TEST_ITEMS = 400
DEV_ITEMS = 60

CAMPAIGN = """\
# The goldloop demo: tweets that 20 people each rated from -4 to +4 (Hutto & Gilbert 2014).
# The LLM, Label Studio and the encoder are real. {people}

[campaign]
name = "demo"
task = "Decide whether the tweet is negative, neutral or positive."

[[labels]]
name = "negative"
description = "the writer feels bad, complains or criticises"

[[labels]]
name = "neutral"
description = "no feeling, or as much good as bad"

[[labels]]
name = "positive"
description = "the writer feels good, praises or enjoys"

[texts]
source = "texts.jsonl"
text_column = "text"
gold_column = "gold"
split_column = "split"

[annotator]
kind = "local_lm"
model = "smollm2-135m"

[prompt]
shots = 3
variants = 3
calls_per_item = 0     # this LLM is free: every prompt for every tweet
calibrate = "batch"

[budget]
labels = {labels}

[rounds]
rounds = 3
batch_size = {batch_size}

[student]
encoder = "minilm"
epochs = 6
batch_size = 8         # as `goldloop init` advises for so few texts
seeds = 4              # an even number keeps both cores of a small machine busy to the end
max_tokens = 64
references = {references}
random_rounds = "last"

[people]
overlap = {overlap}

[label_studio]
url = "local"

[raters]
kind = "{raters}"
{ratings}
"""


def campaign_text(*, by_hand: bool, pool: int) -> str:
    """The demo's campaign file.

    Args:
        pool: texts to label; three rounds of 50 would be more than a small pool has.
    """
    batch_size = min(50, pool // 3)
    if by_hand:
        return CAMPAIGN.format(
            people="The people are you.",
            labels=60,
            batch_size=20,
            references='["llm_only", "all_gold"]',
            overlap=1,
            raters="people",
            ratings="",
        )
    return CAMPAIGN.format(
        people="The people are simulated: they draw\n# their answers from the recorded ratings.",
        labels=3 * batch_size,
        batch_size=batch_size,
        references='["llm_only", "random", "all_gold"]',
        overlap=3,
        raters="recorded",
        ratings='ratings_column = "ratings"',
    )


def closing_lines(
    file: Path,
    installed_s: float,
    ran_s: float,
    login: tuple[str, str, str] | None,
) -> list[str]:
    """What to do next, for the end of the demo."""
    fetched = f", after {installed_s / 60:.1f} minutes of fetching" if installed_s > 1 else ""
    lines = [f"The run took {ran_s / 60:.1f} minutes{fetched}."]
    if login:
        url, user, password = login
        lines += [
            f"Label Studio: {url} (user {user}, password {password});"
            " stop it with `goldloop label-studio down`.",
        ]
    return [
        *lines,
        f"The campaign: {file}; see its state with `goldloop status`.",
        "Would more LLM labels help? `goldloop plateau`; where the instability comes from:"
        " `goldloop variance`.",
        "To label yourself: `goldloop demo --by-hand --folder demo-by-hand`.",
    ]
