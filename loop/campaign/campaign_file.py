"""The commented campaign file that ``goldloop init`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence

TEMPLATE = """\
# A goldloop campaign. `goldloop check` says what is wrong with it, `goldloop run` runs it.
# Paths are relative to this file. Commented lines show the default, or an example.

[campaign]
name = {name}
task = {task}

{labels}
[texts]
source = {source}             # CSV, JSONL, Parquet, a folder saved by datasets, or hf:NAME
text_column = {text_column}
{gold}
# split_column = "split"      # pool (or train), test, dev; without it test is drawn at random
# test_frac = 0.2             # share held out to measure the student on
# dev_items = 60              # texts with gold that give the prompt its examples

[annotator]
kind = "local_lm"             # or "recorded": replays LLM labels from columns of the source
model = "smollm2-135m"        # embedded; or the folder or hub name of a causal language model
# columns = ["llm_label"]     # for "recorded": one column per prompt variant
# prob_columns = ["sure"]       # its confidence in each, between 0 and 1; or say how it is
# confidence_scale = "percent"  # written: "percent", "0-10", "log" (natural logarithms)
# kind = "openai_server"      # vllm serve, llama.cpp's server and others that give log-probs:
# base_url = "http://127.0.0.1:8000/v1"   # model is the served name, the key is in OPENAI_API_KEY
# kind = "vllm"               # in process, on a GPU: pip install 'goldloop[vllm]'
# chat = false                # wrap the prompt in the model's chat template
# usd_per_million_tokens = 0.0          # prices, for the plan, the ledger and budget.usd:
# usd_per_million_cached_tokens = 0.0   # what servers that report cached tokens take for those,
# usd_per_million_output_tokens = 0.0   # and for the written ones; both as above if left out

[prompt]
shots = 3                     # examples in each prompt
variants = 3                  # prompts that vote, with different examples; 8 are right more often
# calls_per_item = 0          # 0: every prompt for every text; 1.5: only where a flip is likely,
                              # for half the price or less, but labels gain less from the votes
calibrate = "batch"           # corrects the LLM's bias for some labels; "none" keeps raw answers,
                              # "gold" fits them to the random audit once it has 100 labels,
                              # "contextual" divides by its answers to empty texts (erratic)
# class_prior = {{ yes = 0.2, no = 0.8 }}   # stated class mix, if it is far from even
# label_form = "names"        # "ids": the LLM answers with a class's number (larger models only)
# refresh = "never"           # "round": examples are drawn again from people's labels each round,
                              # and every text is asked again: as many calls again, each round;
                              # "better": only if they answer better where people labelled
# The wording; a list gives each prompt another. Label names, or numbers, stand for {{labels}}:
# instruction = "{{task}}\\n{{labels}}"
# item = "Text: {{text}}\\nLabel:"   # each example, and then the text in question
# [[prompt.demonstrations]]   # your own examples, instead of ones drawn from the gold column
# text = "…"
# label = "…"

[strategy]
# learned_error: all that speaks against the label in use, and what gold so far has taught;
# label_doubt, votes_against, knn_disagreement, student_disagreement: one of these each;
# entropy, margin, flip_rate, vote_entropy, random, …: several are fused by rank
signals = ["learned_error"]
repair = "soft"               # or keep, weight, drop, relabel, for texts that no human saw
repair_students = "fine-tuned"  # five more trainings a round judge the labels, so that more of
                              # them are right for the same gold; "frozen" saves that time

[budget]
labels = {budget:<21}# texts that may be sent to people
# usd = 100.0                 # hard cap on LLM and human cost together, what is asked included
# usd_per_label = 0.10        # price of one human answer

[rounds]
rounds = 3
batch_size = {batch:<17}# texts per round
audit_frac = 0.5              # share drawn at random: keeps estimates honest, teaches repair best
# audit = "spread"            # spread over all kinds of texts; "uniform" is a plain random sample
# stop_below = 0.05           # stop once at most this share is wrong (95 % sure)
# stop = ["accuracy=0.8", "plateau"]   # further rules; the first that holds ends the campaign
# seed = 0

