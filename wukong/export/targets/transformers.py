"""Hugging Face transformers: ``ChineseCLIPModel`` where the parts are the same, else a model with its code beside it.

ChineseCLIP is a BERT whose [CLS] stands for the text beside CLIP's ViT, each with a projection that has no bias.
"""

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from wukong.errors import DataError
from wukong.export import parts
from wukong.export.target import Check, Options, Target, always
from wukong.model.saved_model import SavedModel

LOWEST_COSINE = 0.99
"""Lowest cosine of a picture's vectors through the consumer's own preprocessing and ours; below it, none is written."""
CODE = ("modeling_wukong.py", "image_processing_wukong.py")
_WEIGHTS = "model.safetensors"
_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}
_VIT_LAYER = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PICTURES, _CAPTIONS = 8, 500


def write(saved: SavedModel, folder: Path, options: Options | None = None) -> list[Check]:
    """Write the model, its tokenizer and its image processor, open them with transformers, and compare.

    Args:
        saved: the model, on the CPU.
        folder: an empty folder.
        options: unused.

    Raises:
        DataError: what transformers opens is not equal to the model.
    """
    write_model(saved, folder)
    return check_model(saved, folder)


def write_model(saved: SavedModel, folder: Path, *, with_masks: bool = False) -> None:
    """Write what ``AutoModel``, ``AutoProcessor`` and ``AutoTokenizer`` open.

    Args:
        saved: the model, on the CPU.
        folder: where the files are written.
        with_masks: whether the image processor of a token-wise model also gives a mask of the patches. It has the name
            of the mask of a text's tokens, so pictures and texts then have to be processed apart.
    """
    config, state, processor = _chinese_clip(saved) or _with_code(saved)
    if with_masks and saved.model.image is not None:
        processor["tokens"] = saved.model.settings.image.tokens or saved.model.image.token_count
    parts.write_tokenizer(saved.tokenizer, folder)
    parts.write_json(folder / "config.json", {"dtype": "float32", **config})
    parts.write_json(folder / "preprocessor_config.json", processor)
    parts.write_json(folder / "processor_config.json", {"processor_class": "ChineseCLIPProcessor"})
    save_file({name: value.contiguous() for name, value in state.items()}, folder / _WEIGHTS, {"format": "pt"})
    if "auto_map" in config:
        for name in CODE:
            with resources.as_file(resources.files("wukong.export.remote") / name) as file:
                shutil.copyfile(file, folder / name)


def has_code(folder: Path) -> bool:
    """Tell whether a folder that ``write_model`` wrote has code beside the weights, for ``trust_remote_code``."""
    return (folder / CODE[0]).is_file()


def check_model(saved: SavedModel, folder: Path) -> list[Check]:
    """Open a written folder with transformers and compare it with the model.

    Raises:
        DataError: a weight is missing or not read, a caption has other tokens, or a vector differs.
    """
    import transformers

    by, trusted = f"transformers {transformers.__version__}", has_code(folder)
    model, loaded = transformers.AutoModel.from_pretrained(
        folder, trust_remote_code=trusted, output_loading_info=True, local_files_only=True
    )
    model.eval()
    if left := [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]]:
        raise DataError(f"transformers reads other weights than were written ({left[0]}): do not use {folder.name}")
    processor = transformers.AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
        folder, trust_remote_code=trusted, local_files_only=True
    )
    captions, pictures = parts.sample_captions(_CAPTIONS), parts.sample_pictures(_PICTURES)
    given = processor(text=captions, padding=True, truncation=True, return_tensors="pt")
    ids = saved.tokenizer(captions)
    if not torch.equal(given["input_ids"], ids):
        raise DataError("the tokenizer of transformers gives other tokens: do not use it")
    normalised = _normalise(parts.seen(saved, pictures), processor.image_processor)
    seen = processor(images=pictures, return_tensors="pt")
    with torch.no_grad():
        ours = saved.model.embed_pixels(parts.seen(saved, pictures))
        text, real = saved.model.embed_text(ids).vectors, ids != saved.tokenizer.pad
        theirs = _vectors(model.get_image_features(normalised))
        through, their_text = _vectors(model.get_image_features(**seen)), _vectors(model.get_text_features(**given))
    if saved.model.token_wise:
        text, their_text = text[real], their_text[real]
    checks = [
        Check(f"vectors of {_PICTURES} pictures, equal pixels", "largest difference", _largest(ours, theirs), by),
        Check(f"vectors of {_CAPTIONS} captions", "largest difference", _largest(text, their_text), by),
        Check(f"vectors of {_PICTURES} pictures, own preprocessing", "lowest cosine", _lowest(ours, through), by),
    ]
    refuse_unequal(checks)
    return checks


