"""The commented campaign file that ``goldloop init`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence

TEMPLATE = """\
# A goldloop campaign. `goldloop check` says what is wrong with it, `goldloop run` runs it.
# Paths are relative to this file. Lines that begin with # show the default, or an example.
# docs/campaign_file.md lists the other keys, and says what may be changed once it has begun.

[campaign]
name = {name}
task = {task}

# The LLM and people read the descriptions.
{labels}
[texts]
source = {source}             # CSV, JSONL, Parquet, a folder saved by datasets, or hf:NAME
text_column = {text_column}
{gold}
# split_column = "split"      # column that says pool (or train: to label), test or dev;
                              # without it, texts to test on are drawn at random
# test_frac = 0.2             # share of the texts that are kept apart to test the student on
# dev_items = 60              # texts with a known label that serve as examples in the prompt

[annotator]                   # the LLM that labels the texts
kind = "local_lm"             # a model on this machine; or "recorded": LLM labels from columns
model = "smollm2-135m"        # comes with goldloop; or folder or hub name of a language model
# columns = ["llm_label"]     # for "recorded": one column for each prompt variant
# prob_columns = ["sure"]       # how sure the LLM was of each label, between 0 and 1; say so
# confidence_scale = "percent"  # if it is on another scale: "percent", "0-10", "log" (natural)
# kind = "openai_server"      # vllm serve, llama.cpp's server and others that give log-probs;
# base_url = "http://127.0.0.1:8000/v1"   # model is the name there, the key in OPENAI_API_KEY
# kind = "vllm"               # in this process, on a GPU: pip install 'goldloop[vllm]'
# chat = false                # true puts the prompt into the model's chat template
# usd_per_million_tokens = 0.0          # price, for the plan and for budget.usd
# usd_per_million_cached_tokens = 0.0   # price of tokens that the server had cached
# usd_per_million_output_tokens = 0.0   # price of written tokens; left out: as the first price

[prompt]
shots = 3                     # examples in each prompt
variants = 3                  # prompts with different examples; the majority of their answers
                              # is the label; 8 are right more often than 3
# calls_per_item = 0          # 0: every prompt for every text; 1.5: further prompts only where
                              # the answer may change: half the price or less, weaker labels
calibrate = "batch"           # corrects the LLM's bias for some labels; "none": raw answers;
                              # "gold": fitted to 100 or more gold labels of random texts;
                              # "contextual": divided by its answers to empty texts (erratic)
# class_prior = {{ yes = 0.2, no = 0.8 }}   # how frequent the labels are, if far from even
# label_form = "names"        # "ids": the LLM answers with a label's number (large models only)
# refresh = "never"           # "round": each round draws new examples from people's labels and
                              # asks about every text again, which costs as much each time;
                              # "better": only if the new examples give better labels
# Your own wording; a list has one for each prompt. {{labels}} becomes the list of labels:
# instruction = "{{task}}\\n{{labels}}"
# item = "Text: {{text}}\\nLabel:"   # for each example, and then for the text in question
# [[prompt.demonstrations]]   # your own examples, instead of texts with a known label
# text = "…"
# label = "…"

[strategy]                    # which labels are suspect, and how the others are repaired
# learned_error combines all signs of a wrong label, and learns from gold labels.
# Single signs: label_doubt, votes_against, knn_disagreement, student_disagreement, entropy,
# margin, flip_rate, vote_entropy, random, …; several are combined by rank.
signals = ["learned_error"]
repair = "soft"               # of labels that nobody checked: probabilities instead of a label;
                              # or "keep", "weight", "drop", "relabel"
repair_students = "fine-tuned"  # judges: five more trainings a round, and more labels are right
                              # for the same gold; "frozen" saves that time

[budget]
labels = {budget:<21}# texts that may be sent to people
# usd = 100.0                 # hard cap on the price of LLM and people together
# usd_per_label = 0.10        # price of one answer of a person

[rounds]
rounds = 3
batch_size = {batch:<17}# texts that people label in each round
audit_frac = 0.5              # share of these drawn at random: a control, which repair learns from
# audit = "spread"            # random over all kinds of texts; "uniform": plain random
# stop_below = 0.05           # stop once at most this share of labels is wrong (95 % sure)
# stop = ["accuracy=0.8", "plateau"]   # further rules; the first that holds ends the campaign
# seed = 0

[student]                     # the small model that is trained on the labels
encoder = "roberta-base"      # hub name, folder, "minilm" (small, quick) or "mpnet" (406 MB)
epochs = {epochs:<19}# few texts need more epochs and smaller batches:
batch_size = {student_batch:<15}# rare labels are learned in about 300 steps
# lr = 2e-5                   # learning rate; left out: what fits the encoder (1e-4 for minilm)
weight_decay = 0.01
warmup_frac = 0.05
seeds = 5                     # trainings that differ by chance alone; they show stability
# max_tokens = 256
# long_texts = "head_tail"    # beginning and end; "windows" reads all, in overlapping windows
# class_weights = "none"      # "balanced": rare labels count as much as common ones
# checkpoint = "last"         # "best": the epoch with the best macro-F1 on 50 or more dev labels
# if_nothing_learned = "stop" # "go on": continue if the students give every text one label
# keep_seeds = false          # true keeps the model of every seed, not only of the first
# warm_start = false          # true continues from the last round's models; needs keep_seeds
# device = "auto"             # "cuda", "cpu"
# precision = "auto"          # bf16 or fp16 where the device has it, else fp32
# references = ["llm_only"]   # to compare with; add "random" and "all_gold" where every text to
                              # label has a known label
# random_rounds = "each"      # "last": trains the random control in the last round only

[people]
# platform = "label_studio"   # or the name of a platform that another package adds
assist = "blind"              # people see the text alone; "prefill": the LLM's label is chosen
                              # already; "why": says why goldloop asks about the text
# assist_share = 1.0          # share of texts with this help, drawn at random, to measure it
# note = true                 # people may write a note
# overlap = 1                 # people who label each text
# rule = "majority"           # or "dawid-skene" (weighs people by their errors), "ask-one-more"
# max_overlap = 4             # for "ask-one-more": people for each text at most
# early_stop = false          # true asks nobody more once the first answers cannot be outvoted
# adjudicator = "me@here.org" # decides where people disagree, in the tab "Conflicts"
# check_frac = 0.0            # share of hidden checks: texts with a known label, to test people

[label_studio]
url = "local"                 # goldloop installs and runs one; or the address of your server
# token_env = "LABEL_STUDIO_API_KEY"   # environment variable with the token for your server

[raters]
kind = "people"               # "gold" and "recorded" simulate people, for research only

[store]
# url = "sqlite:///campaign.db"        # or postgresql+psycopg://user@host/database; the password
                              # stays in PGPASSWORD or ~/.pgpass, never in this file
# folder = "runs"             # models, caches, rounds.json and report.html

[tracking]                    # sends each round to an experiment tracker; no texts, no secrets
# to = "mlflow"               # or "wandb", or ["mlflow", "wandb"]; needs
                              # pip install 'goldloop[mlflow]' or 'goldloop[wandb]'
# project = "goldloop"        # MLflow's experiment, W&B's "project" or "team/project"
# uri = "http://127.0.0.1:5000"        # left out: MLFLOW_TRACKING_URI or WANDB_BASE_URL

[executor]                    # where the heavy work is done; left out: on this machine
# kind = "ray"                # on a Ray cluster: pip install 'goldloop[ray]'
# address = "auto"            # this machine's cluster; "local": a Ray of its own; or HOST:PORT
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
        else '# gold_column = "gold"        # labels that are known already, for tests and examples'
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
