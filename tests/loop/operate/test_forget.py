"""A person's name leaves the campaign for good, and nothing else changes."""

import html
import json
import re
import unicodedata
import uuid
from urllib.parse import quote

import markupsafe
import pytest
from operated import PEOPLE, answer, at_work
from sqlalchemy import text

from loop.errors import LoopError
from loop.operate.forget import forget_person
from loop.people.forgotten import without_name
from loop.people.import_labels import import_labels
from loop.people.scorecards import campaign_people
from loop.ports import GivenLabel
from loop.report.collect import write_outputs
from loop.report.status import campaign_status
from loop.round import run_round

ANN, BOB = PEOPLE


def bytes_with(folder, name):
    return [p.name for p in folder.rglob("*") if p.is_file() and name.encode() in p.read_bytes()]


def figures(ctx):
    people = [vars(p) | {"name": None} for p in campaign_people(ctx.config, ctx.store)]
    key = lambda person: json.dumps(person, default=vars, sort_keys=True)  # noqa: E731
    return sorted(people, key=key), campaign_status(ctx.config, ctx.store)


def test_the_name_is_gone_and_the_figures_stay(campaign):
    ctx = at_work(campaign)
    with ctx.store.transaction() as session:
        ctx.store.log(session, "c", "test", "said", by=ANN, nested=[{"who": f"{ANN}: well"}])
        session.execute(text("update annotation set note = 'as Ann Smith said' where id = 1"))
    (campaign / "runs" / "people.md").write_text(f"- {ANN} and {BOB}\n")
    (campaign / "backup.goldloop.zip").write_text("old")
    vocabulary = json.dumps({"ann": 1, "smith": 2, "ann smith": 3})
    for folder in ("models/round-9", "cache", "final"):
        (campaign / "runs" / folder).mkdir(parents=True, exist_ok=True)
        (campaign / "runs" / folder / "vocab.json").write_text(vocabulary)
    (campaign / "runs" / "final" / "model.safetensors").touch()
    before = figures(ctx)
    done = forget_person(ctx.config, ctx.store, ANN.upper(), also=["Ann Smith"])
    assert figures(ctx) == before
    assert done.pseudonym.startswith("person-")
    assert (done.answers > 8, done.mentions >= 1) == (True, True)
    assert "people.md" in {p.name for p in done.files}
    assert any("backup.goldloop.zip" in what for what in done.left)
    assert {p.name for p in campaign_people(ctx.config, ctx.store)} == {done.pseudonym, BOB}
    ctx.store.close()
    assert bytes_with(campaign, ANN) == ["studio.json"]
    assert bytes_with(campaign, "Ann Smith") == []
    for path in (campaign / "runs").rglob("vocab.json"):  # what a model reads stays as it is
        assert path.read_text() == vocabulary
    assert bytes_with(campaign, BOB)


def test_people_whose_names_begin_alike_stay(campaign):
    ctx = at_work(campaign)
    others = ("ann-marie", "ann@example.org.uk", "mary-ann@x.org")
    rows = [
        row[0]
        for row in ctx.store.transaction()
        .__enter__()
        .execute(text("select id from annotation order by id limit 3"))
    ]
    with ctx.store.transaction() as session:
        for row, name in zip(rows, others, strict=True):
            session.execute(
                text("update annotation set annotator = :n where id = :i"), {"n": name, "i": row}
            )
    pseudonym = forget_person(ctx.config, ctx.store, ANN, also=["ann", "ann@example.org"]).pseudonym
    everybody = {a.annotator for a in ctx.store.annotations("c")}
    assert everybody >= {*others, pseudonym}
    ctx.store.close()


def test_other_names_are_remembered_and_imports_are_looked_at(campaign):
    ctx = at_work(campaign)
    done = forget_person(ctx.config, ctx.store, ANN, also=["user 5"])
    texts = [item.text for item in ctx.store.items("c", "pool")]
    free = [item for item in ctx.store.items("c", "pool") if item.id not in ctx.store.gold("c")]
    label = ctx.config.label_names[0]
    given = [
        GivenLabel({"text": item.text}, 1, person, label, "", "")
        for item, person in zip(free, ("user 5", "carol@x.org"), strict=False)
    ]
    assert import_labels(ctx, "t.json", "x", given).new == len(given) == min(2, len(texts))
    event = ctx.store.last_event("c", "import-labels", "labels imported")
    persons = {a[1] for answers in event.detail["answers"].values() for a in answers}
    assert persons == {done.pseudonym, "carol@x.org"}
    carol = forget_person(ctx.config, ctx.store, "carol@x.org").pseudonym
    event = ctx.store.last_event("c", "import-labels", "labels imported")
    assert carol in json.dumps(event.detail)
    assert "carol" not in json.dumps(event.detail)
    ctx.store.close()


