"""Thousands of campaign files: `check` and `status` take each, or say in sentences why not.

An oracle reads the same file with the standard library and compares the labels with those that
goldloop works with. Nothing may be written on the way.
"""

import json
import random
import sys
import tomllib

import pytest
from fakes import CentroidStudent
from typer.main import get_command

from loop.campaign.campaign_file import quoted, render
from loop.campaign.config import Config, load
from loop.cli import __main__ as cli
from loop.cli.demo_campaign import campaign_text
from loop.student.learning_rate import EMBEDDED

TEXTS = [
    {
        "text": f"{('awful', 'great')[i % 2]} text number {i}",
        "gold": ("no", "yes")[i % 2],
        "split": ("train", "train", "test", "dev")[i % 4],
        "llm": ("no", "yes", "no")[i % 3],
        "llm 2": ("no", "yes")[i % 2],
        "sure": 50 + i / 2,
        "ratings": ["no", "yes"],
    }
    for i in range(60)
]
FULL = {
    "campaign": {"name": "c", "task": "Is it good?"},
    "labels": [{"name": "no", "description": "it is not"}, {"name": "yes"}],
    "texts": {"source": "t.jsonl", "gold_column": "gold"},
    "annotator": {
        "kind": "recorded",
        "columns": ["llm", "llm 2"],
        "prob_columns": ["sure"] * 2,
        "confidence_scale": "percent",
    },
    "prompt": {
        "class_prior": {"no": 0.3, "yes": 0.7},
        "demonstrations": [{"text": "very good", "label": "yes"}],
    },
    "rounds": {"batch_size": 10},
    "budget": {"labels": 20, "usd": 10.0},
    "student": {"encoder": "minilm", "references": ["llm_only", "random", "all_gold"]},
    "raters": {"kind": "recorded", "ratings_column": "ratings"},
}
STRINGS = [
    "",
    " ",
    "\0",
    "a\0b",
    "x" * 5000,
    "no",
    "yes",
    "No",
    "né",
    "ne\u0301",
    "\u200b",
    "no\u200b",
    "\u202eno",
    "\ufeff",
    "a\nb",
    "a\tb",
    "\x1b[31m",
    "../..",
    ".",
    "/",
    "~",
    "~nobody/x",
    "hf:",
    "hf:x",
    "-",
    "=1+1",
    "{text}",
    "{labels}",
    "{0}",
    "{}",
    "{",
    "%s",
    "$HOME",
    "Unsure / none fits",
    "👍🏽",
    "日本",
    "t.jsonl",
    "t.csv",
    "goldloop.toml",
    "text",
    "gold",
    "split",
    "sure",
    "llm",
    "sqlite:///x.db",
    "sqlite://",
    "http://",
    "http://[",
    "http://user:secret@h",
    "127.0.0.1",
    "random",
    "entropy",
    "never",
    "nul",
    "a/b/c",
    "\\",
    '"',
    "'",
    "#",
    "nan",
    "1e999",
    "\u2028",
    "a" * 300 + "/b",
    "NaN",
    "None",
    "null",
]
RAW = [
    "0",
    "-1",
    "1",
    "3",
    "1.0",
    "0.5",
    "-0.0",
    "1e308",
    "1e999",
    "inf",
    "-inf",
    "nan",
    "-nan",
    "true",
    "false",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1" * 40,
    "1" * 5000,
    "0x10",
    "1_000",
    "[]",
    "{}",
    "[[]]",
    "[1, 2]",
    '["a"]',
    '["a", "a"]',
    '["no", "yes"]',
    '[""]',
    "{ a = 1 }",
    "{ no = nan, yes = 1 }",
    "{ no = inf, yes = 1 }",
    "1979-05-27",
    "07:32:00",
    "1979-05-27T07:32:00Z",
    '[{ name = "a" }, { name = "b" }]',
    '"""a\nb"""',
    "''",
    "'''\n'''",
    "",
    "=",
    "yes",
    "[",
    '"',
    "[" * 400 + "]" * 400,
    "{ a = " * 60 + "1" + " }" * 60,
]
LINES = [
    "x = 1",
    "[x]",
    "[[labels]]",
    "[labels]",
    "[[texts]]",
    "[texts]",
    "[prompt.demonstrations]",
    "[[prompt.demonstrations]]",
    'name = "no"',
    "campaign.name = 3",
    "a.b.c = 1",
    '"" = 1',
    '"a b" = 1',
    "\0",
    "\ufeff",
    "# \x07",
    "[a.b.c.d]",
    "student = 3",
    "labels = []",
    "[people.options]",
    'password = "x"',
    "[annotator.options]",
    "é = 1",
    "[[[x]]]",
    "]",
]


def toml(value):
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def full_file():
    """Every key of the campaign file, a line each."""
    lines = []
    for section, keys in Config.model_validate(FULL).model_dump(mode="json").items():
        for table in keys if isinstance(keys, list) else [keys]:
            lines.append(f"[[{section}]]" if isinstance(keys, list) else f"[{section}]")
            lines += [f"{key} = {toml(v)}" for key, v in table.items() if v is not None]
    return "\n".join(lines) + "\n"


