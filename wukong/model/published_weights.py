"""Weights that others published: which there are, and bringing them from the hub or a file to the bucket.

Trainings on a cluster do not reach the internet, so an experiment names the URI of its weights in the bucket. Nothing
is unpickled: a file is safetensors, or a vocabulary's text.
"""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm

from wukong.config import model as settings
from wukong.data.tokenizer import PACKAGED_DIGEST, Tokenizer
from wukong.errors import ConfigError, DataError
from wukong.model import bert
from wukong.model.image_encoder import ImageEncoder
from wukong.model.text_encoder import TextEncoder
from wukong.store import storage

_READ_AT_ONCE = 2**22
_SECONDS = 10.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = "model.safetensors"
_BY_TORCH = (b"PK\x03\x04", b"\x80")
"""The first bytes of archives and pickles that ``torch.save`` and ``torch.jit.save`` write."""


@dataclass(frozen=True)
class Published:
    """Weights of a tower, a text encoder or a vocabulary.

    Attributes:
        name: timm's name of a tower; else the name in ``TABLE``.
        kind: what they are.
        repository: where the hub has them.
        files: their files there; where there are several, a folder is stored.
        licence: as the repository or the owner says it; "unknown" where neither does.
        weights: number of a tower's numbers without its classifier; 0 where it is not checked.
        sizes: bytes of the files of which they are known.
        digests: SHA-256 of the files of which it is known.
    """

    name: str
    kind: Literal["tower", "text", "vocabulary"]
    repository: str
    files: Sequence[str]
    licence: str
    weights: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def target(self, file: str) -> str:
        """The path of a file below the folder of all weights."""
        if self.kind == "text":
            return f"{self.name}/{file}"
        return f"{self.name}{Path(file).suffix}"


_TOWERS = {
    "resnet50_clip.openai": 36_218_720,
    "resnet101_clip.openai": 55_210_848,
    "vit_base_patch32_clip_quickgelu_224.openai": 87_456_000,
    "vit_base_patch16_clip_quickgelu_224.openai": 85_799_424,
    "vit_large_patch14_clip_quickgelu_224.openai": 303_179_776,
    "swin_large_patch4_window7_224.ms_in22k": 194_995_476,
}
"""Numbers of the paper's towers. Sizes and digests of their files are not known here: timm may convert them again."""

TABLE: Mapping[str, Published] = {
    each.name: each
    for each in (
        Published(
            "bert-base-chinese", "text", "google-bert/bert-base-chinese", ("config.json", _WEIGHTS), "apache-2.0"
        ),
        Published(
            "chinese-roberta-wwm-ext", "text", "hfl/chinese-roberta-wwm-ext", ("config.json", _WEIGHTS), "apache-2.0"
        ),
        Published(
            "vocab-bert-base-chinese",
            "vocabulary",
            "google-bert/bert-base-chinese",
            ("vocab.txt",),
            "apache-2.0",
            sizes={"vocab.txt": 109_540},
            digests={"vocab.txt": PACKAGED_DIGEST},
        ),
    )
}
"""Text encoders and vocabularies by name. Towers are timm's, see ``of``."""


@dataclass(frozen=True)
class Stored:
    """A file that lies in storage.

    Attributes:
        uri: where.
        size: its bytes.
        sha256: its digest.
        compared_with: what the digest was compared with, ``table`` or ``hub``; empty where it was not known.
    """

    uri: str
    size: int
    sha256: str
    compared_with: Literal["table", "hub", ""]


def of(name: str) -> Published:
    """Return what is published under a name: an architecture, a timm name with its tag, or a name of ``TABLE``.

    Raises:
        ConfigError: there is nothing of this name; the message names what there is.
    """
    if name in TABLE:
        return TABLE[name]
    try:
        tower = str(settings.architecture(name)["image"]["name"])
    except ValueError:
        tower = name
    try:
        known: Any = timm.get_pretrained_cfg(tower) if timm.is_model(tower) else None
    except RuntimeError:  # timm has the model, and no weights with this tag
        known = None
    if known is None or not known.hf_hub_id:
        raise ConfigError(
            f"{name}: the hub has no weights of this name; write an architecture of docs/models.md such as vit-l-14, a "
            f"name of timm with its tag such as {next(iter(_TOWERS))}, or one of {', '.join(TABLE)}"
        )
    file = known.hf_hub_filename or _WEIGHTS
    return Published(tower, "tower", known.hf_hub_id, (file,), known.license or "unknown", _TOWERS.get(tower, 0))


