"""An Annotator that runs vLLM in this process (``pip install goldloop[vllm]``).

Each item is asked for the log-probabilities of exactly the labels' tokens, over the whole
vocabulary: one pass gives the classes' probabilities and the off-label mass together. Labels of
several tokens are scored whole on a trie, one more token of prompt per node, with the prompt itself
in the prefix cache. The last layer computes in float32: in bf16 hundreds of items tie.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from connectors.llm.label_trie import LabelTrie, check_answers, class_probs
from connectors.llm.local_lm import EMBEDDED
from connectors.llm.prompt_text import answer_tokens, chat_frame
from loop.errors import AnnotatorError
from loop.ports import (
    AnnotatorSetup,
    ClassProbs,
    FloatArray,
    IntArray,
    Progress,
    TextItem,
    no_progress,
)
from loop.prompt import PromptVariant, one_line

log = logging.getLogger(__name__)

FORM = "vllm-1"  # how labels are scored; raise the number when answers change
ASKED_AT_ONCE = 128  # vLLM's limit on logprob_token_ids


def build(setup: AnnotatorSetup) -> VllmAnnotator:
    """The annotator of a campaign with ``annotator.kind = "vllm"``."""
    settings = setup.settings
    return VllmAnnotator(
        settings["model"],
        gpu_memory_utilization=settings["gpu_memory_utilization"],
        max_text_tokens=settings["max_text_tokens"],
        chat=settings["chat"],
    )


class VllmAnnotator:
    """Class probabilities from a vLLM engine in this process.

    The engine is started at the first question, not before, and holds the GPU until ``close``.

    Args:
        model: a hub name, a folder, or "smollm2-135m".
        dtype: of weights and activations; the last layer is float32 in any case.
        gpu_memory_utilization: share of the GPU's memory that vLLM may take.
        max_model_len: longest prompt in tokens; None takes the model's.
        max_text_tokens: longer texts lose their middle; holds for demonstrations too.
        chat: wrap the prompt in the model's chat template.
        engine: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.
        progress: told of finished items.
    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_text_tokens: int = 512,
        chat: bool = False,
        engine: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if not 0 < gpu_memory_utilization <= 1 or max_text_tokens < 8:
            raise ValueError(
                f"gpu_memory_utilization {gpu_memory_utilization} must be in (0, 1],"
                f" max_text_tokens {max_text_tokens} >= 8"
            )
        self._model = model
        self._dtype = dtype
        self._gpu_memory_utilization = gpu_memory_utilization
        self._max_model_len = max_model_len
        self._max_text_tokens = max_text_tokens
        self._chat = chat
        self._engine = dict(engine or {})
        self._progress = progress
        self._unchecked = True
        self._plans: dict[str, tuple[PromptVariant, LabelTrie]] = {}

    @property
    def revision(self) -> str:
        """Model and all settings that change answers."""
        chat = ":chat" if self._chat else ""
        name = Path(self._model).name if Path(self._model).is_dir() else self._model
        return f"{name}@{FORM}:{self._dtype}{chat}:{self._max_text_tokens}"

    def close(self) -> None:
        """Stops the engine and frees the GPU; the next question starts another."""
        if "_llm" in self.__dict__:
            with suppress(AttributeError):
                self._llm.llm_engine.engine_core.shutdown()
            del self.__dict__["_llm"]

    @cached_property
    def _llm(self) -> Any:
        try:
            from vllm import LLM
        except ImportError as exc:
            raise AnnotatorError(
                f"vLLM cannot be loaded ({exc}); install it with `pip install goldloop[vllm]`."
            ) from exc
        model = self._model
        if model == EMBEDDED:
            from connectors.downloads.models import smollm2_dir

            model = smollm2_dir()
        settings: dict[str, Any] = {
            "model": str(model),
            "dtype": self._dtype,
            "gpu_memory_utilization": self._gpu_memory_utilization,
            "max_model_len": self._max_model_len,
            "hf_overrides": {"head_dtype": "float32"},
            "enable_prefix_caching": True,
            "logprobs_mode": "raw_logprobs",
            "trust_remote_code": False,
            **self._engine,
        }
        log.info("starting vLLM with %s", self._model)
        try:
            return LLM(**settings)
        except Exception as exc:  # vLLM raises many unrelated types here
            reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            raise AnnotatorError(
                f"vLLM cannot run the model {self._model} ({reason[:300]});"
                " lower gpu_memory_utilization or max_model_len if memory ran out."
            ) from exc

    @cached_property
    def _tokenizer(self) -> Any:
        return self._llm.get_tokenizer()

    @cached_property
    def _context(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items; a row of NaN where the model gave no finite number.

        Returns:
            (n, k) probabilities, in the items' order. ``tokens`` counts prompt tokens that were not
            in the prefix cache.
        Raises:
            AnnotatorError: vLLM or the model cannot be loaded, a prompt does not fit into its
                context, the labels cannot be told apart, or probabilities are too coarse.
        """
        n = len(items)
        if not n:
            nothing = np.zeros(0)
            return ClassProbs(
                np.zeros((0, len(variant.labels))), nothing, np.zeros(0, dtype=np.int64)
            )
        shown, trie = self._plan(variant)
        prompts = [self._prompt(shown, self._tidy(item.text)) for item in items]
        longest = max(map(len, prompts)) + trie.longest + 1
        if longest > self._context:
            raise AnnotatorError(
                f"A prompt of variant {variant.index} has {longest} tokens, the model reads"
                f" {self._context}; use fewer or shorter demonstrations, or lower"
                " annotator.max_text_tokens."
            )
        root, *rest = trie.nodes
        tokens = np.zeros(n, dtype=np.int64)
        answers = [self._log_probs(prompts, root.asked, tokens, np.arange(n))]
        if rest:  # item by item, so that the prompt is in the cache when its nodes are asked
            wanted = tuple(sorted({token for node in rest for token in node.asked}))
            column = {token: i for i, token in enumerate(wanted)}
            paths = [[*prompt, *node.path] for prompt in prompts for node in rest]
            whose = np.repeat(np.arange(n), len(rest))
            values = self._log_probs(paths, wanted, tokens, whose).reshape(n, len(rest), -1)
            answers += [
                values[:, i, [column[token] for token in node.asked]] for i, node in enumerate(rest)
            ]
        log_masses = trie.log_masses(answers)
        if self._unchecked:
            check_answers(
                [item.text for item in items],
                log_masses,
                model=str(self._model),
                chat=self._chat,
            )
            self._unchecked = False
        probs, off = class_probs(log_masses)
        self._progress(n)
        return ClassProbs(probs, off, tokens)

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """The most tokens that are computed for each item: its prompt with every question about it.

        The tokens that are written are not counted.
        """
        shown, trie = self._plan(variant)
        prompts = trie.prompts(ASKED_AT_ONCE)
        tokens = [
            prompts * (len(self._prompt(shown, self._tidy(item.text))) + trie.longest)
            for item in items
        ]
        return np.array(tokens, dtype=np.int64), np.zeros(len(items), dtype=np.int64)

    def _log_probs(
        self,
        prompts: Sequence[list[int]],
        ids: Sequence[int],
        tokens: np.ndarray[Any, np.dtype[np.int64]],
        whose: np.ndarray[Any, np.dtype[np.int64]],
    ) -> FloatArray:
        """(prompts, ids) log-probability of each id as the next token; adds up computed tokens."""
        from vllm import SamplingParams

        out = np.full((len(prompts), len(ids)), np.nan)
        for start in range(0, len(ids), ASKED_AT_ONCE):
            part = list(ids[start : start + ASKED_AT_ONCE])
            params = SamplingParams(
                max_tokens=1, temperature=0, logprob_token_ids=part, detokenize=False
            )
            asked = [{"prompt_token_ids": prompt} for prompt in prompts]
            for row, result in enumerate(self._llm.generate(asked, params, use_tqdm=False)):
                listed = result.outputs[0].logprobs[0]
                for at, token in enumerate(part, start):
                    if token not in listed:
                        raise AnnotatorError(
                            "This vLLM does not give the log-probabilities it is asked for;"
                            " install a version with SamplingParams.logprob_token_ids."
                        )
                    out[row, at] = listed[token].logprob
                cached = result.num_cached_tokens or 0
                tokens[whose[row]] += len(prompts[row]) - cached
        return out

    def _plan(self, variant: PromptVariant) -> tuple[PromptVariant, LabelTrie]:
        """The variant with tidy demonstrations, and its answers' tokens."""
        if variant.hash not in self._plans:
            shown = variant.tidied(self._tidy)
            labels = answer_tokens(shown, self._ids, chat=self._chat)
            used = {token for ids in labels for token in ids}
            long = any(len(ids) > 1 for ids in labels)
            ends = tuple(token for token in self._ends if token not in used) if long else ()
            self._plans[variant.hash] = shown, LabelTrie(labels, ends)
        return self._plans[variant.hash]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: those that begin with a line break, and the end mark.

        Where these are more than can be asked for at once, the shortest are taken.
        """
        pieces = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
        breaks = [i for i, piece in enumerate(pieces) if piece.startswith(("\n", "\r"))]
        breaks.sort(key=lambda i: (len(pieces[i]), i))
        ends = [self._tokenizer.eos_token_id, *breaks]
        return tuple(dict.fromkeys(i for i in ends if i is not None))[: ASKED_AT_ONCE // 2]

    def _prompt(self, shown: PromptVariant, text: str) -> list[int]:
        prompt = shown.prefix + shown.suffix(text)
        if not self._chat:
            return self._ids(prompt)
        before, after = self._frame
        return [*before, *self._ids(prompt.rstrip(" "), bare=True), *after]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        return chat_frame(self._tokenizer)

    def _ids(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids; what looks like a control token in the text is plain text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=not bare, split_special_tokens=True, verbose=False
        )["input_ids"]
        if not bare and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text; the prompt continues
        return ids

    def _tidy(self, text: str) -> str:
        """One line without control characters, at most max_text_tokens long."""
        most = self._max_text_tokens
        if len(text) > 64 * most:
            text = f"{text[: 32 * most]} {text[-32 * most :]}"
        text = one_line(text)
        if len(text.encode()) <= most:  # a token is at least a byte
            return text
        if len(text) > 16 * most:
            text = f"{text[: 8 * most]} {text[-8 * most :]}"
        ids = self._ids(text, bare=True)
        if len(ids) <= most:
            return text
        parts = [
            self._tokenizer.decode(part)
            for part in (ids[: most // 2], ids[len(ids) - (most - most // 2) :])
        ]
        return one_line(" ".join(part.strip("\ufffd") for part in parts))
