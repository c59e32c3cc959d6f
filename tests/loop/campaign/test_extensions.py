"""Parts of other packages: found by their entry points, and refused in one sentence."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from loop.campaign import extensions
from loop.campaign.config import Config, read
from loop.cli.build import build_annotator
from loop.errors import ConfigError
from loop.pool_arrays import suspicion_by
from strategies import STRATEGIES, Pool

ROOT = Path(__file__).parents[3]
FILE = """\
[campaign]
name = "{name}"
task = "t"
[[labels]]
name = "bad"
[[labels]]
name = "good"
[texts]
source = "t.csv"
gold_column = "gold"
[annotator]
kind = "{kind}"
options.words = {{ good = ["great", "happy"], bad = ["awful", "sad"] }}
[prompt]
shots = 0
variants = 1
[strategy]
signals = ["{signal}"]
[budget]
labels = 12
[rounds]
rounds = 1
batch_size = 12
audit_frac = 0.5
[student]
seeds = 2
references = []
[people]
platform = "{platform}"
options.file = "desk.json"
[store]
folder = "{name}"
[tracking]
to = "diary"
project = "films"
"""
DRIVE = """
import json, sys
import loop.cli.build
from campaigns import no_plots
from fakes import CentroidStudent
from goldloop import Campaign
from loop.campaign.extensions import _installed
from loop.errors import LoopError

loop.cli.build.build_student = lambda *_: CentroidStudent()  # training is not what is tried
no_plots()

def problem(file):
    try:
        return "; ".join(p.message for p in Campaign.open(file).check() if p.level == "error")
    except LoopError as exc:
        return str(exc)

campaign = Campaign.open("fine.toml")
done = campaign.run()
labels = campaign.labels()
labels = labels if isinstance(labels, list) else labels.to_dict("records")
told = {"done": done, "people": sum(row["source"] == "gold" for row in labels),
        "said": {row["label"] for row in labels if row["source"] == "gold"},
        "llm": {row["llm_label"] for row in labels}, "again": campaign.track(),
        "diary": json.load(open("fine/tracking/films.json"))}
told |= {name: problem(f"{name}.toml") for name in ("crooked", "missing", "unknown", "fine")}
sys.path.insert(0, "second")
_installed.cache_clear()
told |= {"twice": problem("fine.toml"), "own": problem("own.toml")}
print(json.dumps(told, default=sorted))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process says in which a little package is installed, and then a second one."""
    folder = tmp_path_factory.mktemp("third party")
    source = folder / "source"
    source.mkdir()
    for file in (ROOT / "tests" / "data" / "little_package").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder / "site")]
    subprocess.run([*pip, str(source)], check=True, cwd=folder)
    other = folder / "second" / "second_parts-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: second-parts\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(
        "[goldloop.strategies]\nentropy = os:getcwd\n[goldloop.annotators]\nword_list = os:getcwd\n"
    )
    rows = [
        (f"{w} the film {w} a story w{i}", g)
        for i in range(40)
        for w, g in (("great", "good"), ("awful", "bad"))
    ]
    (folder / "t.csv").write_text("text,gold\n" + "\n".join(f"{t},{g}" for t, g in rows))
    fine = {"kind": "word_list", "signal": "shortest_first", "platform": "desk"}
    for name, change in {
        "fine": {},
        "crooked": {"kind": "crooked"},
        "missing": {"platform": "missing"},
        "unknown": {"signal": "shortest"},
        "own": {"signal": "entropy"},
    }.items():
        (folder / f"{name}.toml").write_text(FILE.format(name=name, **(fine | change)))
    paths = (folder / "site", ROOT, ROOT / "tests" / "support")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", DRIVE], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_campaign_runs_on_parts_of_an_installed_package(told):
    assert told["done"] is True
    assert told["people"] == 12
    assert told["said"] == ["bad"]  # the desk always says the first label
    assert told["llm"] == ["bad", "good"]
    assert told["fine"] == ""
    assert told["diary"].keys() == {"1"}
    assert told["again"] == {"diary": []}


def test_parts_that_cannot_be_used_are_one_sentence(told):
    assert told["crooked"] == (
        "The annotator 'crooked' of the package little-goldloop-parts cannot be used: Crooked lacks"
        " annotate, most_tokens, close of loop.ports.Annotator."
    )
    assert told["missing"].startswith(
        "The platform for people 'missing' of the package little-goldloop-parts cannot be imported"
        " (ModuleNotFoundError: No module named 'not_there')."
    )
    assert "Unknown strategy 'shortest'. Did you mean 'shortest_first'?" in told["unknown"]
    assert "unknown.toml:" in told["unknown"]


def test_two_parts_of_one_name_are_one_sentence(told):
    assert (
        "from the package second-parts and from the package little-goldloop-parts, so"
        in (told["twice"])
    )
    assert (
        "The strategy 'entropy' comes from goldloop itself and from the package second-parts"
        in (told["own"])
    )


def short(pool, rng):
    return np.zeros(pool.n - 1)


def endless(pool, rng):
    return np.full(pool.n, np.inf)


def failing(pool, rng):
    raise RuntimeError("out of luck")


def needy(pool, rng):
    return np.zeros(pool.n)


needy.needs = {"gold"}
number = 7


def broken(setup):
    raise KeyError("words")


@pytest.fixture
def parts(monkeypatch):
    """This module as a package that adds parts."""
    monkeypatch.setitem(sys.modules, "odd_parts", sys.modules[__name__])

    def installed(group):
        names = ("short", "endless", "failing", "needy", "number", "broken")
        return tuple(EntryPoint(n, f"odd_parts:{n}", f"goldloop.{group}") for n in names)

    monkeypatch.setattr(extensions, "_installed", installed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", r"must give one finite number for each of 4 texts; it gave shape \(3,\)"),
        ("endless", r"with 0 finite numbers"),
        ("failing", r"failed \(RuntimeError: out of luck\)"),
        ("number", r"is not a function but int: its entry point 'odd_parts:number'"),
        ("nothing", r"Nothing installed adds the strategy 'nothing'"),
    ],
)
def test_a_strategy_that_answers_badly(parts, name, said):
    probs = np.full((4, 1, 2), 0.5)
    pool = Pool(probs=probs, y_llm=np.zeros(4, dtype=np.int64), gold=np.full(4, -1))
    with pytest.raises(ConfigError, match=said):
        suspicion_by(name, pool, np.random.default_rng(0))


def config(**sections):
    given = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": "a"}, {"name": "b"}],
        "texts": {"source": "x.csv"},
    }
    return Config.model_validate(given | sections)


def test_a_part_that_cannot_be_built_or_needs_what_there_is_not(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"'broken'.*cannot be built \(KeyError: 'words'\)"):
        build_annotator(config(annotator={"kind": "broken"}))
    with pytest.raises(ValueError, match=r"needs \{'gold'\}; it may need embeddings"):
        config(strategy={"signals": ["needy"]})


def test_every_part_of_our_own_is_there():
    for group, known in extensions.BUILT_IN.items():
        for name in known:
            part = extensions.load(group, name)
            assert callable(part), name
            assert group != "strategies" or part is STRATEGIES[name]


def test_options_hold_no_secrets(tmp_path):
    text = FILE.format(name="c", kind="local_lm", signal="margin", platform="label_studio")
    bad = text.replace('options.file = "desk.json"', 'options.api_key = "sk-1"')
    with pytest.raises(ConfigError, match="'api_key' would put a secret") as raised:
        read(bad, tmp_path / "c.toml")
    assert "sk-1" not in str(raised.value)
