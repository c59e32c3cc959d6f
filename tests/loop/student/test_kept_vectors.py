from __future__ import annotations

import numpy as np
import pytest

from loop.chance import stream
from loop.errors import StudentError
from loop.pool_arrays import pool_arrays
from loop.round import run_round
from loop.student import kept_vectors
from loop.student.kept_vectors import (
    item_embeddings,
    item_neighbours,
    item_students,
    kept_judges,
)
from strategies.signals import students
from strategies.signals.neighbours import find_neighbours
from tests.support.campaigns import make
from tests.support.fakes import CentroidStudent


def _files(ctx, of_what):
    return list((ctx.config.out / "cache").glob(f"{of_what}-*.npz"))


def _pool(ctx):
    """The pool's items, their embeddings, the number of classes, labels and weights."""
    items, k = ctx.store.items("c", "pool"), len(ctx.config.labels)
    y, weight = np.arange(len(items)) % k, np.ones(len(items))
    return items, item_embeddings(ctx, items), k, y, weight


def test_embeddings_are_mapped_in_float16_and_files_in_float32_are_read(tmp_path, monkeypatch):
    ctx = make(tmp_path)
    run_round(ctx)
    said = []
    ctx.say = said.append
    items = ctx.store.items("c", "pool")
    right = CentroidStudent().embed([item.text for item in items]).astype(np.float16)
    mapped = item_embeddings(ctx, items)
    np.testing.assert_array_equal(mapped, right)
    assert mapped.dtype == np.float16
    assert not mapped.flags.writeable  # the file itself, not a copy
    assert not mapped[3:7].flags.owndata
    np.testing.assert_array_equal(item_embeddings(ctx, items[::-1]), right[::-1])

    (path,) = _files(ctx, "embeddings")
    ids = np.array([item.id for item in items], dtype="S")
    path.unlink()  # it is mapped
    np.savez(path, ids=ids, embeddings=right.astype(np.float32))
    np.testing.assert_array_equal(item_embeddings(ctx, items), right)
    assert not said

    path.unlink()
    monkeypatch.setattr(kept_vectors, "EMBEDDED_AT_ONCE", 7)
    np.testing.assert_array_equal(item_embeddings(ctx, items), right)
    path.unlink()
    monkeypatch.setattr(ctx.student, "embed", lambda texts, *_: np.full((len(texts), 2), 1e9))
    assert (item_embeddings(ctx, items) == np.finfo(np.float16).max).all()


def test_neighbours_are_looked_for_once_until_there_are_other_texts(tmp_path, monkeypatch):
    ctx = make(tmp_path)
    round_ = run_round(ctx)
    items = ctx.store.items("c", "pool")
    embeddings = item_embeddings(ctx, items)
    right = find_neighbours(embeddings, "test")
    searches, said = [], []
    ctx.say = said.append

    def counting(*args):
        searches.append(args)
        return find_neighbours(*args)

    monkeypatch.setattr("strategies.signals.neighbours.find_neighbours", counting)

    def kept(items=items, embeddings=embeddings):
        neighbours = item_neighbours(ctx, items, embeddings)
        return neighbours.group, neighbours.rows, neighbours.cosines

    for a, b in zip(kept(), (right.group, right.rows, right.cosines), strict=True):
        np.testing.assert_array_equal(a, b)
    pool_arrays(ctx, round_, ("learned_error",))
    assert not searches  # the round found them
    kept(items[1:], embeddings[1:])
    assert len(searches) == 1
    kept()
    (path,) = _files(ctx, "neighbours")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-400])
    kept()
    assert len(searches) == 3
    assert "The neighbours kept in" in said[-1]
    kept()
    assert len(searches) == 3


def test_files_that_hold_something_else_are_made_again(tmp_path):
    """Whoever can write to the folder may also copy the digest of what a file was made of."""
    ctx = make(tmp_path)
    round_ = run_round(ctx)
    items, embeddings, _, y, weight = _pool(ctx)
    said = []
    ctx.say = said.append

    def neighbours():
        return item_neighbours(ctx, items, embeddings).rows

    def probs():
        return item_students(ctx, items, embeddings, y, weight, round_, purpose="repair")

    for kept, what, spoil in (
        (neighbours, "neighbours", lambda a: {"rows": a["rows"] + len(items)}),
        (neighbours, "neighbours", lambda a: {"group": a["group"].astype(np.float64)}),
        (neighbours, "neighbours", lambda a: {"group": a["group"][1:]}),
        (neighbours, "neighbours", lambda a: {"cosines": None}),
        (probs, "repair-students", lambda a: {"probs": a["probs"] * np.nan}),
        (probs, "repair-students", lambda a: {"probs": a["probs"][:, :, :1]}),
        (probs, "repair-students", lambda a: {"more": a["probs"]}),
    ):
        right = kept()
        (path,) = _files(ctx, what)
        with np.load(path) as file:
            arrays = dict(file)
        arrays = {n: a for n, a in (arrays | spoil(arrays)).items() if a is not None}
        path.unlink()  # it is mapped
        np.savez(path, **arrays)
        said.clear()
        np.testing.assert_array_equal(kept(), right)
        assert "cannot be used: it is damaged" in said[0]
    np.savez_compressed(path, **arrays)
    np.testing.assert_array_equal(kept(), right)


