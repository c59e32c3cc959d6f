"""Tiny random encoders and texts that they can learn, for tests that train for real."""

import numpy as np

from loop.ports import TrainingSet
from loop.student.encoder_student import EncoderStudent

LABELS = ("good", "bad", "ugly")
WORDS = {
    "good": ["great", "lovely", "superb", "happy", "delightful", "charming", "brilliant", "warm"],
    "bad": ["awful", "dreadful", "poor", "sad", "boring", "terrible", "weak", "cold"],
    "ugly": ["hideous", "grim", "nasty", "foul", "horrid", "gross", "vile", "rotten"],
}
FILLERS = [
    "the",
    "film",
    "was",
    "a",
    "story",
    "with",
    "scenes",
    "about",
    "people",
    "and",
    "it",
    "felt",
]


def make_texts(n, seed=0, labels=LABELS):
    """n texts whose class shows in two of their words, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(labels), n)
    texts = []
    for c in y:
        words = list(rng.choice(FILLERS, rng.integers(4, 12)))
        for word in rng.choice(WORDS[labels[c]], 2):
            words.insert(int(rng.integers(len(words))), str(word))
        texts.append(" ".join(words))
    return texts, y


def training_set(texts, y, k=3, weight=None, dev=None):
    return TrainingSet(texts, np.eye(k)[y], np.ones(len(y)) if weight is None else weight, dev)


def fit(student, train, eval_texts, seeds=(0,), labels=LABELS, keep=None, **extra):
    """Seed -> result."""
    found = {}

    def on_seed(result):
        found[result.seed] = result

    student.fit(train, eval_texts, labels, seeds, keep=keep or {}, on_seed=on_seed, **extra)
    return found


def tiny_student(folder, **changes):
    settings = {"epochs": 14, "lr": 2e-3, "workers": 1, "precision": "fp32", "device": "cpu"}
    return EncoderStudent(folder, **(settings | changes))


def save_tokenizer(folder, kind="bert"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({*FILLERS, *(w for ws in WORDS.values() for w in ws)})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if "roberta" in kind:  # whose padding is token 1
        specials = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocab = {word: i for i, word in enumerate([*specials, *words, *(f"w{i}" for i in range(40))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return len(vocab)


def save_encoder(folder, kind="bert"):
    """A tiny random encoder of one of the families that users name."""
    import torch
    import transformers

    n_tokens = save_tokenizer(folder, kind)
    torch.manual_seed(7)
    size = {
        "vocab_size": n_tokens,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "pad_token_id": 1 if "roberta" in kind else 0,
    }
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=n_tokens, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0
        )
    elif kind == "modernbert":
        rest = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        config = transformers.ModernBertConfig(**size, **rest)
    else:
        name = {"bert": "Bert", "mpnet": "MPNet", "deberta": "DebertaV2"}.get(kind, "Roberta")
        if kind == "distilroberta":  # RoBERTa with half the layers
            size["num_hidden_layers"] = 1
        config = getattr(transformers, f"{name}Config")(**size)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder
