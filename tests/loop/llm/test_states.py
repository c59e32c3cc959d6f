"""The LLM's hidden states: kept before the votes, found by text, lost only where damaged."""

import logging
import os

import numpy as np
import pytest
from campaigns import make, stored_votes, texts

from loop.llm.ask import take_votes
from loop.llm.prompts import freeze_variants
from loop.llm.states import HEAD_BYTES, StateFile, kept_states
from loop.llm.votes import read_votes
from loop.next_round import open_campaign
from loop.pool_arrays import llm_states, pool_arrays
from loop.ports import ClassProbs, no_progress
from loop.round import run_round

D = 6
IDS = [f"{i:020x}" for i in range(9)]


def values(ids, d=D):
    return np.array([[int(i, 16) % 997 + j for j in range(d)] for i in ids], dtype=np.float16)


class SeeingLLM:
    """Answers the plain truth, and shows its states."""

    revision = "seeing"

    def __init__(self, mute=()):
        self.asked, self.mute = [], set(mute)

    def annotate(self, variant, items):
        self.asked += [(variant.index, item.id) for item in items]
        number = np.array([int(item.text.split()[-1]) for item in items])
        probs = np.where((number % 2 == 1)[:, None], (0.1, 0.9), (0.8, 0.2))
        states = values([item.id for item in items])
        mute = np.isin(number, list(self.mute))
        probs[mute], states[mute] = np.nan, np.nan
        n = len(items)
        return ClassProbs(probs, np.zeros(n), np.full(n, 10), states=states)

    def most_tokens(self, variant, items):
        return np.full(len(items), 10), np.zeros(len(items), dtype=np.int64)

    def close(self):
        pass


def campaign(tmp_path, llm, n):
    shown = [{"text": "fine example", "label": "good"}, {"text": "sad example", "label": "bad"}]
    prompt = {"shots": 2, "variants": 2, "demonstrations": shown}
    ctx = make(tmp_path, rows=texts(n), annotator={"kind": "local_lm"}, prompt=prompt)
    ctx.__dict__["annotator"] = llm
    open_campaign(ctx)
    return ctx


def annotate(ctx):
    items = ctx.store.items("c", "pool")
    variants = freeze_variants(ctx.config, ctx.store, ctx.annotator.revision)
    take_votes(ctx.config, ctx.store, ctx.annotator, items, variants, progress=no_progress)
    return items


def test_states_are_found_by_text_and_the_last_one_counts(tmp_path):
    file = StateFile.of(tmp_path, "model@1", "abc")
    assert file.read(IDS) is None
    states = values(IDS)
    states[3] = np.nan
    file.add(IDS[:5], states[:5])
    file.add(IDS[5:], states[5:])
    file.add(IDS[:1], states[:1] + 1)
    kept = file.read([*IDS[::-1], "f" * 20])
    states[0] += 1
    np.testing.assert_array_equal(kept[:9], states[::-1])
    assert np.isnan(kept[9]).all()
    assert kept.dtype == np.float16
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert StateFile.of(tmp_path, "model@1", "abd").path != file.path


def test_a_file_cut_at_any_byte_keeps_every_whole_record_and_can_be_added_to(tmp_path):
    file = StateFile(tmp_path / "s.bin")
    file.add(IDS, values(IDS))
    whole = file.path.read_bytes()
    record = (len(whole) - HEAD_BYTES) // len(IDS)
    for size in (0, 5, HEAD_BYTES, *range(HEAD_BYTES + 1, len(whole), 7)):
        file.path.write_bytes(whole[:size])
        complete = max(0, size - HEAD_BYTES) // record
        kept = file.read(IDS)
        assert (size < HEAD_BYTES) == (kept is None)
        if kept is not None:
            assert np.isfinite(kept[:, 0]).sum() == complete
        file.add(IDS[complete:], values(IDS[complete:]))
        np.testing.assert_array_equal(file.read(IDS), values(IDS))
        assert file.path.read_bytes() == whole


def test_damage_costs_the_texts_that_it_hit(tmp_path):
    file = StateFile(tmp_path / "s.bin")
    file.add(IDS, values(IDS))
    data = bytearray(file.path.read_bytes())
    record = (len(data) - HEAD_BYTES) // len(IDS)
    for at in range(record):  # the checksum, the id, the state
        damaged = data.copy()
        damaged[HEAD_BYTES + 4 * record + at] ^= 0xFF
        file.path.write_bytes(damaged)
        assert np.isnan(file.read(IDS)).all(axis=1).tolist() == [i == 4 for i in range(9)]
    data[3] ^= 1
    file.path.write_bytes(data)
    assert file.read(IDS) is None
    answered = np.ones(9, dtype=np.bool_)
    assert "9 of 9 texts" in kept_states(file, IDS, answered).news
    file.add(IDS[:2], values(IDS[:2], d=4))  # another model's states begin the file again
    assert file.read(IDS).shape == (9, 4)


