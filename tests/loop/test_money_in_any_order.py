"""Whatever happens in whatever order, what may have to be paid never passes the cap."""

import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from campaigns import LABELS, make, texts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import loop.llm.ask
import loop.llm.new_examples
import loop.round
from loop.campaign.store import Store
from loop.errors import AnnotatorError, LoopError
from loop.llm.ask import retry_unanswered
from loop.llm.prompts import stored_variants
from loop.money import account
from loop.next_round import open_campaign
from loop.people.answers import withdraw_unanswered
from loop.ports import ClassProbs
from loop.report.status import campaign_status
from loop.round import close_early, run_round, run_stage
from loop.studies.rivals import Renamed, ask_rival
from loop.studies.validate import open_validation

PRICE_USD, TOKEN_USD = 0.1, 0.001
CENT = 1e-6  # sums of floats
MOST_TOKENS = 40
ROWS = texts(24)


class KilledError(BaseException):
    """The process is gone."""


class Kills:
    """Kills the process at the n-th of the places where it matters."""

    def __init__(self):
        self.left = 0

    def here(self):
        if self.left:
            self.left -= 1
            if not self.left:
                raise KilledError


class BillingLLM:
    """Bills every call at once, whether or not anybody hears of the answer."""

    revision = "billing"

    def __init__(self, kills):
        self.kills, self.bill_usd, self.moods = kills, 0.0, 0

    def most_tokens(self, variant, items):
        n = len(items)
        return np.full(n, MOST_TOKENS, dtype=np.int64), np.zeros(n, dtype=np.int64)

    def annotate(self, variant, items):
        self.moods += 1
        rng = np.random.default_rng([self.moods, len(items)])
        tokens = rng.integers(10, MOST_TOKENS + 1, len(items))
        self.kills.here()
        self.bill_usd += TOKEN_USD * tokens.sum()
        self.kills.here()
        if rng.random() < 0.1:
            raise AnnotatorError("The server is down.", tokens=(int(tokens.sum()), 0, 0))
        probs = rng.dirichlet(np.ones(len(variant.labels)), len(items))
        probs[rng.random(len(items)) < 0.1] = np.nan
        return ClassProbs(probs, np.zeros(len(items)), tokens)

    def close(self):
        pass


class StreamingLLM(BillingLLM):
    """Answers in any order, while it takes further questions."""

    def annotate_stream(self, variant, lots):
        rng = np.random.default_rng(self.moods)
        asked = []
        for lot in lots:
            asked += lot
            assert asked, "an empty lot, although nothing is under way"
            keep = rng.integers(8) if lot else 0
            while len(asked) > keep:
                batch = [asked.pop(rng.integers(len(asked))) for _ in asked[: rng.integers(1, 4)]]
                yield batch, self.annotate(variant, batch)
        if asked:
            yield asked, self.annotate(variant, asked)


def skipped(stage):
    """A stage that spends nothing, done at once."""
    return lambda ctx, round_: loop.round._advance(ctx, round_, stage)