def test_later_answers_do_not_bring_it_back(campaign):
    ctx = at_work(campaign)
    stored = len(ctx.store.annotations("c"))
    pseudonym = forget_person(ctx.config, ctx.store, ANN).pseudonym
    ctx.store.read_anew("c")
    run_round(ctx)
    assert len(ctx.store.annotations("c")) == stored  # nothing twice
    answer(ctx)
    assert run_round(ctx).stage == "done"
    write_outputs(ctx.config, ctx.store)
    assert {a.annotator for a in ctx.store.annotations("c")} == {pseudonym, BOB}
    again = forget_person(ctx.config, ctx.store, ANN)
    assert (again.pseudonym, again.answers) == (pseudonym, 0)
    with pytest.raises(LoopError, match="goldloop people"):
        forget_person(ctx.config, ctx.store, "nobody")
    ctx.store.close()
    assert bytes_with(campaign, ANN) == ["studio.json"]


@pytest.mark.slow
def test_in_postgresql_too(tmp_path, postgres):
    name = f"test_{uuid.uuid4().hex}"
    postgres.psql(f"create database {name};")
    url = postgres.get_uri(name).replace("postgresql://", "postgresql+psycopg://")
    ctx = at_work(tmp_path, url)
    run_round(ctx)
    answer(ctx, 3)
    run_round(ctx)
    pseudonym = forget_person(ctx.config, ctx.store, ANN).pseudonym
    assert {a.annotator for a in ctx.store.annotations("c")} == {pseudonym, BOB}
    ctx.store.close()


def test_only_whole_names_and_personal_fields_are_replaced():
    raw = {
        "id": 7,
        "completed_by": {"id": 3, "email": "a@b.c", "first_name": "Ann"},
        "created_username": " Ann, 3",
        "result": [{"value": {"text": ["ann said annotate; Ann."]}}],
        "parent_prediction": None,
        "updated_by": None,
    }
    clean = without_name(raw, ["ann", "a@b.c"], "person-1", own=True)
    assert clean == {
        "id": 7,
        "completed_by": "person-1",
        "created_username": "person-1",
        "result": [{"value": {"text": ["person-1 said annotate; person-1."]}}],
        "parent_prediction": None,
        "updated_by": None,
    }
    assert without_name("x-a@b.c, a@b.com, aa@b.c", ["a@b.c"], "p") == "x-p, a@b.com, aa@b.c"


NAMES = ("o'brien@example.org", "Jürgen \u201eJ\u201c Groß", "a&b@x.org", 'Al "A" <Smith>', "名前")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "written",
    [
        html.escape,
        markupsafe.escape,
        json.dumps,
        str.upper,
        quote,
        lambda name: json.dumps(name, ensure_ascii=False),
        lambda name: json.dumps(name.upper()),
        lambda name: json.dumps(f"said\n{name}\n"),
        lambda name: json.dumps(f"\u201c{name}\u201d"),
        lambda name: json.dumps(html.escape(name)),
        lambda name: unicodedata.normalize("NFD", name),
        lambda name: json.dumps(unicodedata.normalize("NFD", name)),
        lambda name: name.replace("_", "\\_").replace("&", "\\&").replace('"', '""'),
    ],
)
def test_a_name_is_known_however_a_file_writes_it(name, written):
    for known in (name, unicodedata.normalize("NFD", name)):
        clean = without_name(f"by {written(name)}.", [known], "PSEUDO")
        plain = re.sub(r"\W|said|u201.", "", clean.replace("\\n", ""))
        assert plain == "byPSEUDO", clean


def test_an_escaped_letter_beside_a_name_makes_it_another_word():
    for other in ("r\u00e9al", "Al\u00e9a", "Ale\u0301", "e\u0301Al"):
        written = json.dumps(other)
        assert without_name(written, ["Al", "Ale"], "p") == written
    assert without_name("Ale\u0301", ["Ale"], "p") == "Ale\u0301"


def test_no_escaped_name_is_left_in_the_report(campaign):
    ctx = at_work(campaign)
    name, odd = "o'brien@example.org", "Jürgen O'Groß"
    with ctx.store.transaction() as session:
        session.execute(
            text("update annotation set annotator = :n where annotator = :a"), {"n": name, "a": ANN}
        )
        session.execute(
            text("update annotation set note = :n where id = 1"), {"n": f"as {odd} said"}
        )
    write_outputs(ctx.config, ctx.store)
    page = campaign / "runs" / "report.html"
    assert "brien" in page.read_text()
    (campaign / "runs" / "notes.json").write_text(json.dumps([f"says\n{odd}"]))
    forget_person(ctx.config, ctx.store, name, also=[odd])
    ctx.store.close()
    assert "brien" not in page.read_text()
    assert "Gro" not in (campaign / "runs" / "notes.json").read_text()
