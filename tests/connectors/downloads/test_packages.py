from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from connectors.downloads import archives, gguf, models
from connectors.downloads import packages as assets
from loop.errors import FetchError

NAME, VERSION = "goldloop-test-cargo", "1.0"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def wheel(folder: Path) -> Path:
    info = f"goldloop_test_cargo-{VERSION}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
    return zip_of(
        folder / f"goldloop_test_cargo-{VERSION}-py3-none-any.whl",
        {
            "cargo/data/a.txt": b"a",
            f"{info}/METADATA": about.encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )


def source_archive(folder: Path, marker: Path) -> Path:
    top = f"goldloop-test-cargo-{VERSION}"
    setup = (
        f"import pathlib; pathlib.Path({str(marker)!r}).write_text('ran')\n"
        f"from setuptools import setup; setup(name={NAME!r}, version={VERSION!r}, py_modules=[])\n"
    )
    about = f"Metadata-Version: 1.0\nName: {NAME}\nVersion: {VERSION}\n"
    return tar_of(
        folder / f"{top}.tar.gz",
        [
            (tarfile.TarInfo(f"{top}/setup.py"), setup.encode()),
            (tarfile.TarInfo(f"{top}/PKG-INFO"), about.encode()),
        ],
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from; nothing else is within reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GOLDLOOP_CACHE", str(tmp_path / "cache"))
    return folder


def hidden(folder: Path) -> list[str]:
    """What is left in a folder besides finished things and lock files."""
    return [p.name for p in folder.glob(".*") if p.suffix != ".lock"]


# the cache


def test_cache_dir_asks_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOLDLOOP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.cache_dir() == tmp_path / ".cache" / "goldloop"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert assets.cache_dir() == Path("/x/goldloop")
    monkeypatch.setenv("GOLDLOOP_CACHE", "~/g")
    assert assets.cache_dir() == tmp_path / "g"


# packages


def test_wheel_is_fetched_once_and_verified_each_time(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wheel(index)
    digest = sha256(made)
    first = assets.fetch_package(NAME, VERSION, digest)
    content = made.read_bytes()
    assert first.read_bytes() == content
    assert first.is_relative_to(assets.cache_dir())
    made.unlink()
    assert assets.fetch_package(NAME, VERSION, digest) == first  # pip would find nothing now
    first.write_bytes(b"rotten")
    with pytest.raises(FetchError, match="cannot be fetched"):
        assets.fetch_package(NAME, VERSION, digest)
    made.write_bytes(content)
    assert sha256(assets.fetch_package(NAME, VERSION, digest)) == digest
    assert hidden(first.parent.parent) == []


def test_wrong_hash_is_refused_and_discarded(index: Path) -> None:
    got = sha256(wheel(index))
    with pytest.raises(FetchError, match=f"expected sha256 {'0' * 64}, got {got}.*discarded"):
        assets.fetch_package(NAME, VERSION, "0" * 64)
    assert not list(assets.cache_dir().rglob("*.whl"))


def test_hash_is_checked_here_too(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(name: str, version: str, digest: str, folder: Path, *, source: bool) -> None:
        (folder / "x.whl").write_bytes(b"something else")

    monkeypatch.setattr(assets, "_download", careless)
    with pytest.raises(FetchError, match="wrong hash"):
        assets.fetch_package(NAME, VERSION, "0" * 64)
    assert not list(assets.cache_dir().rglob("*.whl"))


def test_source_archive_runs_only_with_the_right_hash(index: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    marker = tmp_path / "ran"
    wheel(index)
    made = source_archive(index, marker)
    with pytest.raises(FetchError, match="wrong hash"):
        assets.fetch_package(NAME, VERSION, "1" * 64, source=True)
    assert not marker.exists()
    fetched = assets.fetch_package(NAME, VERSION, sha256(made), source=True)
    assert fetched.name.endswith(".tar.gz")
    assert marker.exists()


def test_unknown_package_says_what_to_do(index: Path) -> None:
    with pytest.raises(FetchError, match=rf"{NAME}==9.*cannot be fetched.*No matching.*network"):
        assets.fetch_package(NAME, "9", "0" * 64)


def test_missing_pip_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FetchError, match="ensurepip"):
        assets.fetch_package(NAME, VERSION, "0" * 64)


def test_pip_that_hangs_is_an_error(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "DOWNLOAD_TIMEOUT_S", 0.01)
    with pytest.raises(FetchError, match="within"):
        assets.fetch_package(NAME, VERSION, "0" * 64)


def test_two_at_once_download_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(wheel(index))
    calls = []
    real = assets._download

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        real(*args, **kwargs)

    monkeypatch.setattr(assets, "_download", counted)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: assets.fetch_package(NAME, VERSION, digest), range(4)))
    assert len(set(paths)) == 1
    assert len(calls) == 1


def test_leftovers_of_a_killed_process_vanish(index: Path) -> None:
    digest = sha256(wheel(index))
    packages = assets.cache_dir() / "packages"
    left = packages / f".{NAME}-{VERSION}-{digest[:12]}.part-abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    assets.fetch_package(NAME, VERSION, digest)
    assert hidden(packages) == []


def test_unwritable_cache_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOLDLOOP_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="set GOLDLOOP_CACHE"):
        assets.fetch_package(NAME, VERSION, "0" * 64)


# archives


def test_members_are_unpacked_below_their_prefix(tmp_path: Path) -> None:
    archive = zip_of(
        tmp_path / "a.zip", {"m/data/": b"", "m/data/x": b"1", "m/data/s/y": b"2", "m/no": b"3"}
    )
    out = archives.extract_members(archive, "m/data/", tmp_path / "out")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["s/y", "x"]
    (out / "x").write_text("mine")
    archive.unlink()
    assert archives.extract_members(archive, "m/data/", out) == out
    assert (out / "x").read_text() == "mine"


def test_one_member_of_a_tar(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", [(tarfile.TarInfo("t/x.txt"), b"hello")])
    file = archives.extract_member(archive, "t/x.txt", tmp_path / "new" / "y.txt")
    assert file.read_bytes() == b"hello"
    assert [p.name for p in file.parent.iterdir()] == ["y.txt"]
    with pytest.raises(FetchError, match="nothing at 't/z'"):
        archives.extract_member(archive, "t/z", tmp_path / "z")


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("m/../../evil", b"x")], "leads outside"),
        ([("m//evil", b"x")], "leads outside"),
        ([("m/a\\..\\b", b"x")], "different things"),
        ([("m/c:evil", b"x")], "different things"),
        ([(zip_link("m/link"), b"/etc/passwd")], "is a link"),
        ([("m/a", b"x"), ("m/./a", b"y")], "occurs twice"),
        ([("m/good", b"x"), ("m/big", b"y" * 5000)], "more than 1000 bytes"),
        ([("n/other", b"x")], "nothing at"),
    ],
)
def test_hostile_zips_leave_nothing(tmp_path: Path, members: list[Any], why: str) -> None:
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    out = tmp_path / "deep" / "out"
    with pytest.raises(FetchError, match=why):
        archives.extract_members(archive, "m/", out, max_bytes=1000)
    assert not out.exists()
    assert hidden(out.parent) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.whl", "deep"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_hostile_tars_leave_nothing(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("m/link")
    link.type, link.linkname = kind, "/etc/passwd"
    archive = tar_of(tmp_path / "a.tar.gz", [(link, b"")])
    with pytest.raises(FetchError, match="is a link or device"):
        archives.extract_members(archive, "m/", tmp_path / "out")
    with pytest.raises(FetchError, match="is a link or device"):
        archives.extract_member(archive, "m/link", tmp_path / "file")
    absolute = tar_of(tmp_path / "b.tar.gz", [(tarfile.TarInfo("/evil"), b"x")])
    with pytest.raises(FetchError, match="leads outside"):
        archives.extract_members(absolute, "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_damaged_archives_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "a.whl"
    archive.write_bytes(content)
    with pytest.raises(FetchError, match="not an archive that can be read"):
        archives.extract_members(archive, "m/", tmp_path / "out")


def test_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar.gz", [(tarfile.TarInfo("m/x"), os.urandom(200_000))])
    whole.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(FetchError):
        archives.extract_members(whole, "m/", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fetch", "millions"), [(models.minilm_dir, 22.7), (models.mpnet_dir, 109.5)]
)
def test_embedded_encoders_load_and_mean_something(fetch: Any, millions: float) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetch()
    assert fetch() == folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert round(model.num_parameters() / 1e6, 1) == millions
    batch = tokenizer(
        ["A cat sat.", "A kitten was sitting.", "Tax law."], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden_states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden_states * mask).sum(1) / mask.sum(1), dim=-1)
    assert float(mean[0] @ mean[1]) > float(mean[0] @ mean[2]) + 0.3


@pytest.mark.slow
def test_embedded_language_model_is_converted_once_and_talks() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.smollm2_dir()
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = 'In 2024, "it\'s" 😀 naïve\n\nLabel:'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "2" in tokenizer.tokenize("2024")  # digits stand alone
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_other_gguf_kinds_are_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FetchError, match="gemma3"):
        gguf.convert_llama_gguf(tmp_path / "m.gguf", tmp_path)
