"""Models in the form of Hugging Face's transformers, from a folder or the hub; the package is imported when needed."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose, isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.errors import OF_PARSERS, ConfigError, DataError
from wukong.evaluate.adapters import cn_clip
from wukong.evaluate.foreign import LOADING, ForeignModel, Kind, Mean, imported, reason, refuse_unusable, scale_of
from wukong.evaluate.model import Model, refuse_few_known

_WITH_CODE = "with-code:"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
"""What is fetched of a repository of the hub: no pickles, and no code unless it is asked for."""
_NO_LIMIT = 1_000_000
"""A tokenizer that has no longest text says a number beyond this."""


@dataclass(frozen=True)
class Family:
    """How models of one ``model_type`` read what the protocol gives them.

    Attributes:
        context: most tokens of a text in their training, where their files do not say it; None for as many as they
            have positions.
        filled: texts are padded to that many tokens, and padding is read as text.
        causal: a token sees only those before it, so padding behind a text needs no mask.
        lower: they were trained on lower-cased texts, and not all of their tokenizers do that.
        padded_positions: the numbers of positions begin behind that of padding (RoBERTa).
        patches: they read a picture as a list of patches, of any shape (NaFlex).
        with_code: transformers has no class for them, so that the code beside their weights must be allowed.
    """

    context: int | None = None
    filled: bool = False
    causal: bool = False
    lower: bool = False
    padded_positions: bool = False
    patches: bool = False
    with_code: bool = False


FAMILIES = {
    "altclip": Family(context=77, padded_positions=True),  # FlagAI cuts texts there
    "chinese_clip": Family(context=cn_clip.CONTEXT),
    "clip": Family(causal=True),
    "fgclip2": Family(filled=True, lower=True, patches=True, with_code=True),
    "metaclip_2": Family(causal=True),
    "siglip": Family(filled=True, lower=True),
    "siglip2": Family(filled=True, lower=True, patches=True),
}
"""The families by the ``model_type`` of their ``config.json``."""
_OTHER = Family(with_code=True)


def _transformers(name: str, uri: str, device: torch.device) -> Model:
    package: Any = imported("transformers", "pip install transformers")
    allowed = name.startswith(_WITH_CODE)
    folder = _folder(name.removeprefix(_WITH_CODE), allowed)
    config, family = _family(folder, uri, allowed)
    files: dict[str, Any] = {"trust_remote_code": family.with_code, "local_files_only": not family.with_code}
    try:
        tokenizer = package.AutoTokenizer.from_pretrained(folder, **files)
        processor = package.AutoImageProcessor.from_pretrained(folder, **files)
        model, loaded = getattr(package, _auto_class(config)).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **files
        )
    except (*LOADING, imported("safetensors", "pip install safetensors").SafetensorError) as error:
        raise ConfigError(f"transformers {package.__version__} does not load {uri!r} ({reason(error)})") from error
    if missing := sorted(loaded["missing_keys"]):
        raise DataError(
            f"{uri} lacks {len(missing)} of the model's weights, for instance {missing[0]}: transformers would make "
            "random ones"
        )
    if not hasattr(model, "logit_scale"):
        raise ConfigError(f"{uri}: {type(model).__name__} has no logit_scale, so it is no dual encoder")
    texts = Texts(tokenizer, family, model.config)
    mean, std = normalisation(processor, uri)
    sources = [(folder / "config.json").read_text("utf-8"), texts.digested()]
    if family.with_code:
        sources += [file.read_text("utf-8") for file in sorted(folder.glob("*.py"))]
    found = ForeignModel(
        _Towers(model.to(device), family, texts),
        texts,
        uri,
        "\n".join(["transformers", *sources, str(mean), str(std)]),
        scale_of(model),
        side_of(processor, model.config, family, uri),
        mean,
        std,
        token_wise=getattr(model.config, "similarity", "global") == "token",
        match_text_cls=getattr(model.config, "match_text_cls", True),
        pad=texts.pad,
        view=getattr(processor, "view", "crop"),
        count_cut=texts.count_cut,
    )
    refuse_unusable(found)
    return found


def _folder(name: str, with_code: bool) -> Path:
    """Return a folder with a model's files; those of the hub are fetched, or found where they were fetched before.

    Raises:
        ConfigError: there is none, or it has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name, with_code)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name}: there is no config.json, so it is no model in the form of transformers")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{name} has no weights in safetensors, and pickles are not read, because they may run code: where that "
            "may happen, open it with its class of transformers and `save_pretrained` it to another folder, with the "
            "tokenizer and the image processor; of many models the hub has that as a revision, NAME@refs/pr/NUMBER"
        )
    return folder


