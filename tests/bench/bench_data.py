"""The data sets of the strategy benchmark: which rows, which LLM, which split, which role.

*Development* sets may be looked at while a policy is tuned; *reporting* sets may not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.downloads import hutto
from connectors.downloads.models import minilm_dir
from connectors.downloads.packages import cache_dir
from loop.bench.data_sets import BenchData
from loop.hardware import cpu_has_bf16
from strategies.calibrate import batch_calibrate

BABE_GPT35 = tuple(
    f"llm_gpt_3_5__{s}" for s in ("2shot", "0shot", "0shot_system_prompt", "4shot", "8shot")
)
BABE_LLAMA = tuple(f"llm_llama_13b__{s}" for s in ("4shot", "2shot", "8shot", "2shot_cot", "0shot"))


@dataclass(frozen=True)
class Source:
    """Where one data set's texts and LLM labels come from.

    Attributes:
        file: Parquet file without its ending.
        role: 'development' or 'reporting'.
        columns: columns with LLM labels, the first is the label and all are the votes; none means
            labels of the embedded language model, read from ``<labels folder>/<name>.npz``.
        only: column -> value that rows must have.
        confidence: column with the first vote's probability.
        part: instead of a file, the part of the demo's data (Hutto & Gilbert 2014) that it is.
        pool, test: at most this many rows of either split, drawn with a fixed seed.
    """

    name: str
    file: str
    role: str
    columns: tuple[str, ...] = ()
    only: tuple[tuple[str, str], ...] = ()
    confidence: str | None = None
    ordinal: tuple[str, ...] = ()
    part: str | None = None
    pool: int = 2500
    test: int = 1500


DEMO = Source("demo_tweets", "demo_tweets", "reporting", part="tweets")
"""The demo's tweets with recorded human ratings: needs nothing but the packages."""

FIVE = ("very negative", "negative", "neutral", "positive", "very positive")
STRONG = 2.0  # mean rating, of -4 to +4, from which a text is very negative or very positive
HUTTO = tuple(
    Source(f"hutto_{part}_{k}", f"hutto_{part}", "development", ordinal=order, part=part, test=600)
    for k, order in ((3, hutto.LABELS), (5, FIVE))
    for part in hutto.PARTS
)
"""The four sets that the demo could take, with three and with five classes; run where named."""


def _css(task: str, label: str, role: str = "reporting") -> Source:
    others = ("flan_ul2", "flan_t5_xxl", "chatgpt", "text_davinci_003", "flan_t5_xl")
    columns = (label, *(o for o in others if o != label))[:5]
    return Source(
        f"css_{task}", "css_llm", role, tuple(f"llm_{c}" for c in columns), (("task", task),)
    )


SOURCES = (
    Source("mr", "mr_llm", "development", ("llm_gpt35",), (("llm_gpt35_source", "llm"),)),
    Source("babe_gpt35", "babe_llm", "development", BABE_GPT35),
    Source("babe_llama13b", "babe_llm", "development", BABE_LLAMA),
    _css("emotion", "flan_ul2", "development"),
    _css("stance_trump", "chatgpt", "development"),
    _css("ideology_article", "chatgpt", "development"),
    _css("implicit_hate", "flan_ul2", "development"),
    _css("wiki_power", "flan_ul2", "development"),
    Source("manifestos", "manifestos", "development"),
    # Texts of the sets above, labelled again by the embedded language model, which has states.
    Source("mr_smollm2", "mr_llm", "development", pool=1600, test=600),
    Source("babe_smollm2", "babe_llm", "development", pool=1600, test=600),
    Source("emotion_smollm2", "css_llm", "development", only=(("task", "emotion"),)),
    Source("stance_smollm2", "css_llm", "development", only=(("task", "stance_trump"),)),
    Source("imdb", "imdb", "reporting", ("llm_llama2_70b",)),
    Source("gwsd", "gwsd_llm", "reporting", ("llm_gpt4o",), confidence="llm_gpt4o_confidence"),
    _css("discourse", "flan_t5_xxl"),
    _css("figurative_language", "flan_ul2"),
    _css("ideology_sentence", "chatgpt"),
    _css("misinformation", "flan_ul2"),
    _css("politeness", "flan_t5_xl"),
    Source("toxic", "toxic", "reporting"),
    Source("ecommerce", "ecommerce", "reporting"),
    Source(
        "sst5",
        "sst5",
        "reporting",
        ordinal=("very negative", "negative", "neutral", "positive", "very positive"),
    ),
)


