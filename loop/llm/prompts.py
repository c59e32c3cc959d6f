"""The prompt variants: drawn, frozen, found again by their hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loop.campaign.config import Config, LabelSection
from loop.campaign.store import Store
from loop.campaign.tables import Variant
from loop.chance import stream
from loop.errors import ConfigError
from loop.ports import item_id
from loop.prompt import Demonstration, PromptVariant


def draw_demonstrations(
    candidates: Sequence[Demonstration],
    labels: Sequence[str],
    *,
    shots: int,
    variants: int,
    rng: np.random.Generator,
) -> list[tuple[Demonstration, ...]]:
    """One set of demonstrations per variant, balanced over classes, in random order.

    Sets differ as long as there are enough candidates. Variants take the classes in turn, each
    continuing where the one before stopped.
    """
    by_class = {name: [d for d in candidates if d.label == name] for name in labels}
    for drawn in by_class.values():
        rng.shuffle(drawn)  # type: ignore[arg-type]
    filled = [name for name in labels if by_class[name]]
    used = dict.fromkeys(filled, 0)
    sets = []
    for variant in range(variants):
        chosen: list[Demonstration] = []
        for shot in range(shots if filled else 0):
            name = filled[(variant * shots + shot) % len(filled)]
            pile = by_class[name]
            candidate = pile[used[name] % len(pile)]
            used[name] += 1
            if candidate not in chosen:
                chosen.append(candidate)
        order = rng.permutation(len(chosen))
        sets.append(tuple(chosen[i] for i in order))
    return sets


def freeze_variants(
    config: Config, store: Store, annotator: str, *, round_number: int = 0
) -> list[PromptVariant]:
    """The variants that this round asks: stored ones if there are any, else new ones, stored.

    Raises:
        ConfigError: as ``plan_variants``.
    """
    variants = plan_variants(config, store, annotator, round_number=round_number)
    name = config.campaign.name
    frozen = store.variants(name, annotator)
    if [row.hash for row in frozen] == [variant.hash for variant in variants]:
        return variants
    rows = [
        Variant(
            hash=variant.hash,
            campaign=name,
            annotator=annotator,
            from_round=round_number,
            position=variant.index,
            prefix=variant.prefix,
            demonstrations=[{"text": d.text, "label": d.label} for d in variant.demonstrations],
        )
        for variant in variants
    ]
    # A label may have come while this round was asking: it begins again with the new prompts.
    store.replace_variants(name, annotator, round_number, rows)
    return variants


def plan_variants(
    config: Config, store: Store, annotator: str, *, round_number: int = 0
) -> list[PromptVariant]:
    """The variants that are frozen, or those that would be; stores nothing.

    With ``prompt.refresh = "round"`` a later round than the one that froze them draws others, as
    soon as people have labelled something. Whoever asks after a label has come names it.

    Raises:
        ConfigError: shots are asked for and no example with a label is at hand, an example is a
            test text, or the prompt is no longer the one that was frozen.
    """
    frozen = stored_variants(config, store, annotator)
    gathered = gathered_demonstrations(config, store)
    if frozen:
        since = store.variants(config.campaign.name, annotator)[0].from_round
        knows_all = [label.name for label in frozen[0].labels] == list(config.label_names)
        if knows_all and (not gathered or round_number <= since):
            return frozen
    if config.annotator.kind == "recorded":
        return [_variant(config, i, ()) for i in range(len(config.annotator.columns))]
    candidates = [*(config.given_demonstrations or _of_dev(config, store)), *gathered]
    if config.prompt.shots and not candidates and config.prompt.refresh == "never":
        raise ConfigError(
            f"prompt.shots = {config.prompt.shots} needs examples: add"
            " [[prompt.demonstrations]] with text and label, name a texts.gold_column, set"
            ' prompt.refresh = "round" to take them from people\'s labels as they come, or set'
            " prompt.shots = 0."
        )
    _refuse_test_texts(config, store, candidates)
    sets = draw_demonstrations(
        candidates,
        config.label_names,
        shots=config.prompt.shots,
        variants=config.prompt.variants,
        rng=stream("prompt examples", config.rounds.seed, then=[round_number] if gathered else []),
    )
    return [_variant(config, i, demos) for i, demos in enumerate(sets)]


def stored_variants(config: Config, store: Store, annotator: str) -> list[PromptVariant]:
    """The variants that are frozen; none before the first question.

    A label's description may change while people label, and labels may come: people see them, the
    LLM's prompts keep what its votes answered until a round asks again.

    Raises:
        ConfigError: the prompt is no longer the one that was frozen.
    """
    stored = store.variants(config.campaign.name, annotator)
    rounds = store.rounds(config.campaign.name) if stored else []
    had = [r.config["labels"] for r in rounds if r.config.get("labels")]
    for labels in (None, *had):
        asked = config if labels is None else _labelled(config, labels)
        frozen = [
            _variant(
                asked,
                row.position,
                tuple(Demonstration(d["text"], d["label"]) for d in row.demonstrations),
            )
            for row in stored
        ]
        if [variant.hash for variant in frozen] == [row.hash for row in stored]:
            return frozen
    raise ConfigError(
        "The prompt is no longer the one that the stored votes answered: campaign.task,"
        " prompt.label_form, prompt.instruction or prompt.item was changed. Restore it, or give"
        " the campaign a new name."
    )


def _labelled(config: Config, labels: Sequence[Mapping[str, Any]]) -> Config:
    """The campaign with the labels that it had, described as they were."""
    return config.model_copy(
        update={"labels": tuple(LabelSection.model_validate(label) for label in labels)}
    )


def gathered_demonstrations(config: Config, store: Store) -> list[Demonstration]:
    """What people labelled in earlier rounds, as examples; none unless the campaign asks for it.

    Where accuracy is measured on audit texts, because no test text has a known label, they are no
    examples.
    """
    if config.prompt.refresh == "never":
        return []
    name = config.campaign.name
    tested = any(key.known_label for key in store.keys(name, "test"))
    kept = {r.item_id for r in store.reviews(name) if tested or r.reason != "audit"}
    decided = store.gold(name)
    return [
        Demonstration(item.text, decided[item.id].label)
        for item in store.items_of(decided.keys() & kept)
        if item.split == "pool"
    ]


def without_item(variant: PromptVariant, campaign: str) -> dict[str, PromptVariant]:
    """For each item that the variant shows as an example, the variant without that example.

    An item that saw its own label would only repeat it. The vote counts as the variant's.
    """
    return {
        item_id(campaign, shown.text): replace(
            variant,
            demonstrations=tuple(d for d in variant.demonstrations if d.text != shown.text),
        )
        for shown in variant.demonstrations
    }


def _of_dev(config: Config, store: Store) -> list[Demonstration]:
    return [
        Demonstration(item.text, item.known_label)
        for item in store.items(config.campaign.name, "dev")
        if item.known_label is not None
    ]


def _refuse_test_texts(config: Config, store: Store, candidates: Sequence[Demonstration]) -> None:
    name = config.campaign.name
    tests = {key.id for key in store.keys(name, "test")}
    for shown in candidates:
        if item_id(name, shown.text) in tests:
            raise ConfigError(
                f"The example {shown.text[:60]!r} in prompt.demonstrations is a test text, which no"
                " prompt may show; take another."
            )


def _variant(
    config: Config, index: int, demonstrations: tuple[Demonstration, ...]
) -> PromptVariant:
    """Variant number ``index``; numbers stand for other classes in each, so that bias shows."""
    form, k = config.prompt.label_form, len(config.labels)
    order = tuple((place + index) % k for place in range(k)) if form == "ids" else ()
    return PromptVariant(
        index,
        config.campaign.task,
        config.port_labels,
        demonstrations,
        label_form=form,
        order=order,
        template=config.prompt.template(index),
    )
