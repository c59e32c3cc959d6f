"""What a campaign file names: goldloop's own parts, and those that installed packages add.

A package adds a part by an entry point in one of four groups, under the name that stands in the
campaign file:

    goldloop.strategies    ``(pool, rng) -> suspicion (n,)``; an attribute ``needs`` may name what
                           it cannot do without, as in ``strategies.needs``
    goldloop.annotators    ``(AnnotatorSetup) -> Annotator``, for ``annotator.kind``
    goldloop.reviewers     ``(ReviewerSetup) -> Reviewer``, for ``people.platform``
    goldloop.trackers      ``(TrackerSetup) -> Tracker``, for ``tracking.to``

goldloop's own connectors stand in ``BUILT_IN`` in the same form: a new one is its folder and a
line here. These are names; nothing is imported before a campaign uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from loop.errors import ConfigError
from strategies.needs import NEEDS

Group = Literal["strategies", "annotators", "reviewers", "trackers"]

BUILT_IN: dict[Group, dict[str, str]] = {
    "annotators": {
        "local_lm": "connectors.llm.local_lm:build",
        "openai_server": "connectors.llm.openai_server:build",
        "recorded": "connectors.llm.recorded:build",
        "vllm": "connectors.llm.vllm_engine:build",
    },
    "reviewers": {"label_studio": "connectors.label_studio.reviewer:build"},
    "strategies": {name: f"strategies:{name}" for name in NEEDS},
    "trackers": {
        "mlflow": "connectors.tracking.mlflow_runs:build",
        "wandb": "connectors.tracking.wandb_runs:build",
    },
}
_ONE: dict[Group, str] = {
    "strategies": "strategy",
    "annotators": "annotator",
    "reviewers": "platform for people",
    "trackers": "experiment tracker",
}


@cache
def _installed(group: Group) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"goldloop.{group}"))


def names(group: Group) -> list[str]:
    """Every name that a campaign file may use."""
    return sorted({*BUILT_IN[group], *(point.name for point in _installed(group))})


def is_known(group: Group, name: str) -> bool:
    """Whether a campaign file may use the name; other packages are asked only where they must."""
    return name in BUILT_IN[group] or name in names(group)


def one_of(group: Group) -> str:
    """What one part of the group is called."""
    return _ONE[group]


def what(group: Group, name: str) -> str:
    """The part in words, with the package that it comes from."""
    points = [point for point in _installed(group) if point.name == name]
    owner = f" of the package {_package(points[0])}" if points else ""
    return f"The {_ONE[group]} {name!r}{owner}"


def load(group: Group, name: str) -> Callable[..., Any]:
    """What the name stands for: a strategy, or what builds one of the others.

    Raises:
        ConfigError: nothing has the name, two packages have it, or it cannot be imported or called.
    """
    own = BUILT_IN[group].get(name)
    points = [point for point in _installed(group) if point.name == name]
    if len(points) + bool(own) > 1:
        owners = ["goldloop itself"] * bool(own) + [f"the package {_package(p)}" for p in points]
        raise ConfigError(
            f"The {_ONE[group]} {name!r} comes from {' and from '.join(owners)}, so that nobody"
            " knows which is meant. Uninstall one of them, or rename one."
        )
    if not own and not points:
        raise ConfigError(f"Nothing installed adds the {_ONE[group]} {name!r}.")
    point = EntryPoint(name, own, f"goldloop.{group}") if own else points[0]
    try:
        part = point.load()
    except Exception as exc:  # another package's code may raise anything
        raise ConfigError(
            f"{what(group, name)} cannot be imported ({type(exc).__name__}: {exc}). Install what it"
            " needs, or update or uninstall it."
        ) from exc
    if not callable(part):
        raise ConfigError(
            f"{what(group, name)} is not a function but {type(part).__name__}: its entry point"
            f" {point.value!r} names the wrong thing."
        )
    return cast(Callable[..., Any], part)


def needs_of(name: str) -> frozenset[str]:
    """What a strategy cannot do without.

    Raises:
        ConfigError: as ``load``, or its ``needs`` are none that there are.
    """
    if name in NEEDS:
        return NEEDS[name]
    needs = getattr(load("strategies", name), "needs", ())
    there_are = frozenset().union(*NEEDS.values())
    if isinstance(needs, str) or not frozenset(needs) <= there_are:
        raise ConfigError(
            f"{what('strategies', name)} says that it needs {needs!r}; it may need"
            f" {', '.join(sorted(there_are))}."
        )
    return frozenset(needs)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"
