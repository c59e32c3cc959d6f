"""A loaded causal language model that scores answers; the shared beginning is computed once."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from connectors.llm.prompt_text import answer_tokens, chat_frame
from loop.errors import AnnotatorError
from loop.ports import FloatArray
from loop.prompt import PromptVariant, one_line

STATE_DEPTHS = (3 / 5,)  # of the blocks after which the last token's state is kept
PREFIX_TOLERANCE = 0.1  # bf16 rounding stays far below, a wrong architecture does not

Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class _Answers:
    """The answers as token sequences.

    Attributes:
        ids: what follows the prompt, for each label.
        whole: whether several tokens and the end of the line must be scored.
    """

    ids: tuple[tuple[int, ...], ...]
    whole: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.ids))


@dataclass(frozen=True)
class Prefix:
    """A variant, tidied, the tokens that its prompts share, and the keys and values of these."""

    variant: PromptVariant
    tokens: tuple[int, ...]
    kv: Any
    answers: _Answers


@dataclass(frozen=True)
class _Asked:
    """b prompts after their last token.

    Attributes:
        log_probs: (b, vocabulary) float32, of the next token.
        mask: (b, length) 1 where a token was computed, 0 where there is padding.
        last_position: (b, 1) position of each prompt's last token.
        kv: keys and values of all of ``length``.
        shared: tokens taken from the prefix.
        states: (b, d) float32, of the last token, or None where the blocks are not known.
    """

    log_probs: Any
    mask: Any
    last_position: Any
    kv: Any
    shared: int
    states: Any


class Scorer:
    """A loaded model and its tokenizer."""

    def __init__(self, folder: Path, device: str, precision: Precision, *, chat: bool) -> None:
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
        self._chat = chat
        _use_float32_head(self._model)
        config = self._model.config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self._pad = self._tokenizer.pad_token_id or 0  # masked, so any token will do
        self._ends = self._end_tokens()
        # The keyword was `past_key_values` before transformers 5.24 renamed it.
        takes = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"
        self._last_states: dict[int, Any] = {}
        self._watch(_blocks(self._model, int(config.num_hidden_layers)))
        self._verified = False

    def _watch(self, blocks: Any) -> None:
        """Keeps what the blocks at ``STATE_DEPTHS`` put out for the last token of each pass."""
        for place, depth in enumerate(STATE_DEPTHS if blocks is not None else ()):

            def keep(_block: Any, _given: Any, put_out: Any, place: int = place) -> None:
                hidden = put_out[0] if isinstance(put_out, tuple) else put_out
                self._last_states[place] = hidden[:, -1]

            blocks[round(depth * len(blocks)) - 1].register_forward_hook(keep)

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
            ids = ids[:-1]  # some tokenizers close every text; the prompt continues
        return [int(i) for i in ids]

    def prompt(self, variant: PromptVariant, text: str) -> list[int]:
        """Token ids of the whole prompt, in the chat template if that is wanted."""
        whole = variant.prefix + variant.suffix(text)
        if not self._chat:
            return self.tokens(whole)
        before, after = self._frame
        return [*before, *self.tokens(whole.rstrip(" "), bare=True), *after]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        return chat_frame(self._tokenizer)

    def shortened(self, text: str, most: int) -> str:
        """The text, or its first and last tokens where it has more than ``most``."""
        ids = self.tokens(text, bare=True)
        if len(ids) <= most:
            return text
        parts = [
            self._tokenizer.decode(part, clean_up_tokenization_spaces=False)
            for part in (ids[: most // 2], ids[len(ids) - (most - most // 2) :])
        ]
        return one_line(" ".join(part.strip("\ufffd") for part in parts))  # half characters

    def prefix(self, variant: PromptVariant) -> Prefix:
        """Computes what all prompts of a variant share.

        Tokens may merge across the border between prefix and item, so the border is where the
        tokens of two quite different prompts part.
        """
        import torch

        one, other = (self.prompt(variant, text) for text in ("a", "7 Z!"))
        shared = _common(one, other)
        if shared == 0:
            raise AnnotatorError("The model's tokenizer gives no two prompts a common beginning.")
        answers = self._answers(variant)
        if shared + answers.longest >= self.context:
            raise AnnotatorError(
                f"The prompt of variant {variant.index} has {shared} tokens before any text, the"
                f" model reads {self.context}; use fewer or shorter demonstrations."
            )
        from transformers import DynamicCache

        kv = DynamicCache()
        with torch.inference_mode():
            self._model(
                input_ids=torch.tensor([one[:shared]], device=self._device),
                **{self._cache: kv},
                use_cache=True,
                logits_to_keep=1,
            )
        prefix = Prefix(variant, tuple(one[:shared]), kv, answers)
        if not self._verified:
            self._verify(prefix, [other, one])
            self._verified = True
        return prefix

    def _verify(self, prefix: Prefix, prompts: list[list[int]]) -> None:
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
                    "This model gives other answers when the common beginning of its prompts is"
                    f" computed only once (total variation {differ:.2f}); name another model."
                )

    def _answers(self, variant: PromptVariant) -> _Answers:
        ids = answer_tokens(variant, self.tokens, chat=self._chat)
        return _Answers(ids, whole=any(len(answer) > 1 for answer in ids))

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

    def score(
        self, prompts: Sequence[list[int]], prefix: Prefix
    ) -> tuple[FloatArray, list[int], NDArray[np.float16] | None]:
        """Log-probability of each label's answer.

        Returns:
            (b, k) float64, NaN in rows where the model computed something not finite; the number
            of tokens computed for each prompt; and (b, d) hidden states of the prompts' last
            tokens, NaN in the same rows, or None where this model does not show them.
        """
        import torch

        asked = self._ask(prompts, prefix)
        answers = prefix.answers
        if answers.whole:
            log_mass = self._whole_answers(asked, answers)
        else:
            log_mass = asked.log_probs[:, [answer[0] for answer in answers.ids]].double()
        finite = torch.isfinite(asked.log_probs.logsumexp(dim=-1)) & ~log_mass.isnan().any(dim=-1)
        log_mass = torch.where(finite[:, None], log_mass, math.nan)
        extra = sum(map(len, answers.ids)) if answers.whole else 0
        tokens = [len(prompt) - asked.shared + extra for prompt in prompts]
        states = None
        if asked.states is not None:
            limit = torch.finfo(torch.float16).max
            held = torch.where(finite[:, None], asked.states.clamp(-limit, limit), math.nan)
            states = held.to(torch.float16).cpu().numpy()
        return log_mass.cpu().numpy(), tokens, states

    def _ask(self, prompts: Sequence[list[int]], prefix: Prefix) -> _Asked:
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
        seen = [self._last_states[place].float() for place in sorted(self._last_states)]
        states = torch.cat(seen, dim=1) if seen else None
        return _Asked(log_probs, mask, positions[:, -1:], kv, shared, states)

    def _whole_answers(self, asked: _Asked, answers: _Answers) -> Any:
        """(b, k) log P(answer and end of line | prompt), one short pass per answer."""
        import torch

        b = len(asked.mask)
        columns = []
        for answer in answers.ids:
            length = len(answer)
            log_probs = self._log_probs(
                torch.tensor(answer).expand(b, length),
                torch.cat([asked.mask, torch.ones((b, length), dtype=torch.long)], dim=1),
                asked.last_position + 1 + torch.arange(length),
                asked.kv,
                keep=length,
            )
            asked.kv.crop(-length)  # back to the prompt, for the next answer
            total = asked.log_probs[:, answer[0]].double()
            for step, token in enumerate(answer[1:]):
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
                **{self._cache: kv},
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        return logits[:, -keep:].float().log_softmax(dim=-1)


def _blocks(model: Any, count: int) -> Any:
    """The model's list of transformer blocks, or None where it has no single such list."""
    import torch

    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return lists[0] if len(lists) == 1 else None


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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


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
