"""What happens when the campaign file of a campaign that has begun is edited.

Every key has a policy: its new value is used and reported, or refused before anything is spent.
The file as each round ran with it is kept with the round; the present file is compared with that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import make_url

from loop.campaign.config import Config, section_of, with_people
from loop.campaign.context import Context
from loop.campaign.database import database_file
from loop.campaign.import_texts import check_fit, refuse_other_texts
from loop.campaign.store import Store
from loop.campaign.tables import STAGES, Round
from loop.errors import ConfigError, DataError, StoreError
from loop.files import write_whole

When = Literal["at once", "next round", "between rounds", "never"]
Compared = Literal["yes", "common seeds", "no"]

WHEN: dict[When, str] = {
    "at once": "used from the next stage on",
    "next round": "used from the next round on",
    "between rounds": "used from the next round on; refused between the LLM's labels and the end"
    " of a round",
    "never": "refused",
}
COMPARED: dict[Compared, str] = {
    "yes": "yes",
    "common seeds": "over the seeds that both have",
    "no": "no",
}


@dataclass(frozen=True)
class Policy:
    """What an edit of a key does.

    Attributes:
        when: the new value is used from.
        compared: whether rounds before and after it can be compared.
        why: one sentence for the reader of the table, or empty.
        last_used: the last stage of a round that reads the key. A later edit is not the round's: it
            counts from the next round on.
    """

    when: When
    compared: Compared = "yes"
    why: str = ""
    last_used: str = "train"

    @property
    def when_used(self) -> str:
        """From when on a new value is used, in words."""
        after = f"; after the stage {self.last_used}, from the next round on"
        return WHEN[self.when] + after * (self.last_used != "train")


_AT_ONCE = Policy("at once")
_SCORED = Policy("at once", last_used="score")
_CHOSEN = Policy("at once", last_used="select")
_STUDENT = Policy("at once", "no", "Other students are trained.")
_ANNOTATOR = Policy(
    "between rounds", "no", "Every text is asked again, and paid for again, if the answers differ."
)
_PROMPT = Policy("never", "no", "The stored answers are to the old prompt.")
_DRAWN_PROMPT = Policy(
    "never",
    "no",
    'The stored answers are to the old prompts. With prompt.refresh = "round" the next round'
    " takes it up.",
)
_SOURCE = Policy(
    "next round",
    "yes",
    "New texts are added, texts that are gone stay. Refused where hardly a text of the campaign is"
    " in the source.",
)
_REPAIR = Policy(
    "at once",
    "no",
    "Students learn from labels that were repaired in another way.",
    last_used="repair",
)

POLICIES: dict[str, Policy] = {
    "campaign.name": Policy(
        "never", why="It would start a new campaign, which needs its own store.folder."
    ),
    "campaign.task": _PROMPT,
    "campaign.ordinal": _AT_ONCE,
    "labels.name": Policy(
        "next round", "no", "New labels at the end are accepted; all other edits are refused."
    ),
    "labels.description": Policy(
        "at once", why="People see it; the LLM's prompts stay until they are drawn again."
    ),
    "texts.source": _SOURCE,
    "texts.format": _SOURCE,
    "texts.text_column": _SOURCE,
    "texts.gold_column": Policy(
        "next round", "no", "Known labels are read again, and accuracy is measured by them."
    ),
    "texts.split_column": Policy(
        "next round",
        why="It decides for new texts. Refused where it names another split for a text that is in.",
    ),
    "texts.hf_split": _SOURCE,
    "texts.test_frac": Policy(
        "next round", why="It decides for new texts; those that are in keep their split."
    ),
    "texts.dev_items": Policy("never", why="The examples were set apart when the campaign began."),
    "annotator.kind": _ANNOTATOR,
    "annotator.model": _ANNOTATOR,
    "annotator.columns": _ANNOTATOR,
    "annotator.prob_columns": _ANNOTATOR,
    "annotator.confidence_scale": _ANNOTATOR,
    "annotator.batch_size": _AT_ONCE,
    "annotator.max_text_tokens": _ANNOTATOR,
    "annotator.usd_per_million_tokens": _AT_ONCE,
    "annotator.usd_per_million_cached_tokens": _AT_ONCE,
    "annotator.usd_per_million_output_tokens": _AT_ONCE,
    "annotator.base_url": _AT_ONCE,
    "annotator.api_key_env": _AT_ONCE,
    "annotator.concurrency": _AT_ONCE,
    "annotator.chat": _ANNOTATOR,
    "annotator.votes_when_no_logprobs": _ANNOTATOR,
    "annotator.gpu_memory_utilization": _AT_ONCE,
    "annotator.options": _ANNOTATOR,
    "prompt.shots": _DRAWN_PROMPT,
    "prompt.variants": _DRAWN_PROMPT,
    "prompt.calls_per_item": Policy("next round", "no", "Labels come from more or fewer answers."),
    "prompt.label_form": _PROMPT,
    "prompt.calibrate": Policy("between rounds", "no", "The answers are read in another way."),
    "prompt.class_prior": Policy("between rounds", "no", "The answers are read in another way."),
    "prompt.demonstrations": _DRAWN_PROMPT,
    "prompt.refresh": Policy(
        "next round",
        "no",
        '"round" pays for every text again each round, "better" where other examples do better.',
    ),
    "prompt.instruction": _PROMPT,
    "prompt.item": _PROMPT,
    "strategy.signals": _SCORED,
    "strategy.repair": _REPAIR,
    "strategy.repair_students": _REPAIR,
    "budget.labels": _AT_ONCE,
    "budget.usd": _AT_ONCE,
    "budget.usd_per_label": _AT_ONCE,
    "rounds.rounds": _AT_ONCE,
    "rounds.batch_size": _CHOSEN,
    "rounds.audit_frac": _CHOSEN,
    "rounds.audit": _CHOSEN,
    "rounds.stop_below": _AT_ONCE,
    "rounds.stop": _AT_ONCE,
    "rounds.seed": Policy(
        "next round", "common seeds", "Splits, checks and held-out texts keep the first seed."
    ),
    "student.encoder": _STUDENT,
    "student.epochs": _STUDENT,
    "student.batch_size": _STUDENT,
    "student.lr": Policy(
        "at once",
        "no",
        "Other students are trained. A campaign that has begun keeps its rate where the file names"
        " none.",
    ),
    "student.weight_decay": _STUDENT,
    "student.warmup_frac": _STUDENT,
    "student.max_tokens": _STUDENT,
    "student.long_texts": _STUDENT,
    "student.class_weights": _STUDENT,
    "student.checkpoint": _STUDENT,
    "student.seeds": Policy(
        "at once", "common seeds", "p_uc and reliable accuracy fall as seeds are added."
    ),
    "student.if_nothing_learned": _AT_ONCE,
    "student.keep_seeds": _AT_ONCE,
    "student.warm_start": _STUDENT,
    "student.device": _AT_ONCE,
    "student.precision": _STUDENT,
    "student.references": _AT_ONCE,
    "student.random_rounds": _AT_ONCE,
    "people.platform": Policy("never", why="The texts that were sent are on the first platform."),
    "people.options": _AT_ONCE,
    "people.assist": _AT_ONCE,
    "people.assist_share": _AT_ONCE,
    "people.note": _AT_ONCE,
    "people.overlap": _AT_ONCE,
    "people.rule": Policy("at once", why="Earlier answers are decided by it, too."),
    "people.early_stop": _AT_ONCE,
    "people.max_overlap": _AT_ONCE,
    "people.adjudicator": _AT_ONCE,
    "people.check_frac": _CHOSEN,
    "label_studio.url": Policy(
        "at once", why="Refused where the server does not have the campaign's project."
    ),
    "label_studio.token_env": _AT_ONCE,
    "raters.kind": Policy("never", why="Answers of people and of simulated people do not mix."),
    "raters.ratings_column": _AT_ONCE,
    "store.url": Policy(
        "never",
        why="It would start a new campaign. A store that holds the campaign already, such as a"
        " copy, is accepted.",
    ),
    "store.folder": Policy("at once", why="Models and caches of earlier rounds stay behind."),
    "tracking.to": Policy("at once", why="A new tracker gets the earlier rounds, too."),
    "tracking.project": Policy("at once", why="The rounds begin a new run there."),
    "tracking.uri": Policy("at once", why="The rounds begin a new run there."),
    "executor.kind": _AT_ONCE,
    "executor.address": _AT_ONCE,
    "executor.workers": _AT_ONCE,
    "executor.gpus_per_worker": _AT_ONCE,
}

SENT_TO_PEOPLE = ("raters.kind", "people.platform")
"""Refused only once texts were sent to people; other keys once the LLM has answered."""

OF_WHICH_TEXTS = {key for key, policy in POLICIES.items() if policy is _SOURCE}
"""Decide which texts the campaign is about."""


def campaign_keys() -> Iterator[str]:
    """Every key of the campaign file, as ``section.key``."""
    for section, field in Config.model_fields.items():
        yield from (f"{section}.{name}" for name in section_of(field).model_fields)


def policy_table() -> str:
    """The policies as a Markdown table, for ``docs/campaign_file.md``."""
    lines = ["| key | an edit is | rounds before and after compare | |", "|---|---|---|---|"]
    for key, policy in POLICIES.items():
        compared = "" if policy.when == "never" else COMPARED[policy.compared]
        lines.append(f"| `{key}` | {policy.when_used} | {compared} | {policy.why} |")
    return "\n".join(lines) + "\n"


# what has changed


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (value before, value after) of all keys that differ between two dumped files.

    A key that the older file does not know yet has its default.
    """
    old, new = _flat(before), _flat(after)
    had, has = (side["labels.description"] for side in (old, new))
    other = set(had) ^ set(has)
    for side in (had, has):  # a new label's description is no edit of an old one's
        for name in other:
            side.pop(name, None)
    return {
        key: (old.get(key, _default(key)), value)
        for key, value in new.items()
        if value != old.get(key, _default(key))
    }


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, keys in json.loads(json.dumps(with_people(config)[0])).items():
        if isinstance(keys, dict):
            values |= {f"{section}.{key}": value for key, value in keys.items()}
    labels = list(config["labels"])
    values["labels.name"] = [label["name"] for label in labels]
    return values | {"labels.description": {la["name"]: la["description"] for la in labels}}