def _fetched(name: str, with_code: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(f"there is no folder {name!r}, and a name on the hub is OWNER/NAME or OWNER/NAME@REVISION")
    hub: Any = imported("huggingface_hub", "pip install huggingface_hub")
    repository, _, revision = name.partition("@")
    files = [*_FILES, *(["*.py"] if with_code else [])]
    try:
        fetched = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=files, ignore_patterns=["*/*"]
        )
    except LOADING as error:
        raise ConfigError(
            f"there is no folder {name!r}, and from the hub no model of this name can be had ({reason(error)})"
        ) from error
    return Path(fetched)


def _family(folder: Path, uri: str, allowed: bool) -> tuple[dict[str, Any], Family]:
    """Return a folder's configuration and its family.

    Raises:
        ConfigError: it is of no family and brings no code, or its code would run and that was not asked for.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config["model_type"]
    except OF_PARSERS as error:
        raise ConfigError(f"{uri}: its config.json cannot be read ({reason(error)})") from error
    family = FAMILIES.get(kind, _OTHER)
    if not family.with_code:
        return config, family
    if "auto_map" not in config:
        supported = ", ".join(FAMILIES)
        raise ConfigError(
            f"{uri}: its model_type is {kind!r} and it brings no code; the types are {supported}, and those that have "
            "their code beside the weights"
        )
    if not allowed:
        with_code = uri.replace(":", f":{_WITH_CODE}", 1)
        raise ConfigError(
            f"{uri}: its model_type {kind!r} is no class of transformers, it is code that lies beside the weights and "
            f"would run on this machine; if you trust who made it, write {with_code}"
        )
    return config, family


def _auto_class(config: dict[str, Any]) -> str:
    """Return the class of transformers that opens a model; FG-CLIP 2 calls itself a causal language model."""
    named = [name for name in config.get("auto_map", ()) if name.startswith("AutoModel")]
    return "AutoModel" if "AutoModel" in named or not named else named[0]


def side_of(processor: Any, config: Any, family: Family, uri: str) -> int:
    """Return the length of a side of the squares that an image tower reads.

    Raises:
        ConfigError: nothing says it.
    """
    if family.patches:
        return isqrt(processor.max_num_patches) * int(config.vision_config.patch_size)
    size = getattr(processor, "size", None)
    by_side = {"height": size} if isinstance(size, int) else dict(size or {})
    for side in (
        getattr(getattr(config, "vision_config", None), "image_size", None),
        getattr(processor, "image_size", None),
        by_side.get("height"),
        by_side.get("shortest_edge"),
    ):
        if isinstance(side, int):
            return side
    raise ConfigError(f"{uri}: neither its config.json nor its image processor says how large a picture it reads")


def normalisation(processor: Any, uri: str) -> tuple[Mean, Mean]:
    """Return mean and deviation of the channels.

    Raises:
        ConfigError: the image processor has none, or does something else to the numbers too.
    """
    mean, std = (getattr(processor, f"image_{name}", getattr(processor, name, None)) for name in ("mean", "std"))
    scaled = isclose(255 * getattr(processor, "rescale_factor", 1 / 255), 1)
    if not scaled or not getattr(processor, "do_normalize", True) or mean is None or std is None:
        raise ConfigError(
            f"{uri}: its image processor does not scale pixels to 1 and then normalise them by a mean and a deviation; "
            "others are not supported"
        )
    return tuple(mean), tuple(std)


class Texts:
    """A model's tokenizer under a protocol: calls return token ids, int64 [texts, tokens].

    Attributes:
        pad: the id of padding.
        longest: most tokens of a text that the model reads.
        short: most tokens of a text that FG-CLIP 2 reads as a short one; equal to ``longest`` for other models.
    """

    def __init__(self, tokenizer: Any, family: Family, config: Any) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigError("its tokenizer has no token for padding, so texts of different lengths cannot be encoded")
        self._tokenizer, self._family = tokenizer, family
        self.pad: int = tokenizer.pad_token_id
        # Without its files a tokenizer has a tiny vocabulary, in which CLIP's takes the end of a text for what it does
        # not know.
        self._unknown = -1 if tokenizer.unk_token_id in (None, tokenizer.eos_token_id) else tokenizer.unk_token_id
        self._special = torch.tensor([number for number in tokenizer.all_special_ids if number != self._unknown])
        text = getattr(config, "text_config", config)
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and family.padded_positions:
            positions -= text.pad_token_id + 1
        limits = [family.context, positions, tokenizer.model_max_length]
        known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        if not known:
            raise ConfigError("neither its config.json nor its tokenizer says how many tokens of a text it reads")
        self.short = self.longest = min(known)
        if (extended := getattr(text, "longtext_len", None)) is not None:
            self.short, self.longest = positions or self.short, extended

    def __call__(self, texts: Sequence[str], context: int | None) -> Tensor:
        """Cut texts to a context, or to what the model reads if that is less, and pad them.

        Raises:
            DataError: most words are unknown to the vocabulary.
        """
        longest = min(context or self.longest, self.longest)
        ids: Tensor = self._tokenizer(
            self._written(texts), truncation=True, max_length=longest, padding=True, return_tensors="pt"
        )["input_ids"]
        words = ids[~torch.isin(ids, self._special)]
        refuse_few_known(int((words != self._unknown).sum()), len(words), len(texts))
        missing = self.longest - ids.shape[1] if self._family.filled else 0
        return F.pad(ids, (0, missing) if self._tokenizer.padding_side == "right" else (missing, 0), value=self.pad)

    def count_cut(self, texts: Sequence[str], context: int | None) -> int:
        """Count the texts that a call cuts."""
        longest = min(context or self.longest, self.longest)
        return sum(len(ids) > longest for ids in self._tokenizer(self._written(texts), truncation=False)["input_ids"])

    def _written(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._family.lower else list(texts)

    def shortened(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return which rows are short texts, and these without the padding that makes them as long as long ones."""
        if self._tokenizer.padding_side == "right":
            first, rest = ids[:, : self.short], ids[:, self.short :]
        else:
            rest, first = ids.split([ids.shape[1] - self.short, self.short], 1)
        short = (rest == self.pad).all(1)
        return short, first[short]

    def masked(self, ids: Tensor) -> dict[str, Tensor]:
        """Return the mask of the tokens of texts as arguments of a model; none if it reads texts without."""
        if self._family.causal or "attention_mask" not in self._tokenizer.model_input_names:
            return {}
        real = ids != self.pad
        if self.pad == self._tokenizer.eos_token_id:  # the first one ends the text
            real |= (~real).cumsum(1) == 1
        return {"attention_mask": real.long()}

    def digested(self) -> str:
        """Return what decides which ids a text gets."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        of_it = backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        return f"{of_it} {self.short} {self.longest} {self._tokenizer.padding_side}"


class _Towers(nn.Module):
    """A model of transformers as ``ForeignModel`` calls it."""

    def __init__(self, model: nn.Module, family: Family, texts: Texts) -> None:
        super().__init__()
        self.model: Any = model
        self._family, self._texts = family, texts

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels [images, 3, size, size]."""
        if not self._family.patches:
            return _vectors(self.model.get_image_features(pixel_values=pixels))
        patch = self.model.config.vision_config.patch_size
        rows = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
        side = rows.shape[1]
        return _vectors(
            self.model.get_image_features(
                pixel_values=rows.flatten(3).flatten(1, 2),
                pixel_attention_mask=torch.ones(len(rows), side**2, dtype=torch.int64, device=pixels.device),
                spatial_shapes=torch.full((len(rows), 2), side, device=pixels.device),
            )
        )

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [texts, tokens]."""
        encode: Callable[..., Any] = self.model.get_text_features
        if self._texts.short == self._texts.longest:
            return _vectors(encode(input_ids=ids, **self._texts.masked(ids)))
        short, first = self._texts.shortened(ids)
        parts = [(short, first, "short"), (~short, ids[~short], "long")]
        found = [
            (rows, _vectors(encode(input_ids=given, **self._texts.masked(given), walk_type=walk)))
            for rows, given, walk in parts
            if len(given)
        ]
        vectors = found[0][1].new_empty(len(ids), found[0][1].shape[1])
        for rows, each in found:
            vectors[rows] = each
        return vectors


def _vectors(found: Any) -> Tensor:
    """Return the vectors of what a model gives: them, or an output that has them, of all tokens if it is token-wise."""
    if isinstance(found, Tensor):
        return found
    tokens: Tensor | None = getattr(found, "token_embeddings", None)
    pooled: Tensor = found.pooler_output
    return pooled if tokens is None else tokens


KIND = Kind("transformers", _transformers)
