"""An Annotator that runs a causal language model in this process, the embedded one by default.

It reads how probable each label's *name* is as the continuation of the prompt. What all items of a
variant share is computed once and kept, items are batched by length, and logits are computed in
float32: in bf16 they take so few values that hundreds of items tie.

A name that is one token needs no more than the prompt's last logits. Names of several tokens, or
names of which one begins another ("positive", "positive review"), are scored whole, with the end
of the line after them, so that each probability is that of exactly this answer.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loop.errors import AnnotatorError, LoopError
from loop.ports import (
    ClassProbs,
    FloatArray,
    Progress,
    PromptVariant,
    TextItem,
    no_progress,
)

log = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
FORM = "names-1"  # how labels are scored; raise the number when answers change
KEPT_VARIANTS = 4  # shared prefixes kept between calls
CHARS_PER_TOKEN = 16  # no text has longer tokens on average; what is beyond is cut unread
PREFIX_TOLERANCE = 0.1  # bf16 rounding stays far below, a wrong architecture does not
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")

Precision = Literal["bfloat16", "float32"]


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
        precision: of weights and activations; logits are float32 in any case.
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
        self._progress = progress
        self._prefixes: OrderedDict[str, _Prefix] = OrderedDict()
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
        return f"{FORM}:{self._precision}:{self._max_text_tokens}"

    @cached_property
    def _weights_hash(self) -> str:
        if self._model == EMBEDDED:
            from connectors.assets import SMOLLM2_GGUF_SHA256

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
            from connectors.assets import smollm2_dir

            return smollm2_dir()
        if Path(self._model).expanduser().is_dir():
            return Path(self._model).expanduser()
        with _translated(self._model):
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(self._model), allow_patterns=list(HUB_FILES)))

    @cached_property
    def _scorer(self) -> _Scorer:
        log.info("loading %s", self._model)
        folder = self._folder
        with _translated(self._model):
            return _Scorer(folder, self._device, self._precision)

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items; a row of NaN where the model gave no finite number.

        An item's answer does not depend on what else is in the call, up to rounding in bf16.

        Returns:
            (n, k) probabilities, in the items' order. ``tokens`` counts what was really computed:
            the item's own tokens and its label names'; the shared prefix counts for the first item
            of the call that computed it.
        Raises:
            AnnotatorError: the model cannot be loaded, the prompt does not fit into its context,
                or two label names look the same to it.
        """
        n, k = len(items), len(variant.labels)
        probs = np.full((n, k), np.nan)
        off = np.full(n, np.nan)
        tokens = np.zeros(n, dtype=np.int64)
        if not n:
            return ClassProbs(probs, off, tokens)
        with _thread_count(self._threads), _explained(self._model):
            scorer = self._scorer
            prefix, fresh = self._prefix(scorer, variant)
            prompts = [
                scorer.tokens(prefix.text + variant.suffix(self._tidy(scorer, item.text)))
                for item in items
            ]
            longest = max(map(len, prompts)) + prefix.names.longest
            if longest > scorer.context:
                raise AnnotatorError(
                    f"A prompt of variant {variant.index} has {longest} tokens, the model"
                    f" {self._name} reads {scorer.context}; use fewer or shorter demonstrations,"
                    " or lower annotator.max_text_tokens."
                )
            rows = sorted(range(n), key=lambda row: len(prompts[row]), reverse=True)
            for start in range(0, n, self._batch_size):
                batch = rows[start : start + self._batch_size]
                log_mass, used = scorer.score([prompts[row] for row in batch], prefix)
                probs[batch], off[batch] = _normalised(log_mass)
                tokens[batch] = used
                self._progress(len(batch))
        if fresh:
            tokens[0] += len(prefix.tokens)
        return ClassProbs(probs, off, tokens)

    def _prefix(self, scorer: _Scorer, variant: PromptVariant) -> tuple[_Prefix, bool]:
        """The variant's shared part, and whether it was computed just now."""
        if variant.hash in self._prefixes:
            self._prefixes.move_to_end(variant.hash)
            return self._prefixes[variant.hash], False
        shown = tuple(
            replace(d, text=self._tidy(scorer, d.text), label=_one_line(d.label))
            for d in variant.demonstrations
        )
        prefix = scorer.prefix(replace(variant, demonstrations=shown))
        self._prefixes[variant.hash] = prefix
        while len(self._prefixes) > KEPT_VARIANTS:
            self._prefixes.popitem(last=False)
        return prefix, True

    def _tidy(self, scorer: _Scorer, text: str) -> str:
        """One line without control characters, at most max_text_tokens long."""
        half = self._max_text_tokens * CHARS_PER_TOKEN // 2
        if len(text) > 4 * half:  # white space may still shrink, so not to the last character
            text = f"{text[: 2 * half]} {text[-2 * half :]}"
        text = _one_line(text)
        if len(text) > 2 * half:
            text = f"{text[:half]} {text[-half:]}"
        return scorer.shortened(text, self._max_text_tokens)