def test_few_missing_states_are_said_and_many_leave_all_out(tmp_path):
    file = StateFile(tmp_path / "s.bin")
    ids = [f"{i:020x}" for i in range(40)]
    answered = np.arange(40) != 39
    nothing = kept_states(file, ids, answered)
    assert (nothing.values, nothing.news) == (None, "")
    file.add(ids[:39], values(ids[:39]))
    complete = kept_states(file, ids, answered)
    assert complete.values.shape == (40, D)
    assert not complete.news  # the last one got no answer, so that nothing is lacking
    file.path.unlink()
    file.add(ids[:38], values(ids[:38]))
    few = kept_states(file, ids, answered)
    assert few.values is not None
    assert few.news.startswith("1 of 39 texts have no usable state")
    file.path.unlink()
    file.add(ids[:20], values(ids[:20]))
    many = kept_states(file, ids, answered)
    assert many.values is None
    assert "19 of 39" in many.news


def test_states_that_are_all_the_same_are_said_and_left_out(tmp_path):
    file = StateFile(tmp_path / "s.bin")
    file.add(IDS, np.ones((9, D), dtype=np.float16))
    held = kept_states(file, IDS, np.arange(9) != 8)
    assert held.values is None
    assert "states of all 8 texts" in held.news
    few = StateFile(tmp_path / "few.bin")
    ids = [f"{i:020x}" for i in range(40)]
    few.add(ids[1:], np.ones((39, D), dtype=np.float16))
    assert "states of all 39 texts" in kept_states(few, ids, np.ones(40, dtype=bool)).news
    file.add(IDS[:1], np.zeros((1, D), dtype=np.float16))
    assert kept_states(file, IDS, np.arange(9) != 8).values is not None


@pytest.mark.parametrize("dies", ["before the states", "after the states", "in the states"])
def test_killed_anywhere_no_vote_is_without_its_state(tmp_path, monkeypatch, dies):
    monkeypatch.setattr("loop.llm.ask.CHUNK", 32)
    monkeypatch.setattr("loop.llm.ask.KEPT_BACK", 32)
    ctx = campaign(tmp_path, SeeingLLM(), 160)
    add, seen = StateFile.add, []

    def killed(self, item_ids, states):
        seen.append(len(item_ids))
        if len(seen) < 3:
            return add(self, item_ids, states)
        if dies == "in the states":
            add(self, item_ids, states)
            os.truncate(self.path, self.path.stat().st_size - 11)
        elif dies == "after the states":
            add(self, item_ids, states)
        raise KeyboardInterrupt

    monkeypatch.setattr(StateFile, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        annotate(ctx)
    monkeypatch.setattr(StateFile, "add", add)
    first = ctx.store.variants("c", "seeing")[0].hash
    voted = {item_id for item_id, variant in stored_votes(ctx.store) if variant == first}
    assert len(voted) == 64
    items = ctx.store.items("c", "pool")
    kept = StateFile.of(ctx.config.out, "seeing", first).read([i.id for i in items])
    assert voted <= {i.id for i, s in zip(items, kept, strict=True) if np.isfinite(s[0])}
    ctx.__dict__["annotator"] = again = SeeingLLM()
    annotate(ctx)
    assert not voted & {item for variant, item in again.asked if variant == 0}
    states = llm_states(ctx, items, np.ones(len(items), dtype=np.bool_))
    np.testing.assert_array_equal(states.values, values([i.id for i in items]))
    assert not states.news


def test_a_disk_without_room_costs_the_states_and_not_the_votes(tmp_path, monkeypatch, caplog):
    def full(self, item_ids, states):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateFile, "add", full)
    ctx = campaign(tmp_path, SeeingLLM(), 60)
    with caplog.at_level(logging.WARNING):
        items = annotate(ctx)
    assert "states cannot be kept" in caplog.text
    assert read_votes(ctx.config, ctx.store, "seeing", items).answered.all()


def test_the_pool_has_the_states_of_the_first_prompt_and_says_which_are_lost(tmp_path):
    ctx = campaign(tmp_path, SeeingLLM(mute=range(8)), 120)
    said = []
    ctx.say = said.append
    run_round(ctx)
    round_ = ctx.store.last_round("c")
    arrays = pool_arrays(ctx, round_, ("learned_error",))
    ids = [i.id for i in arrays.items]
    said_of = ctx.store.texts(ids)
    mute = np.array([int(said_of[i].split()[-1]) < 8 for i in ids])
    assert mute.any()
    assert np.isnan(arrays.pool.states[mute]).all()
    np.testing.assert_array_equal(arrays.pool.states[~mute], values(ids)[~mute])
    assert pool_arrays(ctx, round_, ("entropy",)).pool.states is None
    assert not [line for line in said if "usable state" in line]
    (file,) = (ctx.config.out / "states").iterdir()
    with file.open("r+b") as cut:
        cut.truncate(HEAD_BYTES + 1000)
    run_round(ctx)
    assert [line for line in said if "usable state" in line]
    assert ctx.store.last_round("c").stage == "done"
