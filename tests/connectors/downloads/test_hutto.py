"""The demo's data: read safely, joined by id, mapped as the docstring says."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from connectors.downloads import hutto
from connectors.downloads.hutto import (
    INNER,
    PARTS,
    HuttoText,
    load,
    mean_label,
    rating_label,
    write_demo_texts,
)
from connectors.texts.read import load_texts
from loop.errors import DataError, FetchError

TEXTS = (
    "\ufeff1\t9\tSo &amp; so &lt;3\r\n2\t0.0\tBah\r\n3\t0\t:( :(\r\n4\t0\tBah \r\n".encode()
    + b"5\t0\tol\xe9\r\n"
)
RATINGS = "1\t9\t0\t[1, 2]\n2\t0\t0\t[-1, -1, 0]\n3\t0\t0\t[-4]\n4\t0\t0\t[0]\n5\t0\t0\t[1, 0]\n"


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sdist(
    folder: Path,
    texts: bytes | tarfile.TarInfo = TEXTS,
    ratings: str = RATINGS,
    **more: bytes,
) -> Path:
    inner = {
        "hutto_ICWSM_2014/tweets_GroundTruth.txt": texts,
        "hutto_ICWSM_2014/tweets_anonDataRatings.txt": ratings.encode(),
        "/etc/passwd": b"never read",
        "../outside": b"never read",
        **more,
    }
    path = folder / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(tar_of({INNER: tar_of(inner)}))
    return path


def test_texts_and_ratings_are_joined_by_id(tmp_path: Path) -> None:
    texts = load(archive=sdist(tmp_path))
    assert texts[0] == HuttoText("tweets-1", "So & so <3", 1.5, (1, 2))
    assert [t.gold for t in texts] == ["positive", "negative", "negative", "neutral", "positive"]
    assert texts[1].answers == ["negative", "negative", "neutral"]
    assert texts[4].text == "olé"  # a line that is not UTF-8 is read as Windows-1252
    assert not (tmp_path / "outside").exists()


def test_thresholds_are_inclusive_and_symmetric() -> None:
    assert [mean_label(m) for m in (-4, -0.5, -0.4999, 0, 0.4999, 0.5, 4)] == [
        *["negative"] * 2,
        *["neutral"] * 3,
        *["positive"] * 2,
    ]
    assert [rating_label(r) for r in (-1, 0, 1)] == ["negative", "neutral", "positive"]


def test_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("hutto_ICWSM_2014/tweets_GroundTruth.txt")
    link.type = tarfile.SYMTYPE
    link.linkname = "/etc/passwd"
    with pytest.raises(DataError, match="no plain file"):
        load(archive=sdist(tmp_path, texts=link))


def test_oversized_members_and_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sdist(tmp_path)
    monkeypatch.setattr(hutto, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match="too large"):
        load(archive=path)
    monkeypatch.setattr(hutto, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        load(archive=path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no plain file|not a readable archive"),
        (b"not gzip at all", "not a readable archive"),
        (gzip.compress(b"not tar" * 200), "not a readable archive"),
        (tar_of({INNER: b"no archive"}), "not a readable archive"),
        (tar_of({"other": b""}), "no plain file"),
        (tar_of({INNER: tar_of({})})[:200], "not a readable archive"),
    ],
    ids=["empty", "no gzip", "no tar", "no archive within", "other file", "cut short"],
)
def test_broken_archives_give_one_sentence(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=says):
        load(archive=path)


@pytest.mark.parametrize(
    ("ratings", "says"),
    [
        (RATINGS.replace("[1, 2]", "[1, 5]"), "ratings of '1'"),
        (RATINGS.replace("[1, 2]", "[]"), "ratings of '1'"),
        (RATINGS.replace("[1, 2]", "[true]"), "ratings of '1'"),
        (RATINGS.replace("[1, 2]", "__import__('os')"), "ratings of '1'"),
        (RATINGS.replace("2\t0\t0", "1\t0\t0"), "'1' occurs twice"),
        (RATINGS + "6\t0\t0\t[1]\n", "'6' has a text or ratings, not both"),
        (RATINGS + "oops\n", "line 6 has 1 fields"),
    ],
)
def test_damaged_data_give_one_sentence(tmp_path: Path, ratings: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(archive=sdist(tmp_path, ratings=ratings))


def test_unknown_part_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="available: tweets, product"):
        load("tweet", archive=tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load(archive=tmp_path / "none.tar.gz")


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_demo_texts_have_no_duplicates_or_empty_ones(tmp_path: Path, name: str) -> None:
    archive = sdist(tmp_path)
    write_demo_texts(tmp_path / name, pool=2, test=1, seed=3, archive=archive)
    rows = load_texts(str(tmp_path / name), gold_column="gold", split_column="split")
    assert {r.text for r in rows} == {"So & so <3", "Bah", "olé"}
    assert Counter(r.split for r in rows) == {"pool": 2, "test": 1}
    assert {tuple(r.meta["ratings"]) for r in rows} >= {("positive", "positive")}
    with pytest.raises(DataError, match="4 texts are asked for, and tweets has 3"):
        write_demo_texts(tmp_path / name, pool=3, test=1, archive=archive)


# the real thing


def real() -> Path:
    from connectors.downloads.packages import fetch_package

    try:
        return fetch_package(hutto.PACKAGE, hutto.VERSION, hutto.SHA256, source=True)
    except FetchError as exc:
        pytest.skip(str(exc))


@pytest.mark.slow
def test_the_real_data_have_the_published_counts(tmp_path: Path) -> None:
    archive = real()
    expected = {
        "tweets": {"negative": 1087, "neutral": 768, "positive": 2345},
        "product": {"negative": 1235, "neutral": 723, "positive": 1750},
        "movie": {"negative": 5076, "neutral": 533, "positive": 4996},
        "editorial": {"negative": 1783, "neutral": 2220, "positive": 1187},
    }
    sizes = {}
    for part in PARTS:
        texts = load(part, archive=archive)
        sizes[part] = len(texts)
        assert Counter(t.gold for t in texts) == expected[part]
        assert min(len(t.ratings) for t in texts) >= 15
        panel = [Counter(t.answers).most_common(1)[0][0] == t.gold for t in texts]
        assert sum(panel) / len(panel) > 0.85
    assert sizes == {"tweets": 4200, "product": 3708, "movie": 10_605, "editorial": 5190}
    for pool in (100, 600):
        write_demo_texts(
            tmp_path / f"{pool}.jsonl", pool=pool, test=400, dev=60, seed=0, archive=archive
        )
    few, many = (
        {
            r.text
            for r in load_texts(str(tmp_path / f"{pool}.jsonl"), split_column="split")
            if r.split == "test"
        }
        for pool in (100, 600)
    )
    assert few == many
