"""What the strategies of the benchmark decide: whom to ask, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from loop.ports import IntArray

if TYPE_CHECKING:
    from strategies.pool import Pool
    from strategies.repair import Mode

Ranker = Callable[["Pool", IntArray, int, np.random.Generator], IntArray]
"""``(pool, candidates, n, rng) -> rows``: a peer's own way to choose n of the candidates."""


@dataclass(frozen=True)
class Policy:
    """All that a strategy decides: what is suspect, who is asked, what becomes of the rest.

    Attributes:
        signals: fused by rank; those that the data cannot give are left out.
        learn_weights: whether later rounds weigh the signals by what they found before.
        audit_frac: share of every batch that is drawn at random, inside the budget.
        spread_audit: whether that share is spread over the texts.
        guard: whether a batch is all drawn at random where the last one's suspects were no better.
        repair: what becomes of the items that no human saw.
        tuned: whether fine-tuned students judge labels for repair, as ``strategy.repair_students``
            has it; only for a learner that fine-tunes.
        judged_suspects: whether judges of the round before have a say in who is suspect, as they
            have in a campaign; only for a learner that fine-tunes.
        same_text: cosine from which two texts of a batch count as the same.
        min_class_frac: share of the suspects that every predicted class gets at least.
        ranker: instead of signals.
        balance: whether labels that nobody mended are weighted by their class like mended ones.
        states: whether it sees the LLM's hidden states, where the data has them.
        only_gold: trains on nothing but the gold that was bought.
        needs: what the data must have, else the policy is skipped.
    """

    signals: tuple[str, ...] = ()
    learn_weights: bool = False
    audit_frac: float = 0.0
    spread_audit: bool = False
    guard: bool = False
    repair: Mode = "keep"
    tuned: bool = False
    judged_suspects: bool = False
    same_text: float | None = None
    min_class_frac: float = 0.0
    ranker: Ranker | None = None
    balance: bool = False
    states: bool = True
    only_gold: bool = False
    needs: frozenset[str] = frozenset()


def predictor_ranker(method: Literal["logistic", "ridge"]) -> Ranker:
    """Ranks by a learned probability that the LLM's label is wrong, at random without gold.

    'ridge' sees nothing but the embeddings, the filter that arXiv 2504.15432 leaves open;
    'logistic' sees every signal, the predicted class and the embeddings' first components.
    """

    def rank(pool: Pool, candidates: IntArray, n: int, rng: np.random.Generator) -> IntArray:
        from loop.bench.error_predictor import build_features, error_predictor, gold_free_signals

        if pool.embeddings is None:
            raise ValueError("the error predictor needs embeddings, this pool has none")
        features = pool.embeddings.astype(np.float64)
        if method == "logistic":
            signals = gold_free_signals(pool)
            features = build_features(signals, pool.y_llm, pool.k, pool.embeddings)
        rows = np.flatnonzero(pool.gold >= 0)
        wrong = pool.gold[rows] != pool.y_llm[rows]
        predicted = error_predictor(features, wrong, rows, rng=rng, method=method)
        order = np.lexsort((rng.random(len(candidates)), -predicted.p_wrong[candidates]))
        return np.asarray(candidates[order[:n]], dtype=np.int64)

    return rank


FUSED = ("entropy_calibrated", "flip_rate", "knn_disagreement", "student_disagreement")
DEFAULT = Policy(("learned_error",), audit_frac=0.5, spread_audit=True, guard=True, repair="soft")

POLICIES: dict[str, Policy] = {
    "goldloop": DEFAULT,
    "goldloop-fine-tuned": replace(DEFAULT, tuned=True),
    "goldloop-judged": replace(DEFAULT, tuned=True, judged_suspects=True),
    "goldloop-no-repair": replace(DEFAULT, repair="keep"),
    "goldloop-calibrated": replace(DEFAULT, signals=("entropy_calibrated",)),
    "goldloop-fusion": replace(DEFAULT, signals=FUSED),
    "goldloop-learned-weights": replace(DEFAULT, signals=FUSED, learn_weights=True),
    "goldloop-entropy": replace(DEFAULT, signals=("entropy",)),
    "goldloop-uniform": replace(DEFAULT, spread_audit=False),
    "goldloop-no-guard": replace(DEFAULT, guard=False),
    "goldloop-no-states": replace(DEFAULT, states=False),
    "goldloop-before": Policy(("entropy",), audit_frac=0.5, repair="soft", states=False),
    "goldloop-benefit": replace(DEFAULT, signals=("expected_benefit",)),
    "goldloop-quotas": replace(DEFAULT, min_class_frac=0.1),
    "goldloop-spread": replace(DEFAULT, same_text=0.9),
    "goldloop-relabel": replace(DEFAULT, repair="relabel"),
    "goldloop-weight": replace(DEFAULT, repair="weight"),
    "goldloop-drop": replace(DEFAULT, repair="drop"),
    "entropy-repair": Policy(("entropy",), repair="soft"),
    "repair-only": Policy(("random",), repair="soft"),
    "learned-repair": Policy(("learned_error",), audit_frac=0.2, repair="soft"),
    "learned": Policy(("learned_error",)),
    "entropy-balanced": Policy(("entropy",), balance=True),
    "fusion": Policy(FUSED),
    "error-predictor": Policy(ranker=predictor_ranker("logistic")),
    "ridge-embeddings": Policy(ranker=predictor_ranker("ridge")),
    "random": Policy(("random",)),
    "gold-only": Policy(("random",), only_gold=True),
    "entropy": Policy(("entropy",)),
    "entropy_calibrated": Policy(("entropy_calibrated",)),
    "margin": Policy(("margin",)),
    "knn_disagreement": Policy(("knn_disagreement",)),
    "student_disagreement": Policy(("student_disagreement",)),
    "seed_disagreement": Policy(("seed_disagreement",)),
    "class_rarity": Policy(("class_rarity",)),
    # The paper's ensemble replaces the labels on which five prompts differ.
    "prompt-flips": Policy(("flip_rate",), needs=frozenset({"votes"})),
    "jensen_shannon": Policy(("jensen_shannon",), needs=frozenset({"votes"})),
    "off_label_mass": Policy(("off_label_mass",), needs=frozenset({"off_label_mass"})),
    "knn_label_std": Policy(("knn_label_std",), needs=frozenset({"ordinal"})),
}
"""Every strategy by name; ``peers.peers()`` adds those of other packages."""
