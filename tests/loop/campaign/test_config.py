import re

import pytest

from loop.campaign.campaign_file import render
from loop.campaign.config import line_of, load
from loop.errors import ConfigError
from loop.student.learning_rate import fitting_rate

GOOD = """\
[campaign]
name = "c"
task = "Decide."

[[labels]]
name = "yes"

[[labels]]
name = "no"

[texts]
source = "t.csv"
gold_column = "gold"
"""


def write(tmp_path, text):
    path = tmp_path / "goldloop.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_papers(tmp_path):
    student = load(write(tmp_path, GOOD)).student
    found = (student.encoder, student.epochs, student.batch_size, student.lr, student.seeds)
    assert found == ("roberta-base", 3, 16, None, 5)
    assert fitting_rate("roberta-base").value == 2e-5
    assert (student.weight_decay, student.warmup_frac) == (0.01, 0.05)


def test_recorded_labels_with_a_confidence_stay_what_was_recorded(tmp_path):
    recorded = GOOD + '[annotator]\nkind = "recorded"\ncolumns = ["llm"]\n'
    stated = recorded + 'prob_columns = ["sure"]\n'
    for text, calibration in (
        (GOOD, "batch"),
        (recorded, "batch"),
        (stated, "none"),
        (stated + '[prompt]\ncalibrate = "batch"\n', "batch"),
    ):
        assert load(write(tmp_path, text)).calibration == calibration


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    path = write(tmp_path, GOOD)
    monkeypatch.chdir("/")
    config = load(path)
    assert config.source == str(tmp_path / "t.csv")
    assert config.store_url == f"sqlite:///{tmp_path / 'c.db'}"


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_the_store_is_relative_to_the_file_however_it_is_spelt(tmp_path, monkeypatch, scheme):
    path = write(tmp_path, GOOD + f'[store]\nurl = "{scheme}:///deep/s.db"\n')
    monkeypatch.chdir("/")
    assert load(path).store_url == f"{scheme}:///{tmp_path / 'deep' / 's.db'}"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///:memory:?cache=shared",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite+pysqlite://",
        "sqlite://c.db",
    ],
)
def test_a_store_that_would_be_lost_is_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="would be lost when the command ends; name one"):
        load(write(tmp_path, GOOD + f'[store]\nurl = "{url}"\n'))


@pytest.mark.parametrize("url", ["", "c.db", "mysql://h/d", "postgres://h/d", "Sqlite:///c.db"])
def test_a_store_of_another_kind_is_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="SQLite or PostgreSQL database, such as"):
        load(write(tmp_path, GOOD + f'[store]\nurl = "{url}"\n'))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("[student]\nencodr = 'x'\n", "Unknown key 'encodr' in [student]. Did you mean 'encoder'?"),
        ("[studnt]\nencoder = 'x'\n", "Unknown key 'studnt' in the file. Did you mean 'student'?"),
        ("[strategy]\nsignals = ['margn']\n", "Unknown strategy 'margn'. Did you mean 'margin'?"),
        ("[budget]\nlabels = 0\n", "budget.labels = 0: must be at least 1"),
        ("[budget]\nlabels = 9\n[rounds]\nbatch_size = 10\n", "larger than budget.labels 9"),
        ("[annotator]\nkind = 'recorded'\n", "needs columns"),
        ("[raters]\nkind = 'recorded'\n", "needs ratings_column"),
        ("[annotator]\nkind = 'openai_server'\n", "needs base_url"),
        ("[prompt]\nitem = 'Text:'\n", "the item template needs {text} once: 'Text:'"),
        ("[prompt]\nitem = ['{text}', '{text} ']\n", "must not end in white space"),
        ("[prompt]\ninstruction = '{task} {lables}'\n", "{lables} in the instruction template is"),
        ("[prompt]\ninstruction = []\n", "need a template each"),
        ("[prompt]\nlabel_form='ids'\ninstruction='{task}'\n", 'ids" needs {labels}'),
        (
            "[prompt]\ncalibrate='contextual'\n[annotator]\nkind='recorded'\ncolumns=['x']\n",
            "asks the LLM about empty texts",
        ),
        ("[prompt]\nvariants = 1\n[strategy]\nsignals=['flip_rate']\n", "needs prompt.variants"),
        ("[prompt.class_prior]\nyes = 1.0\n", "one positive share for every label"),
        ("[prompt.class_prior]\nyes = nan\nno = 1.0\n", "class_prior.yes = nan: must be a finite"),
        (
            "[annotator]\nkind = 'recorded'\ncolumns = ['x']\nconfidence_scale = 'log'\n",
            "confidence_scale says how prob_columns are written; name these",
        ),
        ("[student]\nlr = inf\n", "student.lr = inf: must be a finite number"),
        ("[rounds]\nseed = 9999999999\n", "rounds.seed: must be at most 2,147,483,647"),
        ("[annotator]\noptions = { x = [1, nan] }\n", "options: must be a finite number"),
        ("[annotator]\noptions = { x = ['\\u0000'] }\n".replace("'", '"'), "a NUL character"),
        ("[student]\nencoder = ''\n", "student.encoder = '': must not be empty"),
        ("[student]\nseeds = '5 of'\n", "student.seeds = '5 of': must be a whole number"),
        ("[student]\nreferences = 'llm_only'\n", "must be a list, in square brackets"),
        ("[people]\nnote = 'sure'\n", "people.note = 'sure': must be true or false"),
        ("[prompt]\ndemonstrations = [1]\n", "must be a table of keys and values"),
        (f"[people]\noverlap = '{'x' * 500}'\n", f"'{'x' * 78}…: must be a whole number"),
        (f"[student]\nencoder = '{'x' * 300}'\n", "longer than the name of any file or model"),
        (f"[rounds]\nseed = {'1' * 5000}\n", "a number has too many digits"),
        (f"[rounds]\nseed = {'[' * 5000}\n", "nested too deeply"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path, extra, expected):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD + extra))
    assert expected in str(caught.value)
    assert "goldloop.toml" in str(caught.value)


