"""Every error that goldloop raises on purpose.

    LoopError                what the user can act on: one sentence, exit code 1
    ├── ConfigError          the campaign file is wrong
    ├── DataError            the texts, labels or votes are wrong
    ├── StoreError           the store cannot be opened, or holds another campaign
    │   ├── NoStoreError     there is no store yet to read from
    │   └── BusyError        another process is writing to this campaign
    ├── AnnotatorError       the LLM cannot be loaded, or answers badly
    ├── ReviewerError        Label Studio is down, refuses the token, or answers badly
    ├── StudentError         the encoder cannot be loaded or trained
    ├── FetchError           a package, model or archive cannot be fetched, or has a wrong hash
    └── StageError           a command was given at a stage where it makes no sense

Arrays of a wrong shape or range raise ``ValueError``; those are bugs, not user errors.
"""


class LoopError(Exception):
    """An error with one sentence that says what happened and what to do."""


class ConfigError(LoopError):
    """The campaign file is wrong."""


class DataError(LoopError):
    """The texts, labels or votes are wrong."""


class StoreError(LoopError):
    """The store cannot be opened, or holds something else."""


class NoStoreError(StoreError):
    """There is no store yet to read from."""


class BusyError(StoreError):
    """Another process is writing to this campaign."""


class AnnotatorError(LoopError):
    """The LLM cannot be loaded, or answers badly.

    Attributes:
        tokens: computed, taken out of a cache, and written before it failed, as far as the LLM
            told; ``computed`` holds the written ones.
    """

    def __init__(self, sentence: str, *, tokens: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__(sentence)
        self.tokens = tokens


class ReviewerError(LoopError):
    """Label Studio cannot be reached, refuses the token, or answers badly."""


class StudentError(LoopError):
    """The encoder cannot be loaded or trained."""


class FetchError(LoopError):
    """A package, model or archive cannot be fetched, or its hash is wrong."""


class StageError(LoopError):
    """A command was given at a stage where it makes no sense."""