@dataclass(frozen=True)
class _Names:
    """The label names as token sequences.

    Attributes:
        ids: what follows the prompt, for each label.
        whole: whether several tokens and the end of the line must be scored.
    """

    ids: tuple[tuple[int, ...], ...]
    whole: bool

    @property
    def longest(self) -> int:
        return max(map(len, self.ids))


@dataclass(frozen=True)
class _Prefix:
    """A variant's shared part: its text, its tokens, and the keys and values of these."""

    text: str
    tokens: tuple[int, ...]
    kv: Any
    names: _Names


@dataclass(frozen=True)
class _Asked:
    """b prompts after their last token.

    Attributes:
        log_probs: (b, vocabulary) float32, of the next token.
        mask: (b, length) 1 where a token was computed, 0 where there is padding.
        last_position: (b, 1) position of each prompt's last token.
        kv: keys and values of all of ``length``.
        shared: tokens taken from the prefix.
    """

    log_probs: Any
    mask: Any
    last_position: Any
    kv: Any
    shared: int


class _Scorer:
    """A loaded model and its tokenizer."""

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any
        model: Any
        with _no_bars():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, precision),
                use_safetensors=True,
                trust_remote_code=False,
            )
        self._model = model.to(device).eval()
        self._device = device
        _use_float32_head(self._model)
        config = self._model.config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self._pad = self._tokenizer.pad_token_id or 0  # masked, so any token will do
        self._ends = self._end_tokens()
        self._verified = False

    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids; what looks like a control token in the text is plain text.

        Args:
            bare: without what the tokenizer puts before and after a whole prompt.
        """
        ids = self._tokenizer(
            text,
            add_special_tokens=not bare,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        if not bare and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text; the prompt goes on
        return [int(i) for i in ids]

    def shortened(self, text: str, most: int) -> str:
        """The text, or its first and last tokens where it has more than ``most``."""
        ids = self.tokens(text, bare=True)
        if len(ids) <= most:
            return text
        parts = [
            self._tokenizer.decode(part, clean_up_tokenization_spaces=False)
            for part in (ids[: most // 2], ids[len(ids) - (most - most // 2) :])
        ]
        return _one_line(" ".join(part.strip("\ufffd") for part in parts))  # half characters

    def prefix(self, variant: PromptVariant) -> _Prefix:
        """Computes what all prompts of a variant share.

        Tokens may merge across the border between prefix and item, so the border is where the
        tokens of two quite different prompts part.
        """
        import torch

        one, other = (self.tokens(variant.prefix + variant.suffix(t)) for t in ("a", "7 Z!"))
        shared = _common(one, other)
        if shared == 0:
            raise AnnotatorError("The model's tokenizer gives no two prompts a common beginning.")
        names = self._names(variant)
        if shared + names.longest >= self.context:
            raise AnnotatorError(
                f"The prompt of variant {variant.index} has {shared} tokens before any text, the"
                f" model reads {self.context}; use fewer or shorter demonstrations."
            )
        from transformers import DynamicCache

        kv = DynamicCache()
        with torch.inference_mode():
            self._model(
                input_ids=torch.tensor([one[:shared]], device=self._device),
                past_key_values=kv,
                use_cache=True,
                logits_to_keep=1,
            )
        prefix = _Prefix(variant.prefix, tuple(one[:shared]), kv, names)
        if not self._verified:
            self._verify(prefix, [other, one])
            self._verified = True
        return prefix

    def _verify(self, prefix: _Prefix, prompts: list[list[int]]) -> None:
        """Compares with the plain computation, once: some architectures keep other states."""
        import torch

        asked = self._ask(prompts, prefix)
        for row, prompt in enumerate(prompts):
            with torch.inference_mode():
                ids = torch.tensor([prompt], device=self._device)
                plain = self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
            direct = plain[0, -1].float().softmax(dim=-1)
            differ = float((asked.log_probs[row].exp() - direct).abs().sum() / 2)
            if differ > PREFIX_TOLERANCE:
                raise AnnotatorError(
                    "This model answers otherwise when the common beginning of its prompts is"
                    f" computed only once (total variation {differ:.2f}); name another model,"
                    f" such as {EMBEDDED!r}."
                )

    def _names(self, variant: PromptVariant) -> _Names:
        prompt = variant.suffix("a")
        before = self.tokens(prompt)
        ids = []
        for label in variant.labels:
            after = self.tokens(f"{prompt} {_one_line(label.name)}")
            if after[: len(before)] != before or len(after) == len(before):
                raise AnnotatorError(
                    f"The model's tokenizer cannot tell the label {label.name!r} from the prompt"
                    " before it; use another model or another label name."
                )
            ids.append(tuple(after[len(before) :]))
        for i, name in enumerate(ids):
            if name in ids[:i]:
                twin = variant.labels[ids.index(name)].name
                raise AnnotatorError(
                    f"The labels {twin!r} and {variant.labels[i].name!r} look the same to the"
                    " model; rename one."
                )
        return _Names(tuple(ids), whole=any(len(name) > 1 for name in ids))

    def _end_tokens(self) -> Any:
        """(e,) ids of the tokens that end a line: all that begin with a line break, and EOS."""
        import torch

        size = self._model.get_output_embeddings().weight.shape[0]
        known = min(size, len(self._tokenizer))
        pieces = self._tokenizer.batch_decode(
            [[i] for i in range(known)], clean_up_tokenization_spaces=False
        )
        ends = {i for i, piece in enumerate(pieces) if piece.startswith(("\n", "\r"))}
        if self._tokenizer.eos_token_id is not None:
            ends.add(int(self._tokenizer.eos_token_id))
        return torch.tensor(sorted(ends), device=self._device)

    def score(self, prompts: Sequence[list[int]], prefix: _Prefix) -> tuple[FloatArray, list[int]]:
        """Log-probability of each label's answer.

        Returns:
            (b, k) float64, NaN in rows where the model computed something not finite; and the
            number of tokens computed for each prompt.
        """
        import torch

        asked = self._ask(prompts, prefix)
        names = prefix.names
        if names.whole:
            log_mass = self._whole_names(asked, names)
        else:
            log_mass = asked.log_probs[:, [name[0] for name in names.ids]].double()
        finite = torch.isfinite(asked.log_probs.logsumexp(dim=-1)) & ~log_mass.isnan().any(dim=-1)
        log_mass = torch.where(finite[:, None], log_mass, math.nan)
        extra = sum(map(len, names.ids)) if names.whole else 0
        return log_mass.cpu().numpy(), [len(prompt) - asked.shared + extra for prompt in prompts]

    def _ask(self, prompts: Sequence[list[int]], prefix: _Prefix) -> _Asked:
        """One pass over what the prompts do not share with the prefix."""
        import torch

        b = len(prompts)
        shared = min(min(_common(prompt, prefix.tokens), len(prompt) - 1) for prompt in prompts)
        width = max(map(len, prompts)) - shared
        # Padding stands between prefix and item: the last column is every prompt's last token.
        ids = torch.full((b, width), self._pad, dtype=torch.long)
        mask = torch.zeros((b, shared + width), dtype=torch.long)
        mask[:, :shared] = 1
        positions = torch.zeros((b, width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            own = len(prompt) - shared
            ids[row, width - own :] = torch.tensor(prompt[shared:])
            mask[row, shared + width - own :] = 1
            positions[row, width - own :] = torch.arange(shared, shared + own)
        kv = copy.deepcopy(prefix.kv)
        if shared < len(prefix.tokens):
            kv.crop(shared - len(prefix.tokens))  # negative: how many tokens to take away
        kv.batch_repeat_interleave(b)
        log_probs = self._log_probs(ids, mask, positions, kv, keep=1)[:, 0]
        return _Asked(log_probs, mask, positions[:, -1:], kv, shared)

    def _whole_names(self, asked: _Asked, names: _Names) -> Any:
        """(b, k) log P(name and end of line | prompt), one short pass per name."""
        import torch

        b = len(asked.mask)
        columns = []
        for name in names.ids:
            length = len(name)
            log_probs = self._log_probs(
                torch.tensor(name).expand(b, length),
                torch.cat([asked.mask, torch.ones((b, length), dtype=torch.long)], dim=1),
                asked.last_position + 1 + torch.arange(length),
                asked.kv,
                keep=length,
            )
            asked.kv.crop(-length)  # back to the prompt, for the next name
            total = asked.log_probs[:, name[0]].double()
            for step, token in enumerate(name[1:]):
                total = total + log_probs[:, step, token].double()
            end = log_probs[:, -1].index_select(-1, self._ends).double().logsumexp(dim=-1)
            columns.append(total + end)
        return torch.stack(columns, dim=1)

    def _log_probs(self, ids: Any, mask: Any, positions: Any, kv: Any, *, keep: int) -> Any:
        """(b, keep, vocabulary) float32 log-probabilities after the last ``keep`` tokens."""
        import torch

        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                past_key_values=kv,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        return logits[:, -keep:].float().log_softmax(dim=-1)


def _use_float32_head(model: Any) -> None:
    """Makes the last layer compute in float32; whatever the model does after it stays."""
    import torch

    class Float32Head(torch.nn.Module):
        def __init__(self, head: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(head.weight.detach().float(), requires_grad=False)
            bias = getattr(head, "bias", None)
            self.bias = None if bias is None else bias.detach().float()

        def forward(self, hidden: Any) -> Any:
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)

    model.set_output_embeddings(Float32Head(model.get_output_embeddings()))


def _normalised(log_mass: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(b, k) log masses -> probabilities over the labels, and the mass outside them."""
    top = log_mass.max(axis=1, keepdims=True)
    weights = np.exp(log_mass - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    probs = np.where(total > 0, weights / np.where(total > 0, total, 1.0), np.nan)
    probs[np.isnan(log_mass).any(axis=1)] = np.nan
    off = np.clip(1.0 - np.exp(log_mass).sum(axis=1), 0.0, 1.0)
    return probs, np.where(np.isnan(probs).any(axis=1), np.nan, off)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _one_line(text: str) -> str:
    """Without line breaks and control characters, so that no text can look like a new prompt line.

    Runs of white space become one space; unpaired surrogates, which no tokenizer takes, too.
    """
    if not text.isprintable():
        text = "".join(
            " " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text
        )
    return " ".join(text.split())


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
def _no_bars() -> Iterator[None]:
    """Keeps transformers' own progress bars off stderr while loading."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


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
