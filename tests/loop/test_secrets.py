"""Secrets planted in every key that may hold an address or name a variable: none comes out."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from loop.addresses import hidden, secret_in, without_folders
from loop.campaign.config import Config, NoSecret, Section, _names_a_variable, read
from loop.cli import __main__ as cli
from loop.errors import ConfigError
from loop.report.collect import write_outputs
from loop.round import run_round
from tests.loop.cli.test_main import goldloop, good_rows, write_campaign, write_texts
from tests.support.campaigns import make

SECRET = "hunter2-Kz9pQ"
PLANTED = (
    f"http://me:{SECRET}@127.0.0.1:9/",
    f"https://{SECRET}@127.0.0.1:9/",
    f"http://127.0.0.1:9/?token={SECRET}",
    f"http://127.0.0.1:9/?a=b&API_KEY={SECRET}",
    f"http://127.0.0.1:9/#access_token={SECRET}",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/db",
    f"postgresql+psycopg://me:a/b@{SECRET}@127.0.0.1:9/db",
    f"postgresql+psycopg://me@127.0.0.1:9/db?password={SECRET}",
    f"postgresql+psycopg://me@127.0.0.1:9/db?sslpassword={SECRET}",
    f"postgresql+psycopg:///db?host=127.0.0.1&pass%77ord={SECRET}",
    f"s3://key:{SECRET}@bucket/texts.csv",
)


def keys(section=Config, path=()):
    """(path, field) of every key of the campaign file."""
    for name, field in section.model_fields.items():
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [c for c in inner if isinstance(c, type) and issubclass(c, Section)]
        if sections:
            yield from keys(sections[0], (*path, name))
        else:
            yield (*path, name), field


def marked(field, mark):
    return mark in repr(field.metadata) + repr(field.annotation)


ADDRESSES = [path for path, field in keys() if marked(field, NoSecret.__name__)]
VARIABLES = [path for path, field in keys() if marked(field, _names_a_variable.__name__)]


def test_every_key_that_may_hold_an_address_is_guarded():
    every = [path for path, _ in keys()]
    assert {p for p in every if re.search("url|uri|address|host", p[-1])} <= set(ADDRESSES)
    assert {p for p in every if p[-1].endswith("_env")} == set(VARIABLES)
    assert set(ADDRESSES) == {
        ("texts", "source"),
        ("annotator", "model"),
        ("annotator", "base_url"),
        ("student", "encoder"),
        ("label_studio", "url"),
        ("store", "url"),
        ("store", "folder"),
        ("tracking", "uri"),
        ("executor", "address"),
    }
    assert VARIABLES


def everything(folder):
    """Every byte of every file, and of every value of every database."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "goldloop.toml":
            yield path, path.read_bytes()


COMMANDS = (
    ("check",),
    ("annotate",),
    ("annotate", "--plan"),
    ("run",),
    ("push",),
    ("status",),
    ("status", "--json"),
    ("report",),
    ("people",),
    ("export", "out.csv"),
    ("--debug", "status"),
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_debug", False)
    write_texts(tmp_path, good_rows())
    return lambda *args: goldloop(monkeypatch, capsys, *args)


def plant(folder, path, value):
    """The campaign file with one key set; tables that are there already are taken up."""
    write_campaign(folder)
    file = folder / "goldloop.toml"
    lines = file.read_text().splitlines()
    table, line = f"[{path[0]}]", f"{path[1]} = {json.dumps(value)}"
    start = lines.index(table) if table in lines else None
    if start is None:
        lines += [table, line]
    else:
        end = next((i for i, s in enumerate(lines) if i > start and s.startswith("[")), len(lines))
        body = [s for s in lines[start + 1 : end] if not s.startswith(f"{path[1]} =")]
        lines[start:end] = [table, line, *body]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("path", ADDRESSES, ids=".".join)
def test_a_secret_in_an_address_is_refused_and_shown_nowhere(run, tmp_path, path):
    for value in PLANTED:
        plant(tmp_path, path, value)
        code, out, err = run("status")
        assert code == 1, value
        assert f"{path[0]}.{path[1]}: the address holds" in err
        variables = "PGPASSWORD|LABEL_STUDIO_API_KEY|OPENAI_API_KEY|HF_TOKEN|WANDB_API_KEY|RAY_AUTH"
        assert re.search(variables, err)
        assert SECRET not in out + err
    for command in COMMANDS:
        if command[0] == "--debug":
            with pytest.raises(ConfigError) as caught:
                run(*command)
            assert SECRET not in str(caught.value) + str(caught.value.__cause__)
            continue
        code, out, err = run(*command)
        assert (code, SECRET in out + err) == (1, False), command
    assert [p for p, data in everything(tmp_path) if SECRET.encode() in data] == []


@pytest.mark.parametrize("path", VARIABLES, ids=".".join)
@pytest.mark.parametrize("token", [f"sk-{SECRET}", "0123456789abcdef" * 2 + SECRET, SECRET.lower()])
def test_a_token_in_place_of_its_variables_name_is_refused(run, tmp_path, path, token):
    plant(tmp_path, path, token)
    code, out, err = run("run")
    assert code == 1
    assert "must be the name of an environment variable" in err
    assert token not in out + err
    assert [p for p, data in everything(tmp_path) if token.encode() in data] == []


@pytest.mark.parametrize("path", ADDRESSES, ids=".".join)
def test_a_secret_of_a_wrong_type_is_not_repeated(tmp_path, path):
    plant(tmp_path, path, [PLANTED[0]])
    text = (tmp_path / "goldloop.toml").read_text()
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path / "goldloop.toml")
    assert SECRET not in str(caught.value) + str(caught.value.__cause__)