def get(published: Published, to: str, source: str | None = None) -> list[Stored]:
    """Bring weights to storage, after a check that they are what they should be.

    Args:
        published: what ``of`` returned.
        to: URI of the folder of all weights.
        source: URI of a file, or of a folder for a text encoder; None for the hub.

    Returns:
        The files as they lie there. One that lay there already with the same content is left alone.

    Raises:
        ConfigError: the hub does not give them.
        DataError: a file is of torch's own format, damaged, of another model or digest; or another file lies there.
        StorageError: a place cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="wukong-weights-") as scratch:
        folder, told = Path(scratch), dict[str, str]()
        for file in published.files:
            if source is None:
                told |= _download(published, file, folder)
            else:
                several = len(published.files) > 1
                storage.download(storage.join(source, file) if several else source, folder, file)
            _refuse_torch(folder / file, source or published.repository)
        found = {file: _digest(folder / file) for file in published.files}
        expected = told | dict(published.digests)
        for file in expected:
            _check_digest(folder / file, found[file], expected[file], source or published.repository)
        _check_fit(published, folder)
        stored = []
        for file, digest in found.items():
            uri = storage.join(to, published.target(file))
            _store(folder / file, uri, digest)
            compared: Literal["table", "hub", ""] = "hub" if file in told else ""
            compared = "table" if file in published.digests else compared
            stored.append(Stored(uri, (folder / file).stat().st_size, digest, compared))
        return stored


def _download(published: Published, file: str, folder: Path) -> dict[str, str]:
    """Download a file; return its SHA-256 by its name, as the hub says it, of large files."""
    import huggingface_hub

    try:
        url = huggingface_hub.hf_hub_url(published.repository, file)
        # Unlike a download, this asks once.
        said = huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
        huggingface_hub.hf_hub_download(published.repository, file, local_dir=folder)
    except Exception as error:  # the errors depend on the HTTP client of the hub's package
        raise ConfigError(
            f"{published.name}: the hub does not give {file} of {published.repository} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Without a network, fetch the file where "
            f"there is one, from https://huggingface.co/{published.repository}, and name it here: --from FILE"
        ) from error
    return {file: said.etag} if said.etag and _SHA256.fullmatch(said.etag) else {}


def _refuse_torch(path: Path, source: str) -> None:
    with path.open("rb") as stream:
        begins = stream.read(8)
    if path.suffix == ".safetensors" and begins.startswith(_BY_TORCH):
        raise DataError(
            f"{source} is an archive of torch, as OpenAI's .pt files are, and not safetensors: reading it can run its "
            "code. Where nothing secret is, write its tensors by `state = torch.jit.load(FILE, 'cpu').state_dict()` or "
            "torch.load, and `safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "
            "'model.safetensors')`, and give that file"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_digest(path: Path, found: str, expected: str, source: str) -> None:
    if found != expected:
        raise DataError(
            f"{source}: {path.name} is not the published one: it has {path.stat().st_size:,} bytes and SHA-256 {found} "
            f"instead of {expected}: fetch it again"
        )


def _check_fit(published: Published, folder: Path) -> None:
    """Load what was fetched as a training would.

    Raises:
        DataError: it does not fit; the message names the weights.
    """
    if published.kind == "vocabulary":
        Tokenizer((folder / published.files[0]).read_text(encoding="utf-8"))
    elif published.kind == "text":
        _check_text(folder)
    else:
        known: Any = timm.get_pretrained_cfg(published.name)
        uri = storage.from_path(folder / published.files[0])
        tower = ImageEncoder(settings.ImageEncoder(name=published.name, weights=uri, image_size=known.input_size[-1]))
        count = sum(parameter.numel() for parameter in tower.backbone.parameters())
        if published.weights and count != published.weights:
            raise DataError(
                f"timm's {published.name} has {count:,} weights and the paper's tower {published.weights:,}: this timm "
                "builds another model under the name"
            )


def _check_text(folder: Path) -> None:
    config: Any = storage.read_json(storage.from_path(folder / "config.json"))
    keys = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}
    try:
        entries = int(config["vocab_size"])
        text = settings.TextEncoder.model_validate(
            {name: config[key] for name, key in keys.items()} | {"norm_epsilon": config.get("layer_norm_eps", 1e-12)}
        )
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"config.json is not that of a BERT ({' '.join(str(error).split())}): fetch it again"
        ) from error
    bert.start_from(TextEncoder.of(text, entries), storage.from_path(folder))


def _store(path: Path, uri: str, digest: str) -> None:
    if storage.exists(uri):
        with storage.open_input(uri) as stream:
            there = hashlib.sha256()
            while chunk := stream.read(_READ_AT_ONCE):
                there.update(chunk)
        if there.hexdigest() == digest:
            return
        raise DataError(
            f"{uri} is there with another content (SHA-256 {there.hexdigest()}), which experiments may have trained "
            "with: name another folder by --to, or delete it first"
        )
    storage.upload(path, uri)
