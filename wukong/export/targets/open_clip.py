"""open_clip: a folder for ``local-dir:``, whose image tower is timm's and whose text tower is Hugging Face's BERT.

open_clip finds the weights and the tokenizer in the folder. The towers' architectures it leaves to ``AutoConfig`` and,
where a tower has not timm's own resolution, to timm, and these look for ``config.json`` at the path that
``open_clip_config.json`` names. There is no path relative to that file, so the folder's own is written.

``model.safetensors`` is the text tower alone, as ``config.json`` describes it: a training starts from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wukong.errors import ConfigError, DataError
from wukong.export import parts
from wukong.export.target import Check, Options, Target
from wukong.model import weights
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.runtime.language import _

CONFIG, WEIGHTS, TEXT_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors", "model.safetensors"
PICTURES, CAPTIONS, TOKENIZED = 16, 64, 5000
"""How many are compared: pictures, captions, and captions whose tokens alone are compared."""
_WHITE = 255
_RELU6 = 6.0


@dataclass(frozen=True)
class _Place:
    """How the loaders of the towers find the folder: a path, or the name of a repository on the Hub."""

    name: str
    on_hub: bool

    @property
    def of_timm(self) -> str:
        return f"{'hf-hub' if self.on_hub else 'local-dir'}:{self.name}"


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Say why open_clip cannot hold a model, and what can be done instead; None if it can."""
    model = saved.model
    instead = "`--to onnx` and `wukong serve` take it as it is"
    if model.token_wise:
        return f"it has a vector for each token (similarity: token), and a model of open_clip has one; {instead}"
    if _folded_bias(saved) is None:
        width = model.settings.text.width
        return (
            f"open_clip's text projection has no bias, and that of this one, which widens {width} numbers to "
            f"{model.width}, cannot be moved into the tower; train it with model.embedding of at most {width}, or: "
            f"{instead}"
        )
    encoder = _encoder(saved)
    if encoder.settings.block is not None and (why := _refuse_block(encoder)):
        return (
            f"its image tower ends at block {encoder.settings.block}, and open_clip does not cut towers; {why}; "
            f"{instead}"
        )
    return None


def write(saved: SavedModel, folder: Path, options: Options) -> list[Check]:
    """Write the files, open them with open_clip, and compare towers, tokens and preprocessing.

    Args:
        saved: the model, on the CPU.
        folder: an empty folder.
        options: ``folder`` or ``hub`` is the place that is written into the files.

    Raises:
        ConfigError: open_clip builds another image tower of this name.
        DataError: a tower or the tokenizer is not equal to the model's.
    """
    here = _Place(str(folder.resolve()), on_hub=False)
    there = _Place(options.hub, on_hub=True) if options.hub else _Place(str(options.folder or here.name), on_hub=False)
    encoder = _encoder(saved)
    trunk, read = dict(encoder.backbone.state_dict()), None
    if encoder.settings.block is not None:
        trunk, read = _through_last_layer(encoder)
    parts.write_json(folder / "config.json", parts.bert_config(saved.model, saved.tokenizer) | _of_timm(encoder))
    parts.write_tokenizer(saved.tokenizer, folder)
    parts.write_json(folder / CONFIG, _config(saved, here))
    _refuse_other_tower(encoder, trunk, here)
    state = {
        **{f"visual.trunk.{name}": value for name, value in trunk.items()},
        **_projections(saved, read),
        **{f"text.transformer.{name}": value for name, value in _text_state(saved).items()},
    }
    _save(state, folder / WEIGHTS)
    _save(parts.bert_state(saved.model.text), folder / TEXT_WEIGHTS)
    checks = _compare(saved, folder)
    parts.write_json(folder / CONFIG, _config(saved, there))
    return checks


def _encoder(saved: SavedModel) -> ImageEncoder:
    return cast(ImageEncoder, saved.model.image)  # ``run.export`` has looked


def _folded_bias(saved: SavedModel) -> Tensor | None:
    last: Any = saved.model.text.layers[-1]
    return parts.folded_bias(last.norm2, saved.model.text_head)


def _text_state(saved: SavedModel) -> dict[str, Tensor]:
    return parts.bert_state(saved.model.text, _folded_bias(saved))


def _refuse_block(encoder: ImageEncoder) -> str | None:
    """Say why the features of a block do not come through the layers that follow it; None if they do."""
    name, block = encoder.settings.name, encoder.settings.block
    whole = timm.create_model(name, num_classes=0)
    if not isinstance(whole, EfficientNet) or block != len(whole.feature_info) - 1:
        return "only the last block of an EfficientNet comes unchanged through what follows"
    if 2 * encoder.pooled_width > whole.num_features:
        return f"its {encoder.pooled_width} channels do not fit twice into the {whole.num_features} that follow"
    if not _factor(encoder, whole):
        return "the norm or the activation that follows does not let its values through"
    return None


