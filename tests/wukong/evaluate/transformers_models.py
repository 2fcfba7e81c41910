"""Tiny models of classes of transformers with random weights, saved as their authors save theirs."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wukong.data.tokenizer import packaged_vocabulary

SIDE = 32
_LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_PICTURES = {**_LAYERS, "image_size": SIDE, "patch_size": 16}
_CHARACTERS = [*"一只猫坐在窗前的照片红色苹果", *string.ascii_letters, *string.digits]


def _chinese_clip(package: Any, _: Path) -> list[Any]:
    text = {**_LAYERS, "vocab_size": 21128, "max_position_embeddings": 64}
    vocabulary = {entry: number for number, entry in enumerate(packaged_vocabulary().rstrip("\n").split("\n"))}
    return [
        package.ChineseCLIPModel(
            package.ChineseCLIPConfig(text_config=text, vision_config=_PICTURES, projection_dim=16)
        ),
        package.BertTokenizer(vocabulary),
        package.ChineseCLIPImageProcessor(
            size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
    ]


def _clip_processor(package: Any) -> Any:
    return package.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _clip(package: Any, _: Path) -> list[Any]:
    """CLIP's vocabulary without its merges: a token is a byte, which ends a word or not; [EOS] is padding too."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values()]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = package.CLIPConfig(
        text_config={**_LAYERS, **ids, "vocab_size": 514}, vision_config=_PICTURES, projection_dim=16
    )
    tokenizer = package.CLIPTokenizer({entry: number for number, entry in enumerate(entries)}, [])
    return [package.CLIPModel(config), tokenizer, _clip_processor(package)]


def _xlm_roberta(package: Any) -> Any:
    """XLM-R's kind of tokenizer: padding is 1, and the position of a RoBERTa's first token is 2."""
    pieces = [*((entry, 0.0) for entry in ("<s>", "<pad>", "</s>", "<unk>")), ("▁", -1.0)]
    pieces += [(character, -2.0) for character in dict.fromkeys(_CHARACTERS)]
    return package.XLMRobertaTokenizer([*pieces, ("<mask>", 0.0)])


def _altclip(package: Any, _: Path) -> list[Any]:
    text = {**_LAYERS, "vocab_size": 100, "max_position_embeddings": 100, "project_dim": 24, "pad_token_id": 1}
    config = package.AltCLIPConfig(text_config=text, vision_config=_PICTURES, projection_dim=16)
    return [package.AltCLIPModel(config), _xlm_roberta(package), _clip_processor(package)]


def _metaclip_2(package: Any, _: Path) -> list[Any]:
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = {**_LAYERS, **ids, "vocab_size": 100, "max_position_embeddings": 77}
    config = package.MetaClip2Config(text_config=text, vision_config=_PICTURES, projection_dim=16)
    return [package.MetaClip2Model(config), _xlm_roberta(package), _clip_processor(package)]


def gemma(package: Any, name: str = "GemmaTokenizer") -> Any:
    """SigLIP 2's kind of tokenizer: Gemma's without the first token, and no mask; ``Siglip2Tokenizer`` lower-cases."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    more = [*dict.fromkeys(_CHARACTERS), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {entry: number for number, entry in enumerate([*special, *more])}
    arguments = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    tokenizer = getattr(package, name)(vocabulary, [], model_input_names=["input_ids"], **arguments)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def _siglip(package: Any, _: Path) -> list[Any]:
    """As SigLIP 2's models of one resolution are saved: SigLIP's class with Gemma's tokenizer."""
    text = {**_LAYERS, "vocab_size": 400, "max_position_embeddings": 64, "projection_size": 32}
    config = package.SiglipConfig(text_config=text, vision_config=_PICTURES)
    processor = package.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    return [package.SiglipModel(config), gemma(package), processor]


def _siglip2(package: Any, _: Path) -> list[Any]:
    """A NaFlex model: 4 patches are the square of 32 x 32 pixels."""
    text = {**_LAYERS, "vocab_size": 400, "max_position_embeddings": 64, "projection_size": 32}
    vision = {**_LAYERS, "num_patches": 16, "patch_size": 16}
    config = package.Siglip2Config(text_config=text, vision_config=vision)
    processor = package.Siglip2ImageProcessor(max_num_patches=4, patch_size=16)
    return [package.Siglip2Model(config), gemma(package, "Siglip2Tokenizer"), processor]


MODELS: dict[str, Callable[[Any, Path], list[Any]]] = {
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
    "clip": _clip,
    "metaclip_2": _metaclip_2,
    "siglip": _siglip,
    "siglip2": _siglip2,
}
"""What makes model, tokenizer and image processor, by ``model_type``."""


def save(package: Any, kind: str, folder: Path) -> nn.Module:
    """Save a tiny model with its tokenizer and image processor, and return it."""
    torch.manual_seed(0)
    parts = MODELS[kind](package, folder)
    with torch.no_grad():
        for parameter in parts[0].parameters():
            if parameter.ndim:
                parameter.normal_(std=0.3)
    for part in parts:
        part.save_pretrained(folder)
    model: nn.Module = parts[0].eval()
    return model