def _default(key: str) -> Any:
    section, name = key.split(".")
    field = section_of(Config.model_fields[section]).model_fields[name]
    return json.loads(json.dumps(field.get_default(call_default_factory=True), default=str))


def incomparable(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys whose change keeps two rounds' students from being compared."""
    return [key for key in changes(before, after) if POLICIES[key].compared == "no"]


# what is done about it


def edits(config: Config, store: Store) -> dict[str, tuple[Any, Any]]:
    """Key -> (value before, value now) of what was edited since the last round was opened.

    Raises:
        ConfigError: a key was changed that must not be, or not now.
    """
    name = config.campaign.name
    last = store.last_round(name)
    changed = changes(last.config, config.model_dump(mode="json")) if last else {}
    if last is not None and changed:
        asked = store.spent(name).votes > 0
        sent = store.review_count(name) > 0
        for key, values in changed.items():
            _refuse(config, last, key, values, sent if key in SENT_TO_PEOPLE else asked)
    return changed


def check_changes(ctx: Context) -> None:
    """Refuses edits that the campaign cannot follow; an unfinished round uses the others.

    Writes the file's new values into the unfinished round and says them. What waits for the next
    round is said when that is opened.

    Raises:
        ConfigError: a key was changed that must not be, or not now, or does not go with the texts.
        DataError: the file names other texts, and people were not asked yet.
        ReviewerError: the new Label Studio does not have the campaign's project.
    """
    last = ctx.store.last_round(ctx.name)
    note = ctx.config.old_keys_note
    if note and (last is None or "people" not in last.config):  # once: later rounds know [people]
        ctx.say(note)
        if last is not None:
            known = with_people(last.config)[0]
            with ctx.store.transaction() as session:
                ctx.store.set_round_config(session, last, known)
    changed = edits(ctx.config, ctx.store)
    if last is None or not changed:
        return
    asked = ctx.store.spent(ctx.name).votes > 0
    project = ctx.store.project_id(ctx.name)
    if "label_studio.url" in changed and project is not None:
        ctx.reviewer.open_project(project)
    if last.stage in ("done", "measure"):
        return
    if changed.keys() & OF_WHICH_TEXTS and STAGES.index(last.stage) <= STAGES.index("push"):
        refuse_other_texts(ctx.config, ctx.store, ctx.parts.texts())
    now = {
        key: values
        for key, values in changed.items()
        if not _waits(ctx.config, key, asked, last.stage)
        and (POLICIES[key].when == "at once" or not asked or last.stage == "annotate")
    }
    if not now:
        return
    if now.keys() & {"student.references", "rounds.batch_size", "budget.labels"}:
        check_fit(ctx.config, ctx.store)
    config = json.loads(json.dumps(with_people(last.config)[0]))
    for key, (_, value) in now.items():
        section, name = key.split(".")
        config.setdefault(section, {})[name] = value
    with ctx.store.transaction() as session:
        ctx.store.set_round_config(session, last, config)
        if not asked:  # the frozen prompts have no answers: they are drawn again
            ctx.store.forget_variants(session, ctx.name)
        ctx.store.log(session, ctx.name, "round", "campaign file changed", changed=sorted(now))
    for line in change_lines(now, f"round {last.number} was opened"):
        ctx.say(line)


def _waits(config: Config, key: str, asked: bool, stage: str) -> bool:
    """Whether a new value of a key counts from the next round on; ``stage`` comes next in this."""
    if STAGES.index(stage) > STAGES.index(POLICIES[key].last_used):
        return True
    # A round keeps the labels that it was opened with: they tell which prompt its votes answered.
    if key == "rounds.seed" or key.startswith(("texts.", "labels.")):
        return True
    return asked and _redrawn(config, key)


def _redrawn(config: Config, key: str) -> bool:
    return POLICIES[key] is _DRAWN_PROMPT and config.prompt.refresh == "round"


def _refuse(config: Config, last: Round, key: str, values: tuple[Any, Any], begun: bool) -> None:
    policy, (was, value) = POLICIES[key], values
    if not begun or key in ("campaign.name", "store.url") or _redrawn(config, key):
        return  # of those two, `refuse_other_folder` decides
    what = f"{key} = {_shown(value)} cannot be changed now; the campaign has {_shown(was)}"
    if policy.when == "never":
        raise ConfigError(
            f"{what}. {policy.why} Restore it, or begin a new campaign with a campaign.name and a"
            " store.folder of its own. Nothing was spent."
        )
    if policy.when == "between rounds" and last.stage not in ("annotate", "done"):
        raise ConfigError(
            f"{what}: round {last.number} has used it and is not finished (next stage:"
            f" {last.stage}). Restore it until the round is done. Nothing was spent."
        )


def change_lines(changed: Mapping[str, tuple[Any, Any]], since: str) -> list[str]:
    """What has changed and what that means, for people to read; labels say so themselves."""
    told = {key: values for key, values in changed.items() if key != "labels.name"}
    lines = []
    if told:
        listed = ", ".join(
            f"{key} = {_shown(value)} (was {_shown(was)})" for key, (was, value) in told.items()
        )
        lines.append(f"The campaign file has changed since {since}: {listed}.")
    lines += [f"{key}: {POLICIES[key].why}" for key in told if POLICIES[key].why]
    if apart := [key for key in changed if POLICIES[key].compared == "no"]:
        lines.append(
            f"Rounds before and after this are not comparable, because of {', '.join(apart)}. The"
            " table marks it, and the two are not compared with each other."
        )
    return lines


def seeds_line(before: Round, seeds: list[int], count_before: int) -> str | None:
    """Which seeds the new round shares with the one before, or None where it has the same."""
    had = [before.seed + i for i in range(count_before)]
    if seeds == had:
        return None
    common = sorted(set(had) & set(seeds))
    if len(common) < 2:
        return (
            f"The students' seeds are {_range(seeds)} now and were {_range(had)} in round"
            f" {before.number}: fewer than two are the same, so that no paired comparison of the"
            " two rounds is shown."
        )
    return (
        f"The students' seeds are {_range(seeds)} now and were {_range(had)} in round"
        f" {before.number}: the two rounds are compared over the {len(common)} seeds that both"
        " have."
    )


def _range(seeds: list[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "unset" if value is None else text if len(text) <= 80 else f"{text[:77]}…"


# folder, store and texts of one campaign

MARK = "campaign.json"
"""File in the campaign's folder that says whose folder it is."""
CLAIM = ("folder", "claimed")
"""Command and name of the event that says which folder is the campaign's."""


def refuse_lost_store(config: Config) -> None:
    """Refuses a new store beside a folder whose campaign had another, or this one.

    Raises:
        StoreError: the folder is another campaign's, or the store's file is gone.
    """
    mark, url = _mark(config.out), make_url(config.store_url)
    file = database_file(url)
    if mark is None or file is None or file.exists():
        return
    here = url.set(database=str(file)).render_as_string()
    raise _another_campaign(config, mark, here, begun=False)


def refuse_other_folder(config: Config, store: Store) -> None:
    """Looks whether folder and store are of one campaign.

    Raises:
        StoreError: folder or store is another campaign's, or the campaign has another folder.
    """
    name, mark = config.campaign.name, _mark(config.out)
    uid = store.campaign_uid(name) if store.item_count(name) else None
    if mark is not None and mark["uid"] != uid:
        here = store.engine.url.render_as_string()
        raise _another_campaign(config, mark, here, begun=uid is not None)
    had = _claim(store, name)
    if uid is not None and had.get("folder") != str(config.folder) and "out" in had:
        _refuse_second_folder(config, uid, Path(had["out"]))


def check_folder(ctx: Context) -> None:
    """Looks whether folder, store and texts are of one campaign, before anything is paid again.

    Says so where a campaign that has begun goes on in a folder that held nothing of it.

    Raises:
        StoreError: as ``refuse_other_folder``.
        DataError: the campaign in the store was begun with other texts.
    """
    name, out = ctx.name, ctx.config.out
    refuse_other_folder(ctx.config, ctx.store)
    had = _claim(ctx.store, name)
    moved = had.get("folder") == str(ctx.config.folder) and had["out"] != str(out.resolve())
    # another store.folder is said with the other edits
    if _mark(out) is not None or moved or not ctx.store.item_count(name):
        return
    try:
        rows = ctx.parts.texts()
    except DataError:  # it continues with the texts that it has
        rows = ()
    refuse_other_texts(ctx.config, ctx.store, rows)
    if (last := ctx.store.last_round(name)) is not None:
        here = ctx.store.engine.url.render_as_string()
        ctx.say(
            f"Campaign {name!r} in {here} has begun (round {last.number}, {last.stage}) and"
            f" continues in {out}, which held nothing of it: models and caches are made again where"
            " they are needed. To begin a new campaign instead, stop goldloop and change"
            " campaign.name."
        )


def claim_folder(ctx: Context) -> None:
    """Marks the campaign's folder as its own, and notes in the store which one that is."""
    mark = {
        "campaign": ctx.name,
        "uid": ctx.store.campaign_uid(ctx.name),
        "store": ctx.store.engine.url.render_as_string(),
    }
    if _mark(ctx.config.out) != mark:
        write_whole(ctx.config.out / MARK, json.dumps(mark, indent=2) + "\n")
    claim = {"folder": str(ctx.config.folder), "out": str(ctx.config.out.resolve())}
    if _claim(ctx.store, ctx.name) != claim:
        with ctx.store.transaction() as session:
            ctx.store.log(session, ctx.name, *CLAIM, **claim)


def _claim(store: Store, name: str) -> dict[str, Any]:
    last = store.last_event(name, *CLAIM)
    return last.detail if last is not None else {}


def _refuse_second_folder(config: Config, uid: str, first: Path) -> None:
    mark, out = _mark(first), config.out
    if mark is None or mark["uid"] != uid or (out.exists() and first.samefile(out)):
        return
    raise StoreError(
        f"Campaign {config.campaign.name!r} is at work in {first}, and {out} would be a second"
        " folder of it (a copy, a restored backup, or another campaign file with that name): both"
        " would ask the LLM and people about the same texts. Continue there; or move that folder"
        " away and continue here; or give this campaign a campaign.name and a store.folder of its"
        " own. Nothing was spent."
    )


def _another_campaign(
    config: Config, mark: Mapping[str, Any], here: str, *, begun: bool
) -> StoreError:
    name, folder = config.campaign.name, config.out
    if not begun and (mark["campaign"], mark["store"]) == (name, here):
        return _lost_store(config, here)
    other = f"{folder} belongs to campaign {mark['campaign']!r} in the store {mark['store']}"
    if begun:
        return StoreError(
            f"{other}, not to campaign {name!r} in {here}. Two campaigns in one folder overwrite"
            " each other's models and reports: give each a store.folder of its own."
        )
    return StoreError(
        f"{other}. The campaign file now names campaign {name!r} in {here}, which has not"
        f" begun: it would start from the beginning and ask the LLM and people again. To"
        " continue, restore campaign.name and store.url. To start a new campaign, set store.folder"
        " to a new folder, or move this one away. Nothing was spent."
    )


def _lost_store(config: Config, store: str) -> StoreError:
    return StoreError(
        f"{config.out} belongs to campaign {config.campaign.name!r}, which its store {store} does"
        " not hold any more: it would start from the beginning and ask the LLM and people again. To"
        " continue, put the store back, or move that folder away and restore a backup with"
        " `goldloop restore`. To start again, move that folder away. Nothing was spent."
    )


def _mark(folder: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sound = isinstance(mark, dict) and {"campaign", "uid", "store"} <= set(mark)
    return mark if sound else None