def test_a_label_that_is_wrong_is_not_called_missing_as_well(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD.replace('"no"', "0")))
    assert str(caught.value).endswith(":9: labels.1.name = 0: must be a text, in quotes.")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xef\xbb\xbf" + GOOD.encode(), None),
        (GOOD.replace("\n", "\r\n").encode(), None),
        (GOOD.replace("\n", "\r").encode(), None),
        (GOOD.encode("utf-16"), ":1: The file is not in UTF-8 (byte 0xff); save it as UTF-8."),
        (GOOD.replace("Decide", "D\u00e9cide").encode("latin-1"), ":3: The file is not in UTF-8"),
    ],
)
def test_files_of_other_editors_are_read_or_named(tmp_path, data, said):
    path = tmp_path / "goldloop.toml"
    path.write_bytes(data)
    if said is None:
        assert load(path).label_names == ("yes", "no")
    else:
        with pytest.raises(ConfigError, match=re.escape(said)):
            load(path)


def test_all_mistakes_come_in_one_pass(tmp_path):
    text = GOOD + "[student]\nseeds = 1\nlrr = 2\n[rounds]\nrounds = 0\n"
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in sorted(lines)] == ["15", "16", "18"]


def test_keys_about_people_are_still_read_where_they_were(tmp_path):
    old = '[label_studio]\nurl = "http://x"\noverlap = 3\nrule = "dawid-skene"\n'
    new = '[label_studio]\nurl = "http://x"\n[people]\noverlap = 3\nrule = "dawid-skene"\n'
    before, after = (load(write(tmp_path, GOOD + text)) for text in (old, new))
    assert before.model_dump() == after.model_dump()
    assert before.people.overlap == 3
    assert after.old_keys_note is None
    assert before.old_keys_note.startswith("overlap, rule: these keys are about people and now")
    both = write(tmp_path, GOOD + old + "[people]\noverlap = 2\n")
    with pytest.raises(ConfigError, match=r"overlap stands in \[people\] and in \[label_studio\]"):
        load(both)
    wrong = write(tmp_path, GOOD + '[label_studio]\nurl = "http://x"\noverlap = 0\n')
    line = (GOOD + old).splitlines().index("overlap = 3") + 1
    with pytest.raises(ConfigError, match=rf":{line}: people.overlap = 0"):
        load(wrong)


def test_line_of_counts_repeated_tables():
    assert line_of(GOOD, ("labels", 1, "name")) == 9
    assert line_of(GOOD, ("texts", "gold_column")) == 13
    assert line_of(GOOD, ("nowhere",)) is None


def test_labels_given_twice_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="given twice: yes"):
        load(write(tmp_path, GOOD.replace('"no"', '"yes"')))


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="goldloop init"):
        load(tmp_path / "none.toml")


def test_broken_toml_names_the_place(tmp_path):
    with pytest.raises(ConfigError, match="line 2"):
        load(write(tmp_path, "[campaign]\nname = \n"))


def test_init_file_round_trips_hostile_values(tmp_path):
    labels = [('a "quoted", <b>', "x = 'y' # not a comment"), ("é\\n", ""), ("c]", "[[labels]]")]
    text = render(
        name="n",
        task='Say "yes"\nor no \x7f',
        source="a b.csv",
        text_column="te\txt",
        gold_column=None,
        labels=labels,
    )
    config = load(write(tmp_path, text))
    assert [(la.name, la.description) for la in config.labels] == labels
    assert config.campaign.task == 'Say "yes"\nor no \x7f'
    assert config.texts.text_column == "te\txt"


def test_what_is_no_campaign_file_is_not_read_to_its_end(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name the campaign file in it"):
        load(tmp_path)
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ConfigError, match="larger than 16 MB, so it is no campaign file"):
        load(tmp_path / "huge.toml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "', 'name = "ü/'), "name = 'ü/.*: must be 1 to 63 letters \\(A to Z\\)"),
        (None, "address = 'x': must be 'auto', 'local' or a host and a port"),
    ],
)
def test_the_form_of_a_value_is_told_in_words(tmp_path, change, said):
    text = GOOD.replace(*change, 1) if change else f'{GOOD}\n[executor]\naddress = "x"\n'
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load(path)