WRITERS = {
    "tweets": "the writer of the tweet",
    "product": "the writer of this sentence about a product",
    "movie": "the writer of this sentence about a film",
    "editorial": "the writer of this sentence from an editorial",
}
TASKS = {
    "mr_smollm2": "Decide whether the sentence judges the film favourably or not.",
    "babe_smollm2": "Decide whether the news sentence is biased or not.",
    "emotion_smollm2": "Decide which emotion the text expresses.",
    "stance_smollm2": "Decide whether the tweet is in favour of Trump, against him, or neither.",
    "manifestos": "Decide whether the sentence of an election manifesto is about the past, the"
    " present or the future.",
    "toxic": "Decide whether the tweet is hate speech, offensive language or neither.",
    "ecommerce": "Decide which department of the shop sells the product.",
    "sst5": "Decide how the sentence judges the film.",
    "demo_tweets": "Decide whether the tweet is negative, neutral or positive.",
    **{source.name: f"Decide how {WRITERS[str(source.part)]} feels." for source in HUTTO},
}
"""What the embedded language model is asked, for the sets that have no LLM labels of their own."""

ASIDE = 60  # labelled examples set aside for demonstrations and the class mix, never in the pool
SHOTS, VARIANTS = 3, 3
LABELLED = 1600  # texts of a pool that the embedded language model labels


@dataclass(frozen=True)
class Texts:
    """Rows of one data set: the pool to label, the held-out test texts, examples set aside."""

    ids: list[str]
    texts: list[str]
    gold: list[str]
    frame: Any
    test_texts: list[str]
    test_gold: list[str]
    labels: tuple[str, ...]
    aside: list[tuple[str, str]]


def read_texts(source: Source, data: Path | None) -> Texts | None:
    """The rows of a source, or None where its file is missing."""
    import pandas as pd

    if source.part is not None:
        frame = _hutto_frame(source.part, five=source.ordinal == FIVE)
    elif data is None or not (data / f"{source.file}.parquet").exists():
        return None
    else:
        frame = pd.read_parquet(data / f"{source.file}.parquet")
    train = frame["split"] == "train"
    for column, value in source.only:
        # The test split of some files has no such column filled in.
        keep = frame[column] == value
        frame = frame[keep | ((~train) & frame[column].isna())]
        train = frame["split"] == "train"
    labels = source.ordinal or tuple(sorted(frame["label"].unique()))
    pool, test = frame[train], frame[frame["split"] == "test"]
    for column in source.columns[:1]:
        pool = pool[pool[column].isin(labels)]
    aside: list[tuple[str, str]] = []
    if not source.columns:
        shown = pool.sample(ASIDE, random_state=1)
        aside = list(zip(shown["text"], shown["label"], strict=True))
        pool = pool.drop(shown.index)
    pool = _draw(pool, source.pool)
    test = _draw(test, source.test)
    return Texts(
        list(pool["id"]),
        list(pool["text"]),
        list(pool["label"]),
        pool,
        list(test["text"]),
        list(test["label"]),
        labels,
        aside,
    )


def _hutto_frame(part: str, *, five: bool) -> Any:
    import pandas as pd

    rows = hutto.load(part)
    frame = pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "text": [row.text for row in rows],
            "label": [
                f"very {row.gold}" if five and abs(row.mean) >= STRONG else row.gold for row in rows
            ],
        }
    )
    is_test = np.random.default_rng(0).permutation(len(frame)) < 0.3 * len(frame)
    frame["split"] = np.where(is_test, "test", "train")
    return frame


def label_missing(
    source: Source, data: Path | None, *, count: int = LABELLED, prompts: int = VARIANTS
) -> None:
    """Labels a set that has no LLM labels of its own, unless that was done before."""
    texts = None if source.columns else read_texts(source, data)
    if texts is not None:
        label_with_llm(source, texts, cache_dir() / "bench", count=count, prompts=prompts)