[student]
encoder = "roberta-base"      # hub name, folder, or embedded: "minilm", "mpnet" (406 MB)
epochs = {epochs:<19}# few texts need more, and smaller batches: rare labels
batch_size = {student_batch:<15}# are learned in about 300 steps
# lr = 2e-5                   # left out: what fits the encoder (1e-4 for minilm)
weight_decay = 0.01
warmup_frac = 0.05
seeds = 5
# max_tokens = 256
# long_texts = "head_tail"    # "windows" reads all of a longer text, in overlapping windows
# class_weights = "none"      # "balanced" counts rare classes as much as common ones
# checkpoint = "last"         # "best": the epoch with the best macro-F1 on split dev (50 or more)
# if_nothing_learned = "stop" # "go on": although the students answer one label for everything
# keep_seeds = false          # keep the model of every seed, not only of the first
# warm_start = false          # go on from the last round's models; needs keep_seeds
# device = "auto"             # cuda, cpu
# precision = "auto"          # bf16 or fp16 where the device has it, else fp32
# references = ["llm_only"]   # add "random" and "all_gold" where gold is known for every text
# random_rounds = "each"      # "last": train the random control in the last round only

[people]
# platform = "label_studio"   # or the name of a platform that another package adds
assist = "blind"              # "prefill" shows the LLM label, "why" says why a text is here
# assist_share = 1.0          # share of texts that get it, at random, to see what it does to people
# note = true                 # people may leave a note
# overlap = 1                 # people per text
# rule = "majority"           # or "dawid-skene" (weighs people by their errors), or "ask-one-more"
# max_overlap = 4             # for "ask-one-more": people per text at most
# early_stop = false          # asks fewer than overlap where the first ones cannot be outvoted
# adjudicator = "me@here.org" # decides what the others leave open, in the tab "Conflicts"
# check_frac = 0.0            # share of texts with a known label mixed in, to see how people do

[label_studio]
url = "local"                 # goldloop installs and runs one; or the URL of your server
# token_env = "LABEL_STUDIO_API_KEY"   # environment variable with the token for your server

[raters]
kind = "people"               # "gold" and "recorded" simulate people, for research only

[store]
# url = "sqlite:///campaign.db"        # or postgresql+psycopg://user@host/database, whose password
                              # is in PGPASSWORD or ~/.pgpass: no address here may hold a secret
# folder = "runs"             # models, caches, rounds.json and report.html

[tracking]
# to = "mlflow"               # sends each round there; or "wandb", or ["mlflow", "wandb"]; needs
                              # pip install 'goldloop[mlflow]'; no text and no secret goes out
# project = "goldloop"        # MLflow's experiment, W&B's "project" or "team/project"
# uri = "http://127.0.0.1:5000"        # left out: MLFLOW_TRACKING_URI, WANDB_BASE_URL, as usual

[executor]
# kind = "ray"                # heavy work on a Ray cluster: pip install 'goldloop[ray]'
# address = "auto"            # the one of this machine; "local": its own; or HOST:PORT of the head
# workers = 8                 # at most; left out: as many as there is room for
# gpus_per_worker = 1.0       # left out: 1 where the cluster has GPUs
"""


def quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def render(
    *,
    name: str,
    task: str,
    source: str,
    text_column: str,
    gold_column: str | None,
    labels: Sequence[tuple[str, str]],
    budget: int = 300,
    steps: tuple[int, int] = (16, 3),
) -> str:
    """The file's text; every value is escaped.

    Args:
        labels: names and descriptions.
        budget: texts that may be sent to people, in three rounds.
        steps: batch size and epochs of a student.
    """
    tables = "".join(
        f"[[labels]]\nname = {quoted(label)}\ndescription = {quoted(description)}\n\n"
        for label, description in labels
    )
    gold = (
        f"gold_column = {quoted(gold_column)}"
        if gold_column
        else '# gold_column = "gold"        # known human labels, for tests and examples'
    )
    if not gold_column:
        gold += "\n# without it, add [[prompt.demonstrations]] below or set shots = 0"
    return TEMPLATE.format(
        name=quoted(name),
        task=quoted(task),
        source=quoted(source),
        text_column=quoted(text_column),
        gold=gold,
        student_batch=steps[0],
        epochs=steps[1],
        labels=tables,
        budget=budget,
        batch=budget // 3,
    )