def refuse_unequal(checks: list[Check]) -> None:
    """Raise DataError if a difference is larger, or a cosine lower, than a target allows."""
    for check in checks:
        equal = check.value >= LOWEST_COSINE if "cosine" in check.measure else check.value <= parts.TOLERANCE
        if not equal:
            raise DataError(
                f"{check.by}: {check.of}: the {check.measure} is {check.value:.2g}, so the export is not equal to the "
                "model: do not use it"
            )


def _normalise(pixels: Tensor, processor: Any) -> Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (processor.image_mean, processor.image_std))
    return (pixels / 255 - mean) / std


def _vectors(output: Any) -> Tensor:
    """Take the unit vectors out of what a model's method returns: one for each input, or one for each token."""
    tokens = getattr(output, "token_embeddings", None)
    return nn.functional.normalize(output.pooler_output if tokens is None else tokens, dim=-1)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _lowest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours * theirs).sum(-1).min())


def _chinese_clip(saved: SavedModel) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]] | None:
    """Return configuration, weights and image processor of a ``ChineseCLIPModel``; None if a part is another one."""
    model, settings = saved.model, saved.model.settings
    tower: Any = model.image.backbone if model.image else None
    other = model.token_wise or settings.text.pooling != "cls" or settings.loss != "softmax"
    if other or settings.image.block is not None or not _is_clip(tower):
        return None
    last: Any = model.text.layers[-1]
    image_bias = parts.folded_bias(tower.norm, model.image_head)
    text_bias = parts.folded_bias(last.norm2, model.text_head)
    if image_bias is None or text_bias is None:
        return None
    own = parts.bert_config(model, saved.tokenizer)
    vision = {
        "model_type": "chinese_clip_vision_model",
        "hidden_size": tower.embed_dim,
        "intermediate_size": tower.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": tower.blocks[0].attn.num_heads,
        "image_size": settings.image.image_size,
        "patch_size": tower.patch_embed.patch_size[0],
        "hidden_act": _ACTIVATIONS[type(tower.blocks[0].mlp.act).__name__],
        "layer_norm_eps": tower.norm.eps,
        "projection_dim": model.width,
    }
    config = {
        "model_type": "chinese_clip",
        "architectures": ["ChineseCLIPModel"],
        "projection_dim": model.width,
        "logit_scale_init_value": float(model.log_scale),
        "text_config": {**own, "model_type": "chinese_clip_text_model", "architectures": ["ChineseCLIPTextModel"]},
        "vision_config": vision,
    }
    mean, std = (value.flatten() for value in (model.image.mean, model.image.std))  # type: ignore[union-attr]
    if settings.image.view == "crop":
        side = settings.image.image_size
        processor: dict[str, Any] = {
            "image_processor_type": "ChineseCLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": mean.tolist(),
            "image_std": std.tolist(),
            "resample": 3,  # bicubic
            "do_convert_rgb": True,
        }
        offset = torch.zeros(3)
    else:
        # Of the image processors of transformers, this one puts the whole picture in the middle of a square, whose
        # colour is the mean that it subtracts. White is a mean of one; the tower's own is made up for in the positions.
        processor = {
            "image_processor_type": "DeepseekVLImageProcessor",
            "size": {"height": settings.image.image_size, "width": settings.image.image_size},
            "min_size": 1,
            "image_mean": [1.0, 1.0, 1.0],
            "image_std": std.tolist(),
            "resample": 3,
            "do_convert_rgb": True,
        }
        offset = (1 - mean) / std
    state = _clip_vit_state(tower, image_bias, offset)
    text = {f"text_model.{name}": value for name, value in parts.bert_state(model.text, text_bias).items()}
    heads = {"visual_projection": model.image_head, "text_projection": model.text_head}
    projections = {f"{name}.weight": _matrix(head, model.width) for name, head in heads.items()}
    return config, {**state, **text, **projections, "logit_scale": model.log_scale.detach().clone()}, processor


def _is_clip(tower: Any) -> bool:
    """Tell whether a tower is CLIP's ViT: [CLS], a norm before the layers, no extras in them."""
    if not isinstance(tower, VisionTransformer):
        return False
    block: Any = tower.blocks[0]
    return (
        isinstance(block, Block)
        and tower.global_pool == "token"
        and tower.num_prefix_tokens == 1
        and not tower.no_embed_class
        and tower.pos_embed is not None
        and tower.patch_embed.proj.bias is None
        and isinstance(tower.norm_pre, nn.LayerNorm)
        and isinstance(tower.norm, nn.LayerNorm)
        and isinstance(tower.fc_norm, nn.Identity)
        and isinstance(block.ls1, nn.Identity)
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity)
        and isinstance(block.mlp.norm, nn.Identity)
        and block.attn.qkv.bias is not None
        and type(block.mlp.act).__name__ in _ACTIVATIONS
        and {block.norm1.eps, tower.norm_pre.eps} == {tower.norm.eps}
    )


