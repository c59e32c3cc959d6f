"""`goldloop predict` against a plain transformers pipeline, on one machine in one run.

    python tests/bench/bench_predict.py --data ../shared/data/toxic.parquet

Trains five small seeds, saves them as a final model does, then labels texts in turns:

    pipeline    transformers.pipeline("text-classification", batch_size=16), the model loaded
                before the clock starts, on fewer texts because it is slower
    fast        goldloop predict --fast, the whole command: start, reading, loading, writing
    stability   goldloop predict, the whole command with all seeds

Each turn is a process of its own, and turns alternate. Rates are given by the clock and by CPU
seconds; on a machine that others use as well only the latter say much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LABELS = ("first", "second", "third")


def texts_and_classes(data: Path | None, n: int) -> tuple[list[str], np.ndarray]:
    """n texts and a class for each: from a file, or made-up sentences about three things."""
    if data is not None and data.exists():
        import pyarrow.parquet as pq

        table = pq.read_table(data, columns=["text", "label"]).slice(0, n).to_pydict()
        names = {name: c for c, name in enumerate(sorted(set(table["label"])))}
        return table["text"], np.array([names[label] % len(LABELS) for label in table["label"]])
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(2000)]
    y = rng.integers(0, 3, n)
    topic = np.array([["apple pear plum"], ["train bus ship"], ["rain snow wind"]]).ravel()
    texts = [
        " ".join([*rng.choice(words, rng.integers(5, 60)), str(topic[c]), *rng.choice(words, 5)])
        for c in y
    ]
    return texts, y


def make_model(folder: Path, texts: list[str], y: np.ndarray, seeds: int) -> None:
    """A final model whose own weights are a soup, so that no seed's answers can be shared."""
    from connectors.downloads.models import minilm_dir
    from loop.deliver.final_model import KIND
    from loop.deliver.saved_models import average
    from loop.ports import TrainingSet
    from loop.student.encoder_files import load_tokenizer, save_model
    from loop.student.encoder_student import EncoderStudent

    places = {seed: folder / "seeds" / f"seed-{seed}" for seed in range(seeds)}
    student = EncoderStudent(minilm_dir(), epochs=1, lr=1e-4)
    student.fit(
        TrainingSet(texts, np.eye(len(LABELS))[y], np.ones(len(y))),
        [],
        LABELS,
        list(places),
        keep=places,
        on_seed=lambda result: print(f"seed {result.seed}: {result.seconds:.0f} s"),
    )
    student.close()
    record = json.loads((places[0] / "goldloop.json").read_text())
    record |= {"kind": KIND, "seeds": [f"seeds/seed-{seed}" for seed in places], "same_as": None}
    model = average(list(places.values()))
    kept = folder / "seeds"
    aside = folder.with_name("aside")
    kept.rename(aside)
    save_model(
        model,
        load_tokenizer(aside / "seed-0"),
        folder,
        record,
        lambda part: aside.rename(part / "seeds"),
    )


PIPELINE = """
import json, sys, time
from transformers import pipeline
texts = json.load(open(sys.argv[2]))
classify = pipeline("text-classification", sys.argv[1], batch_size=16, truncation=True)
classify(texts[:16])
started, cpu = time.perf_counter(), time.process_time()
found = [a["label"] for a in classify(texts)]
wall, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"wall": wall, "cpu": cpu, "labels": found}))
"""


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds of the process and its children, and stdout."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--stability-texts", type=int, default=10_000)
    parser.add_argument("--pipeline-texts", type=int, default=2_000)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench_predict.json"))
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    texts, y = texts_and_classes(args.data, args.texts + args.train)
    work = Path(tempfile.mkdtemp(prefix="bench-predict-"))
    model = work / "final"
    make_model(model, texts[-args.train :], y[-args.train :], args.seeds)
    texts = texts[: len(texts) - args.train]
    tables = {}
    for name, n in (("fast", args.texts), ("stability", args.stability_texts)):
        tables[name] = work / f"{name}-texts.jsonl"
        lines = [json.dumps({"text": text}) + "\n" for text in texts[:n]]
        tables[name].write_text("".join(lines))
    some, subset = work / "some.json", texts[: args.pipeline_texts]
    some.write_text(json.dumps(subset))

    rates: dict[str, dict[str, list[float]]] = {
        name: {"wall": [], "cpu": []} for name in ("pipeline", "fast", "stability")
    }
    labels: dict[str, list[str]] = {}

    def note(name: str, n: int, wall: float, cpu: float) -> None:
        rates[name]["wall"].append(n / wall)
        rates[name]["cpu"].append(n / cpu)
        print(f"{name}: {n} texts, {wall:.1f} s, {cpu:.1f} CPU seconds", flush=True)

    for _ in range(args.repeats):
        _, _, said = timed([sys.executable, "-c", PIPELINE, str(model), str(some)])
        answer: dict[str, Any] = json.loads(said.splitlines()[-1])
        note("pipeline", len(subset), answer["wall"], answer["cpu"])
        labels["pipeline"] = answer["labels"]
        for name, extra in (("fast", ["--fast"]), ("stability", [])):
            out = work / f"{name}.jsonl"
            command = [sys.executable, "-m", "loop.cli.__main__", "predict", str(tables[name])]
            wall, cpu, _ = timed([*command, "--model", str(model), "--out", str(out), *extra])
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            note(name, len(rows), wall, cpu)
            labels[name] = [row["predicted_label"] for row in rows]
    both = list(zip(labels["pipeline"], labels["fast"], strict=False))
    same = float(np.mean([a == b for a, b in both]))
    for kind, unit in (("wall", "texts/s"), ("cpu", "texts per CPU second")):
        base = np.median(rates["pipeline"][kind])
        for name, found in rates.items():
            each = found[kind]
            print(
                f"{name:10s} {np.median(each):6.1f} {unit} ({min(each):.1f}–{max(each):.1f},"
                f" {len(each)} runs), {np.median(each) / base:.2f} times the pipeline"
            )
    print(f"labels equal to the pipeline's: {100 * same:.2f} % of {len(both)}")
    args.out.write_text(json.dumps({"rates": rates, "same_labels": same}, indent=1) + "\n")


if __name__ == "__main__":
    main()
