"""Times our multi-seed training against Hugging Face Trainer on the same texts, side by side.

    python tests/bench/bench_student.py --encoder FOLDER --data FILE.parquet --lr 1e-4

Each side runs in a process of its own, so that CPU seconds and peak memory (proportional set size,
summed over its processes) are its own. Sides:

- ``ours``: ``EncoderStudent``;
- ``trainer``: a loop of ``transformers.Trainer`` over the seeds (needs the package accelerate);
- ``plain``: the tutorials' PyTorch loop with Trainer's settings: random batches, padding to
  the longest, fp32, all threads. It stands in where accelerate is missing.

The floor is the time that the run's floating-point operations take at the matrix rate measured just
before, on all cores and at the better of bf16 and fp32: 6 (2 without gradients) per weight outside
the embeddings and token, and attention's own, of the texts without padding.

Differences between the first two sides are paired over test texts; their 95 % intervals, like the
metrics' own, are over texts and seeds.

The data file is Parquet with ``text``, ``label`` and ``split`` (train, test); without one, made-up
sentences of tweet length are used, whose accuracy means nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import matrix_rate, peak_memory

from connectors.downloads.models import minilm_dir, mpnet_dir
from loop.hardware import cores
from loop.measure.stability import measure, paired_differences

SIDES = ("ours", "trainer", "plain")
METRICS = ("accuracy", "macro_f1", "alpha_k")


def read_data(
    args: argparse.Namespace,
) -> tuple[list[str], np.ndarray, list[str], np.ndarray, list[str]]:
    """Training texts and classes, test texts and classes, class names."""
    rng = np.random.default_rng(0)
    if args.data is None:
        words = np.array([f"{a}{b}" for a in ("sun", "rain", "win", "sea") for b in range(10)])
        classes = rng.integers(0, 2, args.train + args.test)
        texts = [" ".join(rng.choice(words[c * 15 : c * 15 + 25], 12)) for c in classes]
        y = classes.astype(int)
        cut = args.train
        return texts[:cut], y[:cut], texts[cut:], y[cut:], ["a", "b"]
    import pyarrow.parquet as pq

    table = pq.read_table(args.data, columns=["text", "label", "split"]).to_pydict()
    names = sorted(set(table["label"]))
    split, y = np.array(table["split"]), np.array([names.index(x) for x in table["label"]])
    rows_train = rng.permutation(np.flatnonzero(split == "train"))[: args.train]
    rows_test = rng.permutation(np.flatnonzero(split == "test"))[: args.test]
    texts = table["text"]
    return (
        [texts[r] for r in rows_train],
        y[rows_train],
        [texts[r] for r in rows_test],
        y[rows_test],
        names,
    )


def ours(args: argparse.Namespace, data: Any) -> list[np.ndarray]:
    """(n, k) probabilities per seed."""
    import loop.student.train_seed
    from loop.ports import TrainingSet
    from loop.student.encoder_student import EncoderStudent

    texts, y, test_texts, _, names = data
    if args.unsorted:
        loop.student.train_seed.GROUP_BATCHES = 1  # of this process: workers would not hear of it
        args.workers = 1
    student = EncoderStudent(
        args.encoder,
        epochs=args.epochs,
        lr=args.lr,
        max_tokens=args.max_tokens,
        precision=args.precision,
        workers=args.workers,
    )
    found: dict[int, np.ndarray] = {}
    student.fit(
        TrainingSet(texts, np.eye(len(names))[y], np.ones(len(y))),
        test_texts,
        names,
        list(range(args.seeds)),
        keep={},
        on_seed=lambda result: found.update({result.seed: result.probs}),
    )
    student.close()
    return [found[seed] for seed in range(args.seeds)]


def trainer(args: argparse.Namespace, data: Any) -> list[np.ndarray]:
    """The same with Hugging Face Trainer, one seed after the other."""
    import torch
    import transformers

    texts, y, test_texts, test_y, names = data
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.encoder)

    def rows(some: list[str], classes: np.ndarray) -> list[dict[str, Any]]:
        ids = tokenizer(some, truncation=True, max_length=args.max_tokens)["input_ids"]
        return [{"input_ids": i, "labels": int(c)} for i, c in zip(ids, classes, strict=True)]

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            transformers.set_seed(seed)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                args.encoder, num_labels=len(names)
            )
            settings = transformers.TrainingArguments(
                folder,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=16,
                learning_rate=args.lr,
                weight_decay=0.01,
                warmup_steps=0.05,
                seed=seed,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                fp16=torch.cuda.is_available(),
            )
            collate = transformers.DataCollatorWithPadding(tokenizer)
            run = transformers.Trainer(
                model, settings, train_dataset=rows(texts, y), data_collator=collate
            )
            run.train()
            logits = run.predict(rows(test_texts, test_y)).predictions
            found.append(torch.softmax(torch.from_numpy(logits), -1).numpy())
    return found


def plain(args: argparse.Namespace, data: Any) -> list[np.ndarray]:
    """The same with a tutorial's loop."""
    import torch
    import transformers

    texts, y, test_texts, _, names = data
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.encoder)

    def batch(some: list[str]) -> Any:
        return tokenizer(
            some, truncation=True, max_length=args.max_tokens, padding=True, return_tensors="pt"
        ).to(device)

    found = []
    for seed in range(args.seeds):
        transformers.set_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            args.encoder, num_labels=len(names)
        ).to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
        steps = args.epochs * -(-len(texts) // 16)
        schedule = transformers.get_linear_schedule_with_warmup(optimiser, steps // 20, steps)
        model.train()
        for _ in range(args.epochs):
            order = torch.randperm(len(texts)).tolist()
            for start in range(0, len(order), 16):
                part = order[start : start + 16]
                loss = model(
                    **batch([texts[r] for r in part]), labels=torch.tensor(y[part]).to(device)
                ).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        model.eval()
        with torch.inference_mode():
            logits = [
                model(**batch(test_texts[i : i + 16])).logits for i in range(0, len(test_texts), 16)
            ]
        found.append(torch.softmax(torch.cat(logits), -1).cpu().numpy())
    return found


def one_side(args: argparse.Namespace) -> None:
    """Runs a side and prints what it took as one line of JSON."""
    data = read_data(args)
    import torch
    import transformers  # both sides pay for imports outside the clock

    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    started = time.perf_counter()
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (0, -1))
    probs = {"ours": ours, "trainer": trainer, "plain": plain}[args.side](args, data)
    wall_s = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    predictions = np.stack([p.argmax(1) for p in probs])
    metrics = measure(predictions, data[3], len(data[4]), rng=np.random.default_rng(0))
    gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    took = {
        "wall_s": wall_s,
        "cpu_s": sum(sum(u[:2]) for u in used) - cpu,
        "gpu_gb": gpu,
    }
    print(json.dumps(took | metrics.to_json() | {"predictions": predictions.tolist()}))


def flops(args: argparse.Namespace, data: Any) -> tuple[float, tuple[int, int, int]]:
    """Floating-point operations of all seeds, and the shape of a typical matrix product."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.encoder)
    config = transformers.AutoConfig.from_pretrained(args.encoder)
    with torch.device("meta"):
        encoder = transformers.AutoModel.from_config(config)
    weights = sum(
        p.numel()
        for name, p in encoder.named_parameters()
        if "embed" not in name and "pooler" not in name
    )
    width, total = config.hidden_size, 0.0
    for some, per_weight in ((data[0], 6 * args.epochs), (data[2], 2)):
        ids = tokenizer(some, truncation=True, max_length=args.max_tokens)["input_ids"]
        lengths = np.array([len(i) for i in ids], dtype=float)
        attention = 2 * width * config.num_hidden_layers * (lengths**2).sum()
        total += per_weight * (weights * lengths.sum() + attention)
        if some is data[0]:
            tokens = round(16 * lengths.mean())
    return args.seeds * total, (tokens, width, 4 * width)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", help="folder, hub name, minilm (default) or mpnet")
    parser.add_argument("--data", type=Path, help="Parquet with text, label, split")
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4, help="2e-5 suits roberta-base")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--unsorted", action="store_true", help="ours: batches of any length")
    parser.add_argument("--threads", type=int, help="torch threads of the reference; default: all")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: ours and the reference")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.encoder = args.encoder or "minilm"
    if args.encoder in ("minilm", "mpnet"):
        args.encoder = str(minilm_dir() if args.encoder == "minilm" else mpnet_dir())
    return args


def main() -> None:
    """Runs the sides in turn and prints a table."""
    args = parse()
    if args.side:
        return one_side(args)
    has_trainer = importlib.util.find_spec("accelerate") is not None
    if not has_trainer:
        print("accelerate is not installed: the plain loop stands in for Trainer", file=sys.stderr)
    sides = args.sides or ["ours", "trainer" if has_trainer else "plain"]
    data = read_data(args)
    print(
        f"{len(data[0])} texts x {args.epochs} epochs x {args.seeds} seeds, "
        f"{len(data[2])} test texts, {Path(args.encoder).name}"
    )
    floor_s = print_floor(args, data)
    head = ("side", "wall s", "CPU s/seed", "peak GB", *METRICS, "x floor", "ratio")
    print(" | ".join(f"{h:>10}" if h not in METRICS else f"{h:>18}" for h in head))
    runs: list[dict[str, Any]] = []
    for side in sides:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
            peak_memory(process.pid) as peak,
        ):
            said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the side {side} failed")
        found = json.loads(said.splitlines()[-1])
        runs.append(found)
        wall_s = found["wall_s"]
        cells = [side, f"{wall_s:.1f}", f"{found['cpu_s'] / args.seeds:.1f}"]
        cells += [f"{found['gpu_gb'] or peak[0] / 1e9:.2f}"]
        cells += [f"{_interval(found[metric]):>18}" for metric in METRICS]
        cells += [f"{wall_s / floor_s:.1f}", f"{wall_s / runs[0]['wall_s']:.2f}"]
        print(" | ".join(f"{c:>10}" for c in cells), flush=True)
    if len(runs) > 1:
        print_differences(sides, runs, data)
    return None


def print_floor(args: argparse.Namespace, data: Any) -> float:
    """Prints the machine's matrix rates, and the floor; seconds."""
    import torch

    gpu = torch.cuda.is_available()
    processes = 1 if gpu else args.workers or cores()
    operations, shape = flops(args, data)
    rates = {
        dtype: matrix_rate(shape, dtype, processes=processes, device="cuda" if gpu else "cpu")
        for dtype in ("bfloat16", "float32")
    }
    floor_s = operations / max(rates.values())
    told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    print(
        f"{operations / 1e12:.1f} TFLOP; {processes} x matrix products of {shape}: {told} GFLOP/s; "
        f"floor {floor_s:.1f} s",
        flush=True,
    )
    return floor_s


def print_differences(sides: list[str], runs: list[dict[str, Any]], data: Any) -> None:
    """Prints the first side minus the second one, paired."""
    print(f"\n{sides[0]} minus {sides[1]}, paired:")
    found = paired_differences(
        runs[1]["predictions"],
        runs[0]["predictions"],
        data[3],
        list(METRICS),
        k=len(data[4]),
        rng=np.random.default_rng(0),
    )
    for metric, d in found.items():
        print(f"  {metric}: {100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})")


def _interval(metric: dict[str, Any]) -> str:
    ends = (metric[end] for end in ("value", "low", "high"))
    value, low, high = ("-" if end is None else f"{100 * end:.1f}" for end in ends)
    return f"{value} ({low}–{high})"


if __name__ == "__main__":
    main()