def _factor(encoder: ImageEncoder, whole: EfficientNet) -> float:
    """A power of two with which the last block's values pass the activation after it; 0 if none is known."""
    if not isinstance(whole.bn2, BatchNormAct2d):
        return 0.0
    activation, last = whole.bn2.act, encoder.backbone.blocks[-1][-1]
    if isinstance(activation, nn.ReLU | nn.SiLU):
        return 1.0
    if not isinstance(activation, nn.ReLU6) or not isinstance(last, InvertedResidual) or last.has_skip:
        return 0.0
    if not isinstance(last.bn2.act, nn.ReLU6) or not isinstance(last.se, nn.Identity):
        return 0.0
    # The block's last convolution reads numbers from 0 to 6, so what it gives has a bound, whatever the picture.
    convolution: Any = fuse_conv_bn_eval(last.conv_pwl, last.bn3)
    largest: float = (_RELU6 * convolution.weight.abs().flatten(1).sum(1) + convolution.bias.abs()).max().item()
    return 2.0 ** math.floor(math.log2(_RELU6 / largest))


def _through_last_layer(encoder: ImageEncoder) -> tuple[dict[str, Tensor], Tensor]:
    """Give an EfficientNet a last layer that passes on what its last block gives.

    After the last block come a convolution of 1 x 1, a batch norm, an activation f and the mean over the grid, and
    open_clip cannot leave them out. With the weights (s, -s, 0) the convolution gives s x and -s x, and the batch norm
    does nothing. As f(a) - f(-a) = a, for ReLU and SiLU anywhere and for ReLU6 between -6 and 6, the difference of the
    two means is s times the mean of x, which is the feature that the model reads. Multiplying by a power of two does
    not round.

    Returns:
        The state of the whole tower, and the matrix [block's width, tower's width] that reads the feature.
    """
    whole = timm.create_model(encoder.settings.name, num_classes=0).eval()
    width, factor = encoder.pooled_width, _factor(encoder, whole)
    signs = torch.zeros(whole.num_features, width)
    signs[:width] = torch.eye(width)
    signs[width : 2 * width] = -torch.eye(width)
    norm = whole.bn2
    with torch.no_grad():
        whole.conv_head.weight.copy_((factor * signs)[:, :, None, None])
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    return {**whole.state_dict(), **encoder.backbone.state_dict()}, signs.T / factor


def _projections(saved: SavedModel, read: Tensor | None) -> dict[str, Tensor]:
    """Return the projections and the scale by open_clip's names; a model without projections gets the identity."""
    model, width = saved.model, saved.model.width
    image, text = model.image_head, model.text_head
    weight = image.weight if isinstance(image, nn.Linear) else torch.eye(width)
    state = {
        "visual.head.proj.weight": weight if read is None else weight @ read,
        "visual.head.proj.bias": image.bias if isinstance(image, nn.Linear) else torch.zeros(width),
        "text.proj.weight": text.weight if isinstance(text, nn.Linear) else torch.eye(width),
        "logit_scale": model.log_scale,
    }
    return state if model.bias is None else {**state, "logit_bias": model.bias}


def _of_timm(encoder: ImageEncoder) -> dict[str, Any]:
    """Return what timm reads of ``config.json``: the tower, at another resolution than its own."""
    if not _is_resized(encoder):
        return {}
    statistics = timm.get_pretrained_cfg(encoder.settings.name)
    return {
        "architecture": statistics.architecture,
        "pretrained_cfg": statistics.to_dict(remove_source=True),
        "model_args": {"img_size": encoder.settings.image_size},
    }


def _is_resized(encoder: ImageEncoder) -> bool:
    """Whether the tower has a resolution that open_clip does not give it by its name: that of its positions."""
    statistics = timm.get_pretrained_cfg(encoder.settings.name)
    return bool(statistics.fixed_input_size) and statistics.input_size[1] != encoder.settings.image_size