def _clip_vit_state(tower: Any, last_bias: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Return a ViT's weights by the names of ChineseCLIP's vision model.

    Args:
        tower: CLIP's ViT.
        last_bias: what stands in the place of the bias of the last norm.
        offset: what the tower's own pixels are more than those that ChineseCLIP gets, by channel.
    """
    own = {name: value.detach().cpu() for name, value in tower.state_dict().items()}
    positions = own["pos_embed"][0].clone()
    patch = own["patch_embed.proj.weight"]
    positions[1:] += torch.einsum("ochw,c->o", patch.double(), offset.cpu().double()).float()
    state = {
        "embeddings.class_embedding": own["cls_token"].flatten(),
        "embeddings.patch_embedding.weight": patch,
        "embeddings.position_embedding.weight": positions,
        "post_layernorm.weight": own["norm.weight"],
        "post_layernorm.bias": last_bias,
    }
    for kind in ("weight", "bias"):
        state[f"pre_layrnorm.{kind}"] = own[f"norm_pre.{kind}"]
        for number in range(len(tower.blocks)):
            layer = f"encoder.layers.{number}"
            qkv = own[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), qkv, strict=True):
                state[f"{layer}.self_attn.{name}.{kind}"] = part
            for name, theirs in _VIT_LAYER.items():
                state[f"{layer}.{theirs}.{kind}"] = own[f"blocks.{number}.{name}.{kind}"]
    return {f"vision_model.{name}": value for name, value in state.items()}


def _matrix(head: nn.Module, width: int) -> Tensor:
    return head.weight.detach().cpu() if isinstance(head, nn.Linear) else torch.eye(width)


def _with_code(saved: SavedModel) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Return configuration, weights and image processor of the model whose code is in ``wukong.export.remote``."""
    model, settings = saved.model, saved.model.settings
    if model.image is None:
        raise ValueError("this model holds no image tower: load it with wukong.load")
    tower, image = model.image.backbone, settings.image
    modeling, processing = (name.removesuffix(".py") for name in CODE)
    head = model.image_head
    config = {
        "model_type": "wukong",
        "architectures": ["WukongModel"],
        "auto_map": {"AutoConfig": f"{modeling}.WukongConfig", "AutoModel": f"{modeling}.WukongModel"},
        "tower": image.name,
        "tower_options": {"img_size": image.image_size} if tower.pretrained_cfg["fixed_input_size"] else {},
        "block": image.block,
        "text_config": parts.bert_config(model, saved.tokenizer),
        "text_pooling": settings.text.pooling,
        "projection_dim": model.width,
        "feature_width": head.in_features if isinstance(head, nn.Linear) else None,
        "similarity": settings.similarity,
        "match_text_cls": settings.match_text_cls,
        "pooled_tokens": image.tokens,
        "pooling": image.pooling,
        "logit_scale_init_value": float(model.log_scale),
        "has_bias": model.bias is not None,
    }
    own = {
        "vision_model": {**dict(tower.named_buffers()), **tower.state_dict()},
        "text_model": parts.bert_state(model.text),
        "visual_projection": model.image_head.state_dict(),
        "text_projection": model.text_head.state_dict(),
        "token_pooling": model.image_pooling.state_dict() if model.image_pooling else {},
    }
    state = {f"{part}.{name}": value.detach().cpu() for part, values in own.items() for name, value in values.items()}
    state["logit_scale"] = model.log_scale.detach().clone()
    if model.bias is not None:
        state["logit_bias"] = model.bias.detach().clone()
    processor = {
        "image_processor_type": "WukongImageProcessor",
        "auto_map": {"AutoImageProcessor": f"{processing}.WukongImageProcessor"},
        "image_size": image.image_size,
        "view": image.view,
        "image_mean": model.image.mean.flatten().tolist(),
        "image_std": model.image.std.flatten().tolist(),
    }
    return config, state, processor


TARGET = Target(
    name="transformers",
    about="AutoModel and AutoProcessor of Hugging Face: ChineseCLIPModel, or a model with its code beside it",
    needs=("transformers",),
    refuse=always,
    write=write,
)
