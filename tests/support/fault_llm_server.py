"""A language model server on loopback that behaves as badly as it is told to.

It speaks vLLM's, llama.cpp's or a hosted service's dialect over real HTTP. Its model is a table of
random numbers that depend on the prompt alone, so that what it should have said can be computed.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

WORDS = (
    *(" positive", " negative", " neutral", " review", " complaint", " a", " hate", " speech"),
    *(" mail", "positive", "negative", "neutral", "\n\n", "</s>", "Label:"),
)
SIZE = 256 + len(WORDS)
START = 1  # stands before every whole prompt
SECRET = "sk-not-for-any-log-0123456789"


def tokenize(text, *, bare=False):
    """Longest known word first, else one token for each character."""
    ids = [] if bare else [START]
    while text:
        word = max((w for w in WORDS if text.startswith(w)), key=len, default=text[0])
        ids.append(256 + WORDS.index(word) if word in WORDS else ord(word) % 256)
        text = text[len(word) :]
    return ids


def log_probs(ids, *, coarse=False, scale=1.0):
    """(SIZE,) the model: log-probabilities of the next token after these."""
    rng = np.random.default_rng(zlib.crc32(json.dumps(ids).encode()))
    logits = rng.normal(0, 1, SIZE)
    logits[256:] += 4 * scale  # words are what comes next
    if coarse:
        logits = np.round(logits * 2) / 2
    return logits - np.logaddexp.reduce(logits)


def true_masses(prompt, continuations, ends=("\n", "\n\n", "</s>"), **how):
    """(k,) probability of each answer, and of an end after it if one has several tokens."""
    before = tokenize(prompt)
    labels = [tokenize(prompt + c)[len(before) :] for c in continuations]
    whole = any(len(ids) > 1 for ids in labels)
    end_ids = [tokenize(end, bare=True)[0] for end in ends]
    masses = []
    for ids in labels:
        total = sum(log_probs(before + ids[:i], **how)[t] for i, t in enumerate(ids))
        mass = np.exp(total)
        if whole:
            mass *= np.exp(log_probs(before + ids, **how)[end_ids]).sum()
        masses.append(mass)
    return np.array(masses)


class Server(ThreadingHTTPServer):
    """The server and what it saw.

    Attributes:
        dialect: "vllm", "old vllm", "llama.cpp", "top-k", "no log-probs".
        faults: the next faults, one for each generating request; or a function from its body to a
            fault or None. Faults are names of the methods ``fault_*`` below.
        calls: generating requests by the text (or tokens) of each of their prompts.
        answered: those that were answered well.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, dialect="vllm", *, faults=(), key=None, coarse=False, scale=1.0, top_k=20):
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect = dialect
        self.faults: list[str] | Callable = faults if callable(faults) else list(faults)
        self.key = key
        self.coarse = coarse
        self.scale = scale
        self.top_k = top_k
        self.context = 100_000
        self.calls = Counter()
        self.answered = Counter()
        self.paths = Counter()
        self.said = defaultdict(int)
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, body):
        if callable(self.faults):
            return self.faults(body)
        with self.lock:
            return self.faults.pop(0) if self.faults else None

    def handle_error(self, request, client_address):
        """Connections that a fault breaks are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and body in one packet
    server: Server

    def log_message(self, *_args):
        pass

    def send(self, status, data, headers=()):
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def refuse(self, status, message, headers=()):
        self.send(status, {"error": {"message": message}}, headers)

    def allowed(self):
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
            return False
        return True

    def do_GET(self):
        if self.allowed():
            if self.path == "/v1/models":
                self.send(200, {"data": [{"id": "tiny"}, {"id": "other"}]})
            else:
                self.refuse(404, "no such thing")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.paths[self.path] += 1
        if not self.allowed():
            return
        if self.path == "/tokenize" and server.dialect in ("vllm", "old vllm"):
            text = body.get("prompt")
            if text is None:
                text = "<s>" + body["messages"][0]["content"] + "<turn>"
            ids = tokenize(text, bare=not body.get("add_special_tokens", True))
            self.send(200, {"tokens": ids, "count": len(ids), "max_model_len": 4096})
        elif self.path == "/tokenize" and server.dialect == "llama.cpp":
            self.send(
                200,
                {"tokens": tokenize(body.get("content", ""), bare=not body.get("add_special"))},
            )
        elif self.path in ("/v1/completions", "/v1/chat/completions", "/completion"):
            self.generate(body)
        else:
            self.refuse(404, "no such path")

    def generate(self, body):
        server = self.server
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            fault = server.next_fault(body)
            prompt = body.get("prompt") or body["messages"][0]["content"]
            several = isinstance(prompt, list) and isinstance(prompt[0], str)
            whole = prompt if isinstance(prompt, str) else json.dumps(prompt)
            names = prompt if several else [whole]
            with server.lock:
                server.calls.update(names)
            if fault in WIRE:
                WIRE[fault](self)
                return
            if (several or prompt is whole) and max(map(len, names)) > server.context:
                self.refuse(400, "This model's maximum context length is exceeded")
                return
            answer = self.answer(body, prompt)
            if answer is None:
                return
            if fault:
                answer = SPOILED[fault](answer)
            else:
                with server.lock:
                    server.answered.update(names)
            self.send(200, answer)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, body, prompt):
        server = self.server
        how = {"coarse": server.coarse, "scale": server.scale}
        if self.path == "/completion":
            values = log_probs(prompt, **how)
            for token, bias in body.get("logit_bias", ()):
                values[token] += bias
            values -= np.logaddexp.reduce(values)
            best = np.argsort(-values)[: body["n_probs"]]
            if body["post_sampling_probs"]:
                listed = {"top_probs": [{"id": int(i), "prob": np.exp(values[i])} for i in best]}
            else:
                listed = {"top_logprobs": [{"id": int(i), "logprob": values[i]} for i in best]}
            return {
                "completion_probabilities": [listed],
                "tokens_evaluated": len(prompt),
            }
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        tokens = [tokenize(p) if isinstance(p, str) else p for p in prompts]
        usage = {
            "prompt_tokens": sum(map(len, tokens)),
            "completion_tokens": len(tokens),
            "prompt_tokens_details": {"cached_tokens": 10},
        }
        choices = []
        for index, ids in enumerate(tokens):
            values = log_probs(ids, **how)
            if server.dialect == "no log-probs":
                choices += [
                    self.spoken(ids, index * body.get("n", 1) + i) for i in range(body.get("n", 1))
                ]
                continue
            if server.dialect == "vllm":
                top = {f"token_id:{i}": values[i] for i in body.get("logprob_token_ids", ())}
                top[f"token_id:{values.argmax()}"] = values.max()
            else:
                wanted = body.get("top_logprobs") or body["logprobs"]
                if wanted > server.top_k:
                    self.refuse(400, f"logprobs must be at most {server.top_k}")
                    return None
                best = np.argsort(-values)[:wanted]
                top = {(chr(i) if i < 256 else WORDS[i - 256]): float(values[i]) for i in best}
            if "messages" in body:
                content = [{"token": t, "logprob": v} for t, v in top.items()]
                choices.append(
                    {"index": index, "logprobs": {"content": [{"top_logprobs": content}]}}
                )
            else:
                choices.append(
                    {
                        "index": index,
                        "text": "x",
                        "logprobs": {"top_logprobs": [top]},
                        "prompt_token_ids": ids if body.get("return_token_ids") else None,
                    }
                )
        return {"choices": choices[::-1], "usage": usage}  # order is told by the index alone

    def spoken(self, ids, index):
        """One sampled answer, chosen by how many this prompt has had."""
        with self.server.lock:
            count = self.server.said[json.dumps(ids)]
            self.server.said[json.dumps(ids)] += 1
        said = [" positive", "Positive.", " negative\nText:", " I cannot say"][count % 4]
        return {"index": index, "text": said}


# faults on the wire


def _drop(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def _cut_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True


WIRE = {
    "delay": lambda h: (time.sleep(0.7), h.send(200, {})),
    "429": lambda h: h.refuse(429, "slow down", [("Retry-After", "0.2")]),
    "429 without": lambda h: h.refuse(429, "slow down"),
    "429 for an hour": lambda h: h.refuse(429, "slow down", [("Retry-After", "3600")]),
    "quota": lambda h: h.refuse(429, "insufficient_quota: pay first"),
    "500": lambda h: h.refuse(500, "boom"),
    "503 as a page": lambda h: h.send(503, b"<html>down</html>"),
    "drop": _drop,
    "cut body": _cut_body,
    "truncated json": lambda h: h.send(200, b'{"choices": [{"index": 0, "logp'),
    "no json": lambda h: h.send(200, b"<html>hello</html>"),
    "a list": lambda h: h.send(200, [1]),
    "400": lambda h: h.refuse(400, "cannot read this text"),
    "401": lambda h: h.refuse(401, f"Incorrect API key provided: {SECRET}"),
    "404": lambda h: h.refuse(404, "gone"),
}


# faults in the answer


def _first(answer, change):
    for choice in answer["choices"]:
        change(choice)
    return answer


def _each_value(value):
    def change(choice):
        top = choice["logprobs"]["top_logprobs"][0]
        choice["logprobs"]["top_logprobs"][0] = dict.fromkeys(top, value)

    return lambda answer: _first(answer, change)


SPOILED = {
    "no choices": lambda a: a | {"choices": []},
    "a choice too many": lambda a: a | {"choices": a["choices"] * 2},
    "null logprobs": lambda a: _first(a, lambda c: c.update(logprobs=None)),
    "logprobs missing": lambda a: _first(a, lambda c: c.pop("logprobs")),
    "a label missing": lambda a: _first(
        a,
        lambda c: c["logprobs"]["top_logprobs"][0].pop(
            next(iter(c["logprobs"]["top_logprobs"][0]))
        ),
    ),
    "nan": _each_value(float("nan")),
    "null": _each_value(None),
    "positive": _each_value(3.0),
    "text": _each_value("-1.0"),
}
ALL_FAULTS = [
    *("delay", "429", "429 without", "500", "503 as a page", "drop", "cut body"),
    *("truncated json", "no json", "a list"),
    *SPOILED,
]


@contextmanager
def running(*args, **kwargs):
    """A server in a thread."""
    server = Server(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
