"""What asking a server costs us beside the server's own work.

    python tests/bench/bench_asking.py [--texts 4000]

A server on loopback, in a process of its own, answers at once as vLLM does; so all CPU time of this
process is the asker's. Compared: a bare asyncio client that writes its HTTP by hand and keeps
nothing, with one prompt and with as many prompts in a request as goldloop; ``httpx.AsyncClient``
likewise; goldloop's annotator alone; and goldloop's annotator with the votes stored in SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

AT_ONCE = 8  # requests under way, the default of annotator.concurrency
LABELS = ("negative", "neutral", "positive")
TEXT = "A made-up text of about the length of a tweet, and nobody said it, number {}"


# the server


async def serve() -> None:
    """Answers every request at once; prints its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                length = next((int(v) for k, v in fields.items() if k.lower() == LENGTH), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                answer = json.dumps(answered(path, body)).encode()
                writer.write(HEAD.format(len(answer)).encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 22)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


LENGTH = "content-length"
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def answered(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What vLLM would say, of a model that draws lots."""
    if path == "/v1/models":
        return {"data": [{"id": "m"}]}
    if path == "/tokenize":
        words = body["prompt"].replace("\n", " \n ").split(" ")
        return {"tokens": [zlib.crc32(w.encode()) % 50_000 for w in words], "max_model_len": 9999}
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    choices = []
    for index, prompt in enumerate(prompts):
        lot = zlib.crc32(prompt.encode()) / 2**32
        ids = body["logprob_token_ids"]
        top = {f"token_id:{t}": -0.5 - lot * (i + 1) for i, t in enumerate(ids)}
        logprobs = {"top_logprobs": [top], "tokens": ["token_id:1"], "text_offset": [0]}
        choices.append({"index": index, "text": "x", "logprobs": logprobs})
    usage = {"prompt_tokens": 100 * len(prompts), "completion_tokens": len(prompts)}
    return {"id": "c", "object": "text_completion", "choices": choices, "usage": usage}


@contextmanager
def running() -> Iterator[int]:
    """The server's port."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()


# the askers


def body_of(prompts: list[str]) -> dict[str, Any]:
    return {
        "model": "m",
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": [1, 2, 3],
        "return_tokens_as_token_ids": True,
    }


async def bare(port: int, prompts: list[str], size: int) -> None:
    """Sockets and JSON, nothing else."""
    parts = iter([prompts[i : i + size] for i in range(0, len(prompts), size)])

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        for part in parts:
            raw = json.dumps(body_of(part)).encode()
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw)
                + raw
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            json.loads(await reader.readexactly(length))
        writer.close()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def with_httpx(port: int, prompts: list[str], size: int) -> None:
    """The same with the usual library."""
    import httpx

    parts = iter([prompts[i : i + size] for i in range(0, len(prompts), size)])
    async with httpx.AsyncClient() as client:

        async def worker() -> None:
            for part in parts:
                url = f"http://127.0.0.1:{port}/v1/completions"
                (await client.post(url, json=body_of(part))).json()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def ours_alone(port: int, n: int) -> Callable[[], None]:
    """Our annotator, nothing stored."""
    from loop.ports import TextItem
    from loop.prompt import Label, PromptVariant

    annotator = _annotator(port)
    variant = PromptVariant(0, "Feeling?", tuple(map(Label, LABELS)), ())
    annotator.annotate(variant, [TextItem(f"w{i}", f"warm {i}") for i in range(64)])

    def ask() -> None:
        for start in range(0, n, 256):
            rows = range(start, min(start + 256, n))
            annotator.annotate(variant, [TextItem(str(i), TEXT.format(i)) for i in rows])

    return ask


def ours_stored(port: int, n: int, folder: Path) -> Callable[[], None]:
    """The stage ``annotate`` of a campaign."""
    from loop import next_round
    from loop import round as stages
    from loop.campaign.config import Config
    from loop.campaign.context import Context, Parts
    from loop.campaign.store import Store

    rows = [
        SimpleNamespace(text=TEXT.format(i), gold=None, split="pool" if i < n else "test", meta={})
        for i in range(n + 100)
    ]
    config = Config.model_validate(
        {
            "campaign": {"name": "asked", "task": "Feeling?"},
            "labels": [{"name": name} for name in LABELS],
            "texts": {"source": "made-up.csv", "split_column": "split"},
            "annotator": {"kind": "openai_server", "base_url": "http://127.0.0.1", "model": "m"},
            "prompt": {"shots": 0, "variants": 1},
            "rounds": {"batch_size": 10},
            "student": {"references": []},
        }
    )
    config._folder = folder
    parts = Parts(
        texts=lambda: rows,  # type: ignore[arg-type, return-value]
        annotator=lambda: _annotator(port),
        reviewer=lambda: mock.Mock(),
        student=lambda: mock.Mock(),
    )
    ctx = Context(config, Store(f"sqlite:///{folder / 'asked.db'}"), parts)
    next_round.open_campaign(ctx)
    return lambda: stages.run_stage(ctx, "annotate")


def _annotator(port: int) -> Any:
    from connectors.llm.openai_server import OpenAIServerAnnotator

    return OpenAIServerAnnotator(f"http://127.0.0.1:{port}", "m", concurrency=AT_ONCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=4_000)
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    n = given.texts
    prompts = [f"Feeling?\n\nText: {TEXT.format(i)}\nLabel:" for i in range(n)]

    def running_it(client: Callable[..., Coroutine[Any, Any, None]], size: int) -> Any:
        return lambda: asyncio.run(client(port, prompts, size))

    print("| who asks | texts a second | CPU-s per 1,000 texts |")
    print("|---|---|---|")
    with running() as port, tempfile.TemporaryDirectory() as folder:
        askers = {
            "bare asyncio, one prompt a request": running_it(bare, 1),
            "bare asyncio, 16 prompts": running_it(bare, 16),
            "httpx.AsyncClient, one prompt": running_it(with_httpx, 1),
            "httpx.AsyncClient, 16 prompts": running_it(with_httpx, 16),
            "goldloop's annotator": ours_alone(port, n),
            "goldloop, votes stored": ours_stored(port, n, Path(folder)),
        }
        for name, ask in askers.items():
            began, cpu = time.monotonic(), time.process_time()
            ask()
            seconds, used = time.monotonic() - began, time.process_time() - cpu
            print(f"| {name} | {n / seconds:,.0f} | {1000 * used / n:.3f} |", flush=True)


if __name__ == "__main__":
    main()
