"""goldloop in notebooks and scripts.

    from goldloop import Campaign

    campaign = Campaign.open("goldloop.toml")
    campaign.run()

:class:`Campaign` does what the command line does, :func:`bench` compares strategies, ``STRATEGIES``
maps the name of each signal of suspicion to its function, and every error that goldloop raises is
a :class:`LoopError`.
"""

from loop.cli.face import Campaign, bench
from loop.errors import (
    AnnotatorError,
    BusyError,
    ConfigError,
    DataError,
    FetchError,
    LoopError,
    MachineError,
    NoRoomError,
    NoStoreError,
    ProjectGoneError,
    ReviewerError,
    StageError,
    StoreError,
    StudentError,
    UnforeseenError,
)
from strategies import STRATEGIES

__all__ = [
    "STRATEGIES",
    "AnnotatorError",
    "BusyError",
    "Campaign",
    "ConfigError",
    "DataError",
    "FetchError",
    "LoopError",
    "MachineError",
    "NoRoomError",
    "NoStoreError",
    "ProjectGoneError",
    "ReviewerError",
    "StageError",
    "StoreError",
    "StudentError",
    "UnforeseenError",
    "bench",
]