def test_tokens_of_the_environment_stay_there(run, tmp_path, monkeypatch):
    for name in ("LABEL_STUDIO_API_KEY", "OPENAI_API_KEY", "PGPASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    write_campaign(tmp_path, url="http://127.0.0.1:9")
    said = "".join(
        "".join(map(str, run(*command)))
        for command in (
            ("annotate",),
            ("score",),
            ("select",),
            ("push",),
            ("run",),
            ("status",),
            ("report",),
            ("export", "out.csv"),
        )
    )
    assert "127.0.0.1:9" in said
    assert SECRET not in said
    files = dict(everything(tmp_path))
    assert {"c.db", "report.html", "rounds.json"} <= {p.name for p in files}
    assert [p for p, data in files.items() if SECRET.encode() in data] == []


def test_rounds_of_older_versions_do_not_bring_secrets_into_the_report(tmp_path):
    ctx = make(tmp_path)
    run_round(ctx)
    with sqlite3.connect(tmp_path / "c.db") as database:
        (told,) = database.execute("select config from round").fetchone()
        config = json.loads(told)
        config["label_studio"]["url"] = PLANTED[0]
        config["store"]["url"] = PLANTED[7]
        database.execute("update round set config = ?", [json.dumps(config)])
    database.close()
    path = write_outputs(ctx.config, ctx.store)
    for file in (path, path.with_name("rounds.json")):
        assert SECRET not in file.read_text()
        assert "127.0.0.1:9" in file.read_text()


@pytest.mark.parametrize("address", PLANTED)
def test_secrets_are_known_and_hidden(address):
    assert secret_in(address)
    if "%" not in address and not address.startswith("https://"):
        assert SECRET not in hidden(f"It is at {address} or so.")


@pytest.mark.parametrize(
    "address",
    [
        "local",
        "http://127.0.0.1:8080",
        "https://host.example/sub/",
        "http://[::1]:8000/v1",
        "sqlite:////home/me@work/x:y/c.db",
        "sqlite:///c.db",
        "postgresql+psycopg://me@host/db",
        "postgresql+psycopg://me@/db?host=/run/postgresql&sslmode=require&passfile=/home/me/.pgpass",
        "hf:owner/name#config",
        "texts.csv",
        "../a b/c@d.csv",
        "roberta-base",
        "owner/model-key",
        "runs",
    ],
)
def test_honest_addresses_pass(address):
    assert secret_in(address) is None
    assert hidden(address) == address
    assert Path(address)


@pytest.mark.parametrize("option", ["--public-url", "--page-url"])
def test_a_public_address_with_a_password_is_refused(run, tmp_path, option):
    write_campaign(tmp_path)
    code, out, err = run("serve", option, PLANTED[0])
    assert code == 1
    assert f"{option} holds a password" in err
    assert SECRET not in out + err


@pytest.mark.parametrize(
    ("named", "shared"),
    [
        ("/home/me/models/little", "little"),
        ("~/models/little/", "little"),
        ("../little", "little"),
        ("./reviews.csv", "reviews.csv"),
        ("org/model", "org/model"),
        ("roberta-base", "roberta-base"),
        ("hf://org/texts", "hf://org/texts"),
    ],
)
def test_names_for_others_are_without_the_folders_of_this_machine(named, shared):
    assert without_folders(named) == shared
