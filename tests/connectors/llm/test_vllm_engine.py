"""The engine's own logic, with a stand-in for vLLM; tests/vllm holds the real one."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from fault_llm_server import WORDS, log_probs, tokenize, true_masses

from connectors.llm.vllm_engine import VllmAnnotator
from loop.errors import AnnotatorError
from loop.ports import TextItem
from loop.prompt import Demonstration, Label, PromptVariant

NAMES = ("negative", "neutral", "positive")
LONG = ("positive", "positive review", "a complaint")


class Tokenizer:
    eos_token_id = tokenize("</s>", bare=True)[0]

    def __len__(self):
        return 256 + len(WORDS)

    def __call__(self, text, *, add_special_tokens, split_special_tokens=True, verbose=False):
        return {"input_ids": tokenize(text, bare=not add_special_tokens)}

    def decode(self, ids):
        return "".join(chr(i) if i < 256 else WORDS[i - 256] for i in ids)

    def batch_decode(self, rows):
        pieces = [self.decode(row) for row in rows]
        return [p if p in ("\n", "\n\n") else p.replace("\r", "?") for p in pieces]

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        return f"<user>{messages[0]['content']}</s>\nassistant\n"


class Engine:
    """What vLLM would say, and what it was asked."""

    made: ClassVar[list[dict]] = []
    asked: ClassVar[list[list[int]]] = []
    spoil = staticmethod(lambda listed: listed)
    coarse = False

    def __init__(self, **settings):
        Engine.made.append(settings)
        if settings["model"] == "broken":
            raise RuntimeError("no such model\nwith details")
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=settings["max_model_len"] or 4096),
            engine_core=SimpleNamespace(shutdown=lambda: None),
        )

    def get_tokenizer(self):
        return Tokenizer()

    def generate(self, prompts, params, *, use_tqdm):
        out = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            Engine.asked.append(ids)
            values = log_probs(ids, coarse=Engine.coarse)
            listed = {
                i: SimpleNamespace(logprob=float(values[i])) for i in params.logprob_token_ids
            }
            first = SimpleNamespace(logprobs=[Engine.spoil(listed)])
            out.append(SimpleNamespace(outputs=[first], num_cached_tokens=5))
        return out


@pytest.fixture(autouse=True)
def _vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, lambda **how: SimpleNamespace(**how)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "asked", [])


def variant(names=NAMES, **how):
    labels = tuple(map(Label, names))
    return PromptVariant(0, "Feeling?", labels, (Demonstration("so nice", names[0]),), **how)


def items(n):
    return [TextItem(f"i{i}", f"text number {i}") for i in range(n)]


@pytest.mark.parametrize(
    "asked",
    [
        variant(),
        variant(LONG),
        variant(("hate speech", "hate mail", "neutral")),
        variant(label_form="ids", order=(2, 0, 1)),
        variant("abcdefghijkl", label_form="ids"),  # 1 begins 10 and 11
    ],
    ids=["names", "one begins another", "same first token", "ids", "more than ten ids"],
)
def test_equals_the_model(asked):
    answer = VllmAnnotator("m").annotate(asked, items(9))
    masses = np.array(
        [true_masses(asked.prefix + asked.suffix(i.text), asked.continuations) for i in items(9)]
    )
    np.testing.assert_allclose(answer.probs, masses / masses.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(answer.off_label_mass, 1 - masses.sum(axis=1))
    assert answer.tokens.sum() == sum(map(len, Engine.asked)) - 5 * len(Engine.asked)


def test_the_engine_is_started_once_and_late():
    engine = VllmAnnotator("m", dtype="float32", engine={"enforce_eager": True})
    assert not Engine.made
    for _ in range(2):
        engine.annotate(variant(), items(2))
    assert len(Engine.made) == 1
    assert Engine.made[0]["hf_overrides"] == {"head_dtype": "float32"}
    assert Engine.made[0]["enforce_eager"]
    engine.close()
    engine.close()
    engine.annotate(variant(), items(1))
    assert len(Engine.made) == 2


def test_no_items_need_no_engine():
    assert VllmAnnotator("m").annotate(variant(), []).probs.shape == (0, 3)
    assert not Engine.made


def test_a_row_that_is_not_finite_is_no_answer(monkeypatch):
    def spoil(listed):
        if "number 1\n" in Tokenizer().decode(Engine.asked[-1]):
            return {i: SimpleNamespace(logprob=math.nan) for i in listed}
        return listed

    monkeypatch.setattr(Engine, "spoil", staticmethod(spoil))
    answer = VllmAnnotator("m").annotate(variant(), items(3))
    assert np.isnan(answer.probs[1]).all()
    assert np.isfinite(answer.probs[[0, 2]]).all()


def test_chat_marks_in_texts_are_plain_text():
    answer = VllmAnnotator("m", chat=True).annotate(variant(), items(2))
    assert np.isfinite(answer.probs).all()
    assert Tokenizer().decode(Engine.asked[0]).endswith("Label:</s>\nassistant\n")


def test_long_texts_lose_their_middle():
    texts = [TextItem("a", "x" * 5000 + " end"), TextItem("b", "é" * 5000)]
    VllmAnnotator("m", max_text_tokens=32).annotate(variant(), texts)
    assert max(map(len, Engine.asked)) < 140
    assert "x end" in Tokenizer().decode(Engine.asked[0])


@pytest.mark.parametrize(
    ("how", "asked", "said"),
    [
        ({"model": "broken"}, variant(), "cannot run the model broken.*no such model"),
        ({"model": "m", "max_model_len": 50}, variant(), "fewer or shorter demonstrations"),
        ({"model": "m"}, PromptVariant(0, "t", (Label("a b"), Label("a  b")), ()), "look the same"),
    ],
)
def test_refusals(how, asked, said):
    with pytest.raises(AnnotatorError, match=said) as raised:
        VllmAnnotator(**how).annotate(asked, items(2))
    assert "\n" not in str(raised.value)


def test_coarse_probabilities_are_refused(monkeypatch):
    monkeypatch.setattr(Engine, "coarse", True)
    with pytest.raises(AnnotatorError, match="head_dtype"):
        VllmAnnotator("m").annotate(variant(), items(64))


def test_a_vllm_that_ignores_the_option_is_noticed(monkeypatch):
    monkeypatch.setattr(Engine, "spoil", staticmethod(lambda listed: {}))
    with pytest.raises(AnnotatorError, match="logprob_token_ids"):
        VllmAnnotator("m").annotate(variant(), items(2))


def test_without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(AnnotatorError, match=r"pip install goldloop\[vllm\]"):
        VllmAnnotator("m").annotate(variant(), items(2))


def test_settings_out_of_range_are_a_bug():
    for bad in ({"gpu_memory_utilization": 0}, {"max_text_tokens": 7}):
        with pytest.raises(ValueError, match="max_text_tokens"):
            VllmAnnotator("m", **bad)
