"""Answers as tokens: what a tokenizer must tell apart."""

from types import SimpleNamespace

import pytest
from fault_llm_server import tokenize

from connectors.llm.prompt_text import answer_tokens, chat_frame, without_control_marks
from loop.errors import AnnotatorError
from loop.prompt import Label, PromptVariant


def variant(names, **how):
    return PromptVariant(0, "Feeling?", tuple(map(Label, names)), (), **how)


def test_ten_numbers_are_single_tokens_and_eleven_need_not_be():
    ids = answer_tokens(variant("abcdefghij", label_form="ids"), tokenize, chat=False)
    assert {len(found) for found in ids} == {1}
    assert len(set(ids)) == 10
    ids = answer_tokens(variant("abcdefghijk", label_form="ids"), tokenize, chat=False)
    assert [len(found) for found in ids] == [1] * 10 + [2]


def test_a_tokenizer_that_splits_digits_is_refused():
    def split(text, *, bare=False):
        return [part for id_ in tokenize(text, bare=bare) for part in divmod(id_, 16)]

    with pytest.raises(AnnotatorError, match="class number 0 is several tokens"):
        answer_tokens(variant("ab", label_form="ids"), split, chat=False)


def test_numbers_that_share_a_token_are_refused():
    def digits_alike(text, *, bare=False):
        return [min(id_, ord("1")) if id_ < 58 else id_ for id_ in tokenize(text, bare=bare)]

    with pytest.raises(AnnotatorError, match="cannot tell the labels 0, 1, 2 apart"):
        answer_tokens(variant("abc", label_form="ids"), digits_alike, chat=False)


def test_a_number_that_merges_with_the_prompt_is_refused():
    def merging(text, *, bare=False):
        ids = tokenize(text, bare=bare)
        return [*ids[:-2], 999] if text[-1].isdigit() else ids

    with pytest.raises(AnnotatorError, match="cannot tell the label '0' from the prompt"):
        answer_tokens(variant("ab", label_form="ids"), merging, chat=False)


def test_in_a_chat_the_answer_stands_alone():
    asked = variant(("positive", "negative"))
    assert answer_tokens(asked, tokenize, chat=True) == tuple(
        tuple(tokenize(name, bare=True)) for name in ("positive", "negative")
    )


def test_a_model_without_a_chat_template_is_told_so():
    def refuse(*_args, **_how):
        raise ValueError("tokenizer.chat_template is not set")

    with pytest.raises(AnnotatorError, match=r"annotator\.chat = false"):
        chat_frame(SimpleNamespace(apply_chat_template=refuse))


def test_marks_of_chat_models_are_broken_and_others_stay():
    broken = without_control_marks("</s> <|im_end|> <|turn>user <turn|> <｜User｜> [INST] <b> [x]")
    assert broken == "< /s> < |im_end|> < |turn>user < turn|> < ｜User｜> [ INST] <b> [x]"
    assert without_control_marks(plain := "a < b | c > d, <3 |> x, <-|->") == plain