class Campaign(RuleBasedStateMachine):
    template = None

    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory(prefix="goldloop-money-")
        self.kills = Kills()
        self.before = dict(loop.round.RUN), loop.llm.ask.CHUNK, loop.llm.new_examples.TRIED_FROM
        loop.round.RUN.update({s: skipped(s) for s in ("repair", "train", "measure")})
        loop.llm.ask.CHUNK, loop.llm.new_examples.TRIED_FROM = 4, 2
        if Campaign.template is None:
            Campaign.template = TemporaryDirectory(prefix="goldloop-money-")
            Store(f"sqlite:///{Campaign.template.name}/c.db").close()
        shutil.copy(Path(Campaign.template.name) / "c.db", self.folder.name)

    def teardown(self):
        if hasattr(self, "ctx"):
            self.ctx.store.close()
        loop.round.RUN.update(self.before[0])
        loop.llm.ask.CHUNK, loop.llm.new_examples.TRIED_FROM = self.before[1:]
        self.folder.cleanup()

    @initialize(
        cap=st.floats(0.3, 6.0),
        overlap=st.integers(1, 3),
        rule=st.sampled_from(["majority", "ask-one-more", "dawid-skene"]),
        early_stop=st.booleans(),
        judged=st.booleans(),
        check_frac=st.sampled_from([0.0, 0.25, 0.5]),
        refresh=st.sampled_from(["never", "better", "round"]),
        calibrate=st.sampled_from(["none", "contextual"]),
        validates=st.booleans(),
        streams=st.booleans(),
    )
    def begin(
        self,
        cap,
        overlap,
        rule,
        early_stop,
        judged,
        check_frac,
        refresh,
        calibrate,
        validates,
        streams,
    ):
        self.llm = (StreamingLLM if streams else BillingLLM)(self.kills)
        overlap = max(overlap, 2 if rule == "dawid-skene" else 1)
        self.settings = {
            "labels": [{"name": name} for name in LABELS],
            "texts": {"source": "x.csv", "gold_column": "g", "dev_items": 4},
            "annotator": {"kind": "local_lm", "usd_per_million_tokens": TOKEN_USD * 1e6},
            "prompt": {"shots": 1, "variants": 2, "refresh": refresh, "calibrate": calibrate},
            "budget": {"labels": 12, "usd": cap, "usd_per_label": PRICE_USD},
            "rounds": {"batch_size": 4, "rounds": 9, "audit_frac": 0.5},
            "people": {
                "overlap": overlap,
                "rule": rule,
                "early_stop": early_stop,
                "adjudicator": "judge" if judged else None,
                "check_frac": check_frac,
            },
        }
        self.opened()
        self.tried(lambda: open_campaign(self.ctx))
        self.validates = validates
        if validates:
            self.tried(lambda: open_validation(self.ctx, 3))

    def opened(self):
        """A new process."""
        if hasattr(self, "ctx"):
            self.ctx.store.close()
        self.ctx = make(Path(self.folder.name), raters=False, rows=ROWS, **self.settings)
        self.ctx.__dict__["annotator"] = self.llm
        self.wrap()

    def wrap(self):
        """Lets the process be killed before and after each commit, and after Label Studio acted."""
        ctx, kills = self.ctx, self.kills
        commit = ctx.store.transaction

        @contextmanager
        def transaction():
            with commit() as session:
                yield session
                kills.here()
            kills.here()

        ctx.store.transaction = transaction
        self.reviewer = ctx.parts.reviewer()
        ctx.__dict__["reviewer"] = reviewer = type(self.reviewer)(self.reviewer.path)
        for name in ("send", "ask", "withdraw"):
            setattr(reviewer, name, self.deadly(getattr(reviewer, name)))

    def deadly(self, act):
        """The process may be killed before the act and after it."""

        def acted(*given):
            self.kills.here()
            answer = act(*given)
            self.kills.here()
            return answer

        return acted

    def tried(self, work):
        """One command; it may be refused, and it may be killed."""
        try:
            work()
        except LoopError:
            pass
        except KilledError:
            self.kills.left = 0
            self.opened()

    # what is done

    @rule(places=st.integers(1, 60))
    def die_soon(self, places):
        self.kills.left = places

    @rule()
    def run(self):
        self.tried(lambda: run_round(self.ctx))

    @rule(stage=st.sampled_from(["annotate", "score", "select", "push", "pull"]))
    def run_one_stage(self, stage):
        self.tried(lambda: run_stage(self.ctx, stage))

    @rule()
    def retry(self):
        ctx = self.ctx

        def work():
            variants = stored_variants(ctx.config, ctx.store, self.llm.revision)
            retry_unanswered(ctx.config, ctx.store, self.llm, variants, progress=lambda n: None)

        self.tried(work)

    @precondition(lambda self: self.validates)
    @rule()
    def ask_a_rival(self):
        rival = self.ctx.config.model_copy(
            update={"prompt": self.ctx.config.prompt.model_copy(update={"variants": 1})}
        )
        named = Renamed(self.llm, "another prompt")
        self.tried(lambda: ask_rival(self.ctx, rival, named))

    @rule()
    def close_the_round(self):
        def work():
            if (last := self.ctx.store.last_round("c")) is not None:
                close_early(self.ctx, last)

        self.tried(work)

    @rule()
    def withdraw(self):
        self.tried(lambda: withdraw_unanswered(self.ctx))

    @precondition(lambda self: len(self.settings["labels"]) == len(LABELS))
    @rule()
    def a_label_comes(self):
        self.settings["labels"] = [*self.settings["labels"], {"name": "odd"}]
        self.opened()

    @rule(more=st.floats(0.0, 0.5))
    def the_cap_is_raised(self, more):
        self.settings["budget"]["usd"] += more
        self.opened()

    # what people do

    def tasks(self):
        return self.reviewer._load()["tasks"]

    def asked(self, task):
        section = self.ctx.config.people
        first = section.overlap
        if section.early_stop and section.rule != "ask-one-more":
            first = section.overlap // 2 + 1
        return task.get("wanted", first)

    @rule(share=st.floats(0.2, 1.0), seed=st.integers(0, 1000))
    def people_answer(self, share, seed):
        rng = np.random.default_rng(seed)
        for item, task in self.tasks().items():
            free = [p for p in ("ann", "bob", "cid", "dan", "eve") if p not in task["answers"]]
            places = self.asked(task) - len(task["answers"])
            for _ in range(places):
                if rng.random() < share and free:
                    judge = len(task["answers"]) >= 2 and "judge" not in task["answers"]
                    who = "judge" if judge and rng.random() < 0.5 else free.pop()
                    said = rng.choice(["good", "bad", "skip"], p=[0.45, 0.45, 0.1])
                    label = None if said == "skip" else str(said)
                    if who not in task["answers"]:
                        self.reviewer.answer(item, who, label, skipped=label is None)
                        task["answers"][who] = label

    @rule(seed=st.integers(0, 1000), takes_back=st.booleans())
    def somebody_thinks_again(self, seed, takes_back):
        given = [(i, who) for i, t in self.tasks().items() for who in t["answers"]]
        if given:
            item, who = given[seed % len(given)]
            label = None if takes_back else ("good", "bad")[seed % 2]
            self.reviewer.answer(item, who, label)

    # what must hold

    def owed_usd(self):
        """The LLM's bill, and what people are owed once they answer all that they were asked."""
        answers = sum(max(self.asked(t), len(t["answers"])) for t in self.tasks().values())
        return self.llm.bill_usd + PRICE_USD * answers

    @invariant()
    def the_cap_holds(self):
        if not hasattr(self, "ctx"):
            return
        left, self.kills.left = self.kills.left, 0
        try:
            cap = self.settings["budget"]["usd"]
            assert self.owed_usd() <= cap + CENT
            money = account(self.ctx.config, self.ctx.store)
            assert money.spent_usd <= money.committed_usd <= cap + CENT
            assert self.owed_usd() <= money.committed_usd + CENT  # nothing is forgotten
            assert len(self.ctx.store.reviews("c")) <= 12
            budget = campaign_status(self.ctx.config, self.ctx.store)["budget"]
            told = budget["usd_spent"], budget["usd_committed"]
            assert told == (money.spent_usd, money.committed_usd)
        finally:
            self.kills.left = left


class TestAnyOrder(Campaign.TestCase):
    pass


@pytest.mark.long
class TestVeryManyOrders(Campaign.TestCase):
    pass


TestAnyOrder.settings = settings(
    max_examples=4,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestVeryManyOrders.settings = settings(TestAnyOrder.settings, max_examples=100)