def label_with_llm(
    source: Source,
    texts: Texts,
    folder: Path,
    *,
    count: int = LABELLED,
    prompts: int = VARIANTS,
) -> Path:
    """Labels the pool with the embedded language model, and keeps what it said in the folder.

    Args:
        count: at most so many texts.
        prompts: prompt variants; the states of the first are kept.
    """
    path = folder / f"{source.name}.npz"
    if path.exists():
        return path
    from connectors.llm.local_lm import LocalLM
    from loop.llm.prompts import draw_demonstrations
    from loop.ports import TextItem
    from loop.prompt import Demonstration, Label, PromptVariant

    shortest = sorted((Demonstration(t, y) for t, y in texts.aside), key=lambda d: len(d.text))
    sets = draw_demonstrations(
        shortest[: 2 * len(shortest) // 3],
        texts.labels,
        shots=max(SHOTS, len(texts.labels)),
        variants=prompts,
        rng=np.random.default_rng(0),
    )
    labels = tuple(Label(name) for name in texts.labels)
    drawn = np.random.default_rng(1).permutation(len(texts.ids))[:count]
    items = [TextItem(texts.ids[i], texts.texts[i]) for i in drawn]
    model = LocalLM(max_text_tokens=96, threads=1)
    answers = [
        model.annotate(PromptVariant(v, TASKS[source.name], labels, shown), items)
        for v, shown in enumerate(sets)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        ids=np.array([item.id for item in items]),
        probs=np.stack([a.probs for a in answers], axis=1),
        off_label_mass=np.stack([a.off_label_mass for a in answers], axis=1),
        revision=np.array(model.revision),
        states=answers[0].states,
    )
    return path


def _draw(frame: Any, n: int) -> Any:
    return frame.sample(n, random_state=0).sort_index() if len(frame) > n else frame


def embed(name: str, texts: list[str], *, max_tokens: int = 256) -> NDArray[np.float32]:
    """(n, d) mean-pooled embeddings of the embedded encoder, kept in the cache folder."""
    key = hashlib.sha256("\0".join([str(max_tokens), *texts]).encode()).hexdigest()[:16]
    path = cache_dir() / "bench" / f"{name}-{key}.npy"
    if path.exists():
        cached: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return cached
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_dir()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), int(model.config.hidden_size)), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in rows],
                truncation=True,
                max_length=max_tokens,
                padding=True,
                return_tensors="pt",
            )
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_has_bf16()):
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            mean = (hidden.float() * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, out, allow_pickle=False)
    partial.replace(path)
    return out


def load(
    source: Source, data: Path | None, *, labels_folder: Path | None = None
) -> BenchData | None:
    """A data set for the benchmark, or None where its texts or LLM labels are missing.

    Args:
        labels_folder: of ``label_with_llm``; None is that of ``label_missing``.
    """
    texts = read_texts(source, data)
    if texts is None:
        return None
    k = len(texts.labels)
    index = {name: i for i, name in enumerate(texts.labels)}
    gold = np.array([index[y] for y in texts.gold], dtype=np.int64)
    n = len(gold)
    mass = states = None
    chosen = np.arange(n)
    if source.columns:
        probs = np.full((n, len(source.columns), k), np.nan)
        for v, column in enumerate(source.columns):
            said = np.array([index.get(y, -1) for y in texts.frame[column]], dtype=np.int64)
            rows = np.flatnonzero(said >= 0)
            probs[rows, v] = np.eye(k)[said[rows]]
        if source.confidence:
            sure = np.clip(texts.frame[source.confidence].fillna(1.0).to_numpy(), 1 / k, 1.0)
            rest = (1.0 - sure) / (k - 1)
            probs[:, 0] = np.where(probs[:, 0] == 1, sure[:, None], rest[:, None])
        y_llm = np.nanargmax(probs[:, 0], axis=1).astype(np.int64)
    else:
        folder = labels_folder or cache_dir() / "bench"
        if not (folder / f"{source.name}.npz").exists():
            return None
        held = np.load(folder / f"{source.name}.npz", allow_pickle=False)
        place = {item: i for i, item in enumerate(texts.ids)}
        chosen = np.array([place[str(item)] for item in held["ids"]])
        probs, mass = held["probs"], held["off_label_mass"]
        states = held.get("states")  # older files have none
        # A flat class mix, goldloop's own default, though some of the sets are skewed.
        calibrated = np.nanmean(batch_calibrate(probs), axis=1)
        y_llm = calibrated.argmax(axis=1).astype(np.int64)
    return BenchData(
        source.name,
        texts.labels,
        probs,
        y_llm,
        gold[chosen],
        embed(source.file, [texts.texts[i] for i in chosen]),
        embed(f"{source.file}-test", texts.test_texts),
        np.array([index[y] for y in texts.test_gold], dtype=np.int64),
        [texts.texts[i] for i in chosen],
        texts.test_texts,
        off_label_mass=mass,
        ordinal=bool(source.ordinal),
        role=source.role,
        states=states,
    )