def test_students_of_the_same_labels_are_trained_once(tmp_path, monkeypatch):
    ctx = make(tmp_path)
    round_ = run_round(ctx)
    items, embeddings, k, y, weight = _pool(ctx)
    trained = []
    train = students.out_of_fold_probs

    def counting(*args, **kwargs):
        trained.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(students, "out_of_fold_probs", counting)

    def kept(y=y, round_=round_):
        return item_students(ctx, items, embeddings, y, weight, round_, purpose="test")

    first = kept()
    rng = stream("out-of-fold students", round_.seed, round_.number)
    right = train(embeddings, y, weight, k, seeds=ctx.config.student.seeds, rng=rng)
    np.testing.assert_allclose(first, right, atol=1e-6)
    np.testing.assert_array_equal(kept(), first)
    assert len(trained) == 1
    for other in ({"y": np.roll(y, 1)}, {"round_": round_.model_copy(update={"seed": 99})}):
        assert not np.array_equal(kept(**other), first)
    assert len(trained) == 3


def test_a_round_is_measured_by_the_students_that_it_chose_its_texts_by(tmp_path, monkeypatch):
    trained = []
    train = students.out_of_fold_probs

    def counting(*args, **kwargs):
        trained.append(kwargs["seeds"])
        return train(*args, **kwargs)

    monkeypatch.setattr(students, "out_of_fold_probs", counting)
    ctx = make(tmp_path)
    run_round(ctx)
    assert trained.count(ctx.config.student.seeds) == 2, "once for suspicion and once for repair"


def test_students_of_one_labelled_text_are_refused_with_what_to_do(tmp_path):
    ctx = make(tmp_path)
    round_ = run_round(ctx)
    items, embeddings, _, y, weight = _pool(ctx)
    weight = np.where(np.arange(len(weight)) == 3, weight, 0.0)
    with pytest.raises(StudentError, match=r"only 1 has a label .*--retry"):
        item_students(ctx, items, embeddings, y, weight, round_, purpose="test")


def test_an_encoder_that_sees_no_difference_between_texts_is_named(tmp_path, monkeypatch):
    ctx = make(tmp_path)
    monkeypatch.setattr(ctx.student, "embed", lambda texts, *_: np.ones((len(texts), 2)))
    with pytest.raises(StudentError, match=r"sees no difference between the .*student\.encoder"):
        run_round(ctx)
    monkeypatch.setattr(ctx.student, "embed", CentroidStudent().embed)
    ctx.student.revision = "another"
    run_round(ctx)
    assert ctx.store.last_round("c").stage == "done"


def test_opinions_of_judges_are_read_by_text_and_nothing_else_passes_for_them(tmp_path):
    ctx = make(tmp_path, strategy={"repair": "soft", "repair_students": "fine-tuned"})
    round_, said = run_round(ctx), []
    ctx.say = said.append
    items, k = ctx.store.items("c", "pool"), len(ctx.config.labels)
    opinions = kept_judges(ctx, items, round_, k)
    assert opinions.shape == (len(items), k)
    np.testing.assert_array_equal(kept_judges(ctx, items[::-1], round_, k), opinions[::-1])

    (path,) = _files(ctx, "label-judges")
    with np.load(path) as kept:
        held = dict(kept)
    few = {"ids": held["ids"][5:], "probs": held["probs"][5:]}  # five texts have come since
    path.unlink()
    np.savez(path, **few)
    known = np.isfinite(kept_judges(ctx, items, round_, k)).all(axis=1)
    assert (~known).sum() == 5
    np.savez(path, ids=held["ids"], probs=np.empty((0, k)))  # no judge learned anything
    assert kept_judges(ctx, items, round_, k) is None
    assert not said
    for probs in (
        held["probs"][1:],
        held["probs"][:, 1:],
        held["probs"] * 2,
        -held["probs"],
        np.full_like(held["probs"], np.nan),
        held["probs"].astype("S"),
        held["probs"][0],
    ):
        np.savez(path, ids=held["ids"], probs=probs)
        assert kept_judges(ctx, items, round_, k) is None
        assert "it is damaged, or of other labels" in said.pop()
    path.write_bytes(b"PK")
    assert kept_judges(ctx, items, round_, k) is None
    assert "it is damaged. Suspicion goes without what they said in round 1" in said.pop()
    path.unlink()
    assert kept_judges(ctx, items, round_, k) is None
    assert "they are missing" in said.pop()