def _config(saved: SavedModel, place: _Place) -> dict[str, Any]:
    settings, encoder = saved.model.settings, _encoder(saved)
    whole = settings.image.view == "whole"
    model: dict[str, Any] = {
        "embed_dim": saved.model.width,
        "vision_cfg": {
            "timm_model_name": place.of_timm if _is_resized(encoder) else settings.image.name,
            "timm_model_pretrained": False,
            "timm_pool": "",  # the tower's own
            "timm_proj": "linear",
            "timm_proj_bias": True,
            "image_size": settings.image.image_size,
        },
        "text_cfg": {
            "hf_model_name": place.name,
            "hf_tokenizer_name": place.name,
            "hf_model_pretrained": False,
            "hf_proj_type": "linear",
            "hf_pooler_type": "cls_last_hidden_state_pooler" if settings.text.pooling == "cls" else "mean_pooler",
            "context_length": settings.text.max_tokens,
        },
        "custom_text": True,
        "init_logit_scale": float(saved.model.log_scale.detach()),
    }
    if saved.model.bias is not None:
        model["init_logit_bias"] = float(saved.model.bias.detach())
    statistics: dict[str, Any] = encoder.backbone.pretrained_cfg
    preprocess = {
        "mean": list(statistics["mean"]),
        "std": list(statistics["std"]),
        "interpolation": "bicubic",
        "resize_mode": "longest" if whole else "shortest",
        "fill_color": _WHITE if whole else 0,
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _refuse_other_tower(encoder: ImageEncoder, trunk: dict[str, Tensor], place: _Place) -> None:
    """Raise ConfigError if open_clip does not build this image tower by its name, before weights are written."""
    settings = encoder.settings
    name = place.of_timm if _is_resized(encoder) else settings.name
    try:
        with torch.device("meta"):
            built = import_module("open_clip.timm_model").TimmModel(name, 1, image_size=settings.image_size, pool="")
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"open_clip does not build {settings.name} ({error}): export it with --to onnx") from error
    if problems := weights.misfits(built.trunk.state_dict(), trunk):
        raise ConfigError(f"open_clip builds another {settings.name} ({problems}): export it with --to onnx")


def _compare(saved: SavedModel, folder: Path) -> list[Check]:
    package = import_module("open_clip")
    module, _, preprocess = package.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = package.get_tokenizer(f"local-dir:{folder}")
    module.eval()
    by = f"open_clip {package.__version__}"
    return [*_compare_images(saved, module, preprocess, by), *_compare_texts(saved, module, tokenizer, by)]


@torch.no_grad()
def _compare_images(saved: SavedModel, module: Any, preprocess: Callable[..., Tensor], by: str) -> list[Check]:
    pictures, encoder = parts.sample_pictures(PICTURES), _encoder(saved)
    squares = parts.seen(saved, pictures)
    own = saved.model.embed_pixels(squares)
    normal = (squares / 255 - encoder.mean) / encoder.std
    difference = (module.encode_image(normal, normalize=True) - own).abs().max().item()
    _refuse_unequal(difference, "image")
    seen = torch.stack([preprocess(each) for each in pictures])
    cosine = F.cosine_similarity(module.encode_image(seen), own).min().item()
    equal = sum(torch.allclose(theirs, ours, atol=1e-5) for theirs, ours in zip(seen, normal, strict=True))
    count = len(pictures)
    return [
        Check(_("vectors of {count} pictures, equal pixels").format(count=count), "largest difference", difference, by),
        Check(_("vectors of {count} pictures, through preprocess").format(count=count), "lowest cosine", cosine, by),
        Check(
            _("pixels of {count} pictures, through preprocess").format(count=count),
            "share that is equal",
            equal / count,
            by,
        ),
    ]


@torch.no_grad()
def _compare_texts(saved: SavedModel, module: Any, tokenizer: Any, by: str) -> list[Check]:
    captions = parts.sample_captions(TOKENIZED)
    length = saved.tokenizer.max_tokens
    own = F.pad(saved.tokenizer(captions), (0, length), value=saved.tokenizer.pad)[:, :length]
    theirs = tokenizer.tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    if not torch.equal(own, theirs):
        raise DataError("open_clip's tokenizer gives other tokens: do not use this export")
    through = (tokenizer(captions) == own).all(1).float().mean().item()
    vectors = module.encode_text(own[:CAPTIONS], normalize=True)
    difference = (vectors - saved.model.embed_text(own[:CAPTIONS]).vectors).abs().max().item()
    _refuse_unequal(difference, "text")
    return [
        Check(
            _("vectors of {captions} captions, equal tokens").format(captions=CAPTIONS),
            "largest difference",
            difference,
            by,
        ),
        Check(
            _("tokens of {tokenized:,} captions, not cleaned").format(tokenized=TOKENIZED),
            "share that is equal",
            1.0,
            by,
        ),
        Check(
            _("tokens of {tokenized:,} captions, cleaned by ftfy").format(tokenized=TOKENIZED),
            "share that is equal",
            through,
            by,
        ),
    ]


def _refuse_unequal(difference: float, tower: str) -> None:
    if not difference <= parts.TOLERANCE:
        raise DataError(f"the {tower} tower in open_clip differs by {difference:.1e}: do not use this export")


def _save(state: dict[str, Tensor], path: Path) -> None:
    # Without the format transformers refuses the file.
    path.write_bytes(save({name: value.detach().contiguous() for name, value in state.items()}, {"format": "pt"}))


TARGET = Target(
    name="open_clip",
    about="a folder for open_clip's local-dir:, with its tokenizer",
    needs=("open_clip", "transformers"),
    refuse=refuse,
    write=write,
)
