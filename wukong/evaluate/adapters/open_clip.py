"""Models of open_clip, a package that is imported when such a model is loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.errors import ConfigError
from wukong.evaluate.foreign import (
    CLIP_MEAN,
    CLIP_STD,
    LOADING,
    UNCUT,
    ForeignModel,
    Kind,
    imported,
    longer,
    reason,
    scale_of,
)
from wukong.evaluate.model import Model
from wukong.model.saved_model import EXPORT_RECORD

_WITH_CODE, _OF_FOLDER, _OF_HUB = "with-code:", "local-dir:", "hf-hub:"
_CONFIG = "open_clip_config.json"
_TOKENIZER = frozenset({"clean", "language", "model_max_length", "strip_sep_token", "use_fast"})
"""What a model may tell its tokenizer; open_clip gives all of it to transformers, which runs code by other keys."""


def _open_clip(name: str, uri: str, device: torch.device) -> Model:
    package: Any = imported("open_clip", "pip install open_clip_torch")
    allowed, name = name.startswith(_WITH_CODE), name.removeprefix(_WITH_CODE)
    if name.startswith((_OF_HUB, _OF_FOLDER)):
        if not allowed:
            _refuse_code(name, uri)
        architecture, weights = name, None
    else:
        architecture, _, weights = name.partition("/")
        if not weights:
            raise ConfigError(
                f"{uri!r} names no weights: open_clip would make random ones; write open_clip:NAME/WEIGHTS, for "
                "instance open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k; WEIGHTS may be a file"
            )
    try:
        module = package.create_model(architecture, pretrained=weights, device=device)
        tokenizer = package.get_tokenizer(architecture)
    except LOADING as error:
        raise ConfigError(f"open_clip does not load {name!r} ({reason(error)})") from error
    if name.startswith(_OF_FOLDER) and Path(name.removeprefix(_OF_FOLDER), EXPORT_RECORD).is_file():
        # An export of this project: open_clip changes texts before it makes tokens of them; training did not.
        tokenizer.clean_fn = str
    return from_open_clip(module, tokenizer, uri, architecture)


def _refuse_code(name: str, uri: str) -> None:
    """Check that loading a folder, or a repository of the hub, runs no code that lies in it.

    Raises:
        ConfigError: its settings ask for that, or cannot be read.
    """
    try:
        told = _settings(name)["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
        others = sorted(told.keys() - _TOKENIZER)
        brought = [] if name.startswith(_OF_HUB) else _brought(Path(name.removeprefix(_OF_FOLDER)))
    except LOADING as error:
        raise ConfigError(f"{uri}: its {_CONFIG} cannot be read ({reason(error)})") from error
    if others or brought:
        why = f"tokenizer_kwargs in its {_CONFIG}: {', '.join(others)}" if others else f"auto_map in {brought[0]}"
        with_code = uri.replace(":", f":{_WITH_CODE}", 1)
        raise ConfigError(
            f"{uri} may run code that lies beside the weights on this machine ({why}); if you trust who made it, "
            f"write {with_code}"
        )


def _settings(name: str) -> Any:
    if name.startswith(_OF_FOLDER):
        path = Path(name.removeprefix(_OF_FOLDER), _CONFIG)
    else:
        hub: Any = imported("huggingface_hub", "pip install huggingface_hub")
        repository, _, revision = name.removeprefix(_OF_HUB).partition("@")
        path = Path(hub.hf_hub_download(repository, _CONFIG, revision=revision or None))
    return json.loads(path.read_text("utf-8"))


def _brought(folder: Path) -> list[str]:
    """Return the files of transformers' settings in a folder that name classes beside the weights."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    return [file.name for file in files if file.is_file() and "auto_map" in json.loads(file.read_text("utf-8"))]


def from_open_clip(module: nn.Module, tokenizer: Callable[..., Tensor], name: str, architecture: str) -> Model:
    """Wrap a model of open_clip with its tokenizer."""
    visual: Any = module.visual
    size = visual.image_size
    mean, std = (getattr(visual, each, None) for each in ("image_mean", "image_std"))

    longest = getattr(tokenizer, "context_length", None)

    def tokenize(texts: list[str], context: int | None) -> Tensor:
        ids = tokenizer(texts, context_length=min(context, longest) if context and longest else longest)
        # A model reads as many positions as it was built for; what was cut is padding.
        padding = getattr(tokenizer, "pad_token_id", 0) or 0
        return ids if longest is None else F.pad(ids, (0, longest - ids.shape[1]), value=padding)

    return ForeignModel(
        module,
        tokenize,
        name,
        f"open_clip:{architecture}",
        scale_of(module),
        size[0] if isinstance(size, tuple | list) else size,
        tuple(mean) if mean is not None else CLIP_MEAN,
        tuple(std) if std is not None else CLIP_STD,
        view="whole" if _shows_all_on_white(getattr(visual, "preprocess_cfg", {})) else "crop",
        count_cut=lambda texts, context: longer(
            tokenizer(texts, context_length=UNCUT), min(each or UNCUT for each in (context, longest))
        ),
    )


def _shows_all_on_white(preprocess: Mapping[str, Any]) -> bool:
    """Whether a model of open_clip sees the whole picture on a white square, as ``images.evaluation_view`` makes it."""
    fill = preprocess.get("fill_color")
    return preprocess.get("resize_mode") == "longest" and fill in (255, [255] * 3, (255,) * 3)


KIND = Kind("open_clip", _open_clip)