FILES = [
    full_file(),
    render(
        name="c",
        task="Is it good?",
        source="t.jsonl",
        text_column="text",
        gold_column="gold",
        labels=[("no", ""), ("yes", "it is")],
    )
    .replace("labels = 300", "labels = 20")
    .replace("batch_size = 100 ", "batch_size = 10 "),
    campaign_text(by_hand=False, pool=400)
    .replace("texts.jsonl", "t.jsonl")
    .replace('"negative"', '"no"')
    .replace('"positive"', '"yes"')
    .replace("labels = 150", "labels = 20")
    .replace("batch_size = 50", "batch_size = 10"),
]


def spoilt(rng):
    """A campaign file's bytes, with one to three faults."""
    lines = rng.choice(FILES).splitlines()
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        at = rng.randrange(len(lines))
        line, fault = lines[at], rng.random()
        key, equals, value = line.partition(" = ")
        if equals and fault < 0.8:
            other = rng.choice(lines).partition(" = ")[2] or "7"
            odd = quoted(rng.choice(STRINGS))
            if not value.startswith('"') or rng.random() < 0.3:
                odd = rng.choice([odd, rng.choice(RAW), rng.choice(RAW), other])
            if rng.random() < 0.2 and value.startswith("["):
                odd = f"[{odd}, {odd}]"
            lines[at] = f"{key.lstrip('# ')} = {odd}"
        elif fault < 0.85:
            del lines[at]
        elif fault < 0.88:
            lines.insert(rng.randrange(len(lines)), line)
        elif fault < 0.94:
            lines.insert(at, rng.choice(LINES))
        else:
            lines[at] = line[: rng.randrange(len(line) + 1)] + rng.choice(STRINGS)
        lines = lines or [""]
    data = rng.choice(["\n", "\n", "\n", "\r\n", "\r"]).join(lines).encode()
    if rng.random() < 0.1:
        data = b"\xef\xbb\xbf" + data
    if rng.random() < 0.05:
        data = data.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32"]))
    for _ in range(rng.choice([0] * 18 + [1, 3])):
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) * rng.randint(0, 2) + data[at + 1 :]
    return data


class Place:
    """A folder with texts and a campaign file, where commands are given in this process."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        rows = "".join(json.dumps(row) + "\n" for row in TEXTS)
        (folder / "t.jsonl").write_text(rows, encoding="utf-8")
        (folder / "t.csv").write_text("text,gold\n" + "good,yes\nbad,no\n" * 9, encoding="utf-8")
        self.file = folder / "goldloop.toml"
        self.file.write_bytes(b"")
        self.there = self._files()
        monkeypatch.setattr("loop.cli.build.build_student", lambda *_: CentroidStudent())
        monkeypatch.setattr(cli, "app", get_command(cli.app))  # built once, not for every file

    def _files(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def command(self, name):
        """Exit code, and what was printed on stderr."""
        argv = ["goldloop", name, "--file", str(self.file)]
        self.monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = self.capsys.readouterr()
        assert self.there in (None, self._files())
        return ended.value.code or 0, told.err

    def try_file(self, data):
        """Whether `check` takes it."""
        self.file.write_bytes(data)
        code, told = self.command("check")
        sentences(code, told)
        if code:
            code, told = self.command("status")
            sentences(code, told)
            assert code
            return False
        assert "is fine." in told
        config = load(self.file)
        given = [label["name"] for label in tomllib.loads(plain(data))["labels"]]
        assert config.label_names == tuple(name.strip() for name in given)
        dumped = config.model_dump(mode="json")
        kept = json.loads(json.dumps(dumped, allow_nan=False))
        again = Config.model_validate(kept).model_dump(mode="json")
        assert again == dumped, "a round keeps the file as JSON"
        assert "\\u0000" not in json.dumps(kept), "PostgreSQL keeps no NUL"
        code, told = self.command("status")
        assert code == 1
        assert "There is no store" in told
        return True

    def begin(self):
        """What was found fine is taken by every stage up to people, too; then it is undone."""
        config = load(self.file)
        if config.annotator.kind != "recorded" or config.student.encoder not in EMBEDDED:
            return  # no model is loaded here
        before, self.there = self.there, None
        try:
            for stage in ("annotate", "score", "select"):
                code, told = self.command(stage)
                assert code == 0, told
        finally:
            self.there = before
            for path in sorted(self.folder.rglob("*"), reverse=True):
                if str(path.relative_to(self.folder)) not in before:
                    path.rmdir() if path.is_dir() else path.unlink()


def plain(data):
    """A file's text as TOML asks for it: without a byte order mark, lines that end alike."""
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def sentences(code, told):
    """What is printed is for people: a kind of news or error, and a sentence that ends."""
    assert code in (0, 1), told
    assert told.strip()
    for fault in ("Traceback", "did not expect", "ValueError", "TypeError", "pydantic", "\0"):
        assert fault not in told, told
    assert max(map(len, told.splitlines())) < 1500, told[:3000]
    if code:
        assert "rror: " in told
        assert told.rstrip()[-1] in ".?)\"'", told


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    return Place(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("text", FILES, ids=["full", "template", "demo"])
def test_unspoilt_files_are_fine(place, text):
    assert place.try_file(text.encode())
    place.begin()


def test_a_spoilt_campaign_file_is_taken_or_refused_in_a_sentence(place):
    taken = [place.try_file(spoilt(random.Random(seed))) for seed in range(60)]
    assert 3 < sum(taken) < 36


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 5100, 500))
def test_five_thousand_spoilt_campaign_files(place, first):
    for seed in range(first, first + 500):
        if place.try_file(spoilt(random.Random(seed))):
            place.begin()
