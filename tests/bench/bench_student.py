"""Times our multi-seed training against Hugging Face Trainer on the same texts, side by side.

    python tests/bench/bench_student.py --encoder FOLDER --data FILE.parquet --lr 1e-4

Each side runs in a process of its own, so that CPU seconds and peak memory are its own. Sides:

- ``ours``: ``EncoderStudent``;
- ``trainer``: a loop of ``transformers.Trainer`` over the seeds (needs the package accelerate);
- ``plain``: the tutorials' PyTorch loop with Trainer's settings: random batches, padding to
  the longest, fp32, all threads. It stands in where accelerate is missing.

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

from connectors.assets import minilm_dir
from loop.stability import measure

SIDES = ("ours", "trainer", "plain")


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
    from loop.ports import TrainingSet
    from loop.student import EncoderStudent

    texts, y, test_texts, _, names = data
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
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    metrics = measure(
        np.stack([p.argmax(1) for p in probs]),
        data[3],
        len(data[4]),
        rng=np.random.default_rng(0),
    )
    gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    took = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": sum(sum(u[:2]) for u in used) - cpu,
        "peak_gb": max(u.ru_maxrss for u in used) * 1024 / 1e9,
        "gpu_gb": gpu,
    }
    print(json.dumps(took | metrics.to_json()))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", help="model folder or hub name; default: embedded MiniLM")
    parser.add_argument("--data", type=Path, help="Parquet with text, label, split")
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4, help="2e-5 suits roberta-base")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--threads", type=int, help="torch threads of the reference; default: all")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: ours and the reference")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.encoder = args.encoder or str(minilm_dir())
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
    print(
        f"{args.train} texts x {args.epochs} epochs x {args.seeds} seeds, {Path(args.encoder).name}"
    )
    head = ("side", "wall s", "CPU s/seed", "peak GB", "accuracy", "macro-F1", "alpha_K", "ratio")
    print(" | ".join(f"{h:>10}" for h in head))
    walls: list[float] = []
    for side in sides:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        walls.append(found["wall_s"])
        scores = [found[m]["value"] for m in ("accuracy", "macro_f1", "alpha_k")]
        cells = [side, f"{found['wall_s']:.1f}", f"{found['cpu_s'] / args.seeds:.1f}"]
        cells += [f"{found['peak_gb']:.2f}"]
        cells += ["-" if s is None else f"{100 * s:.1f}" for s in scores]
        print(" | ".join(f"{c:>10}" for c in [*cells, f"{walls[-1] / walls[0]:.2f}"]), flush=True)
    return None


if __name__ == "__main__":
    main()
