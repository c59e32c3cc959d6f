"""Pretrained encoders: found, loaded, saved.

Models come from safetensors only, and no code that ships with a model is run. Finding one imports
neither torch nor transformers, which take seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from loop.errors import StudentError
from loop.files import replacing_folder

WANTED_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
RECORD = "goldloop.json"


# finding and loading


def find_encoder(encoder: str | Path, cache_dir: Path | None = None) -> Path:
    """The folder that holds the encoder, fetched from the hub where it is not a folder.

    Raises:
        StudentError: nothing there, not reachable, or only pickled weights.
    """
    folder = Path(encoder)
    if not folder.is_dir():
        folder = _fetch(str(encoder), cache_dir)
    if not (folder / "config.json").is_file():
        raise StudentError(
            f"{folder} holds no config.json; student.encoder must be a transformers model folder "
            "or a name on the Hugging Face hub."
        )
    if not any(folder.glob("*.safetensors")):
        raise StudentError(
            f"Encoder {encoder} has no safetensors weights, and pickled ones are refused because "
            "loading them runs code; convert it with save_pretrained, or choose another encoder."
        )
    return folder


def _fetch(name: str, cache_dir: Path | None, files: Sequence[str] = WANTED_FILES) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise StudentError(f"Encoder folder {name} does not exist; check student.encoder.")
    try:
        with quiet():
            folder = snapshot_download(
                name, allow_patterns=list(files), cache_dir=cache_dir, etag_timeout=10
            )
    except Exception as exc:  # the hub's client raises its own, httpx's and OS errors alike
        raise StudentError(
            f"Encoder {name!r} is neither a folder nor in the local cache, and the Hugging Face "
            f"hub did not give it ({type(exc).__name__}); check the name and the network, or set "
            "student.encoder to a folder with the model."
        ) from exc
    return Path(folder)


def fetch_config(name: str) -> Path:
    """The folder with the ``config.json`` of an encoder on the hub, which alone is fetched.

    Raises:
        StudentError: the hub does not give it.
    """
    return _fetch(name, None, ("config.json",))


def fingerprint(folder: Path) -> str:
    """16 hex digits over the configuration and the first and last megabyte of the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(size.to_bytes(8, "big") + stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """Mutes transformers and its progress bars: a new head on an old encoder is no news."""
    import huggingface_hub.utils
    import transformers

    logging: Any = transformers.utils.logging
    hub: Any = huggingface_hub.utils
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """Turns what transformers, tokenizers and safetensors raise while loading into one sentence."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as exc:
        if is_out_of_memory(exc):
            raise
        reason = " ".join(str(exc).split())[:300]
        raise StudentError(
            f"Encoder {folder} cannot be loaded ({type(exc).__name__}: {reason}); choose an "
            "encoder that transformers loads for sequence classification without custom code."
        ) from exc


def load_tokenizer(folder: Path) -> Any:
    """The encoder's tokenizer.

    Raises:
        StudentError: it cannot be loaded, or cannot pad.
    """
    import transformers

    with _load_errors(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token_id is None:
        raise StudentError(
            f"The tokenizer of encoder {folder} has no padding token, so texts cannot share a "
            "batch; name one as pad_token in its tokenizer_config.json, or choose another encoder."
        )
    return tokenizer


def load_config(folder: Path) -> Any:
    """The encoder's configuration."""
    import transformers

    with _load_errors(folder):
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def old_head(config: Any) -> list[str] | None:
    """Classes of the head that somebody trained on this encoder before, or None without one."""
    kinds = getattr(config, "architectures", None) or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return None
    return [str(name) for _, name in sorted(config.id2label.items())]


def load_classifier(
    folder: Path, labels: Sequence[str] | None = None, *, attention: str | None = None
) -> Any:
    """The encoder with a classification head, float32.

    Args:
        labels: names of the classes of a new head, drawn from torch's generator; None keeps the
            head that was saved.
        attention: "eager" or "sdpa"; None leaves the choice to transformers.
    """
    import torch
    import transformers

    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: c for c, name in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    if attention is not None:
        options["attn_implementation"] = attention
    with _load_errors(folder):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    if labels is not None:
        _draw_head(model)
    return model


def _draw_head(model: Any) -> None:
    """New weights for all linear layers outside the encoder, even where an old head would fit."""
    import torch

    inside = {id(module) for module in model.base_model.modules()}
    std = float(getattr(model.config, "initializer_range", 0.02))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module) not in inside:
            torch.nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def load_encoder(folder: Path) -> Any:
    """The encoder without a head, float32."""
    import torch
    import transformers

    with _load_errors(folder):
        return transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether torch ran out of memory, on a GPU or the CPU."""
    import torch

    said = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or (
        isinstance(exc, RuntimeError) and ("out of memory" in said or "can't allocate" in said)
    )


# saving


def save_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    record: dict[str, Any],
    add: Callable[[Path], None] = lambda _folder: None,
) -> None:
    """Writes a plain transformers folder: all of it, or nothing.

    It is written beside its place and renamed, so that a reader never sees half a model.

    Args:
        record: goes to goldloop.json, with versions.
        add: puts further files into the folder before it takes its place.
    Raises:
        StudentError: disk full, or not writable.
    """
    with saving_to(folder) as part:
        with quiet():
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        text = json.dumps(record | {"versions": _versions()}, indent=1, ensure_ascii=False)
        (part / RECORD).write_text(text + "\n", encoding="utf-8")
        add(part)


@contextmanager
def saving_to(folder: Path) -> Iterator[Path]:
    """A folder beside a model's place, which takes it at the end.

    Raises:
        StudentError: disk full, or not writable.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder) as part:
            yield part
    except (OSError, SafetensorError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise StudentError(
            f"The model cannot be saved to {folder}: {reason}; nothing was left there. Free some "
            "space or choose another output folder, then run again."
        ) from exc


def _versions() -> dict[str, str]:
    installed = {}
    for name in ("goldloop", "torch", "transformers"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "absent"
    return installed
