"""The authors' released models: names and sizes of all nine, and the vectors of tiny ones by independent code."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import released_models as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError
from wukong.model import released


def model(name: str) -> released.ReleasedModel:
    found = released.ReleasedModel(tiny.TINY[name])
    found.load_released(tiny.checkpoint(name), name)
    return found.eval()


@pytest.mark.parametrize("name", released.ARCHITECTURES)
def test_names_and_sizes_are_those_of_the_authors_code(name: str) -> None:
    with torch.device("meta"):
        weights = released.ReleasedModel(released.ARCHITECTURES[name]).released_weights()
    recorded = tiny.RECORDED["released"][name]
    lines = [f"{each} {list(value.shape)}" for each, value in sorted(weights.items())]
    assert (len(lines), sum(value.numel() for value in weights.values())) == (
        recorded["tensors"],
        recorded["parameters"],
    )
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == recorded["sha256"]


def test_the_tokenizer_gives_the_ids_of_the_authors_tokenizer() -> None:
    assert Tokenizer(packaged_vocabulary(), released.CONTEXT).encode(tiny.TEXTS) == tiny.RECORDED["ids"]


@torch.no_grad()
def test_the_text_tower_equals_another_implementation_of_clip() -> None:
    transformers = pytest.importorskip("transformers")
    given = tiny.checkpoint("vit_g")
    settings = transformers.CLIPTextConfig(
        vocab_size=21128, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, hidden_act="quick_gelu", layer_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.CLIPTextModel(settings).eval()
    names = {
        "embeddings.token_embedding.weight": "transformer.token_embedding.weight",
        "embeddings.position_embedding.weight": "transformer.positional_embedding",
        "final_layer_norm.weight": "transformer.ln_final.weight",
        "final_layer_norm.bias": "transformer.ln_final.bias",
    }
    fill(theirs, names, given, "transformer.resblocks")
    ids = torch.zeros(3, 32, dtype=torch.int64)
    for row, known in zip(ids, tiny.RECORDED["ids"], strict=True):
        row[: len(known)] = torch.tensor(known)
    hidden = theirs(input_ids=ids).last_hidden_state @ given["transformer.text_projection"]
    last = [len(known) - 1 for known in tiny.RECORDED["ids"]]
    assert [ids[row, place].item() for row, place in enumerate(last)] == [102] * 3, "the last token is [SEP]"
    expected = torch.stack([hidden[row, place] for row, place in enumerate(last)])
    torch.testing.assert_close(model("vit_g").encode_text(ids), expected, atol=1e-5, rtol=1e-5)
    tokens = model("vit_f").encode_text(ids)
    for row, known in enumerate(tiny.RECORDED["ids"]):
        torch.testing.assert_close(tokens[row, : len(known)], hidden[row, : len(known)], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_image_tower_equals_another_implementation_of_clip() -> None:
    transformers = pytest.importorskip("transformers")
    given = tiny.checkpoint("vit_g")
    settings = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=64,
        patch_size=32, projection_dim=8, hidden_act="quick_gelu", layer_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.CLIPVisionModelWithProjection(settings).eval()
    names = {
        "embeddings.class_embedding": "visual.class_embedding",
        "embeddings.patch_embedding.weight": "visual.conv1.weight",
        "embeddings.position_embedding.weight": "visual.positional_embedding",
        **{
            f"{place}.{kind}": f"visual.{name}.{kind}"
            for place, name in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"))
            for kind in ("weight", "bias")
        },
    }
    fill(theirs, names, {**given, "visual_projection.weight": given["visual.proj"].T}, "visual.transformer.resblocks")
    pixels = tiny.value("pixels", (2, 3, 64, 64))
    found = theirs(pixel_values=pixels)
    torch.testing.assert_close(model("vit_g").encode_image(pixels), found.image_embeds, atol=1e-5, rtol=1e-5)
    patches = theirs.visual_projection(theirs.vision_model.post_layernorm(found.last_hidden_state[:, 1:]))
    torch.testing.assert_close(model("vit_f").encode_image(pixels), patches, atol=1e-5, rtol=1e-5)


def fill(theirs: torch.nn.Module, names: dict[str, str], given: dict[str, Tensor], blocks: str) -> None:
    """Load released weights into a model of transformers, whose queries, keys and values are apart."""
    state = {}
    for name in theirs.state_dict():
        bare = name.removeprefix("text_model.").removeprefix("vision_model.")
        if bare in names:
            state[name] = given[names[bare]]
        elif ".layers." in f".{bare}":
            _, layer, part = bare.removeprefix("encoder.").split(".", 2)
            for long, short in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm", "ln_"),
                                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                part = part.replace(long, short)
            if part.startswith("self_attn."):
                joined = given[f"{blocks}.{layer}.attn.in_proj_{part.rsplit('.', 1)[1]}"]
                state[name] = joined.chunk(3)["qkv".index(part.split(".")[1][0])]
            else:
                state[name] = given[f"{blocks}.{layer}.{part}"]
        elif bare in given:
            state[name] = given[bare]
    theirs.load_state_dict(state, strict=False)
    assert set(theirs.state_dict()) - set(state) <= {name for name in theirs.state_dict() if "position_ids" in name}


def test_pooled_tokens_are_means_of_patches_weighted_by_their_maps() -> None:
    """By loops over tokens, groups and patches."""
    given = {name: value.double() for name, value in tiny.checkpoint("vit").items()}
    patches = tiny.value("patches", (1, 4, 8)).double()
    part = "visual.token_reduction"
    norm = torch.nn.functional.layer_norm(patches, [8], given[f"{part}.norm.weight"], given[f"{part}.norm.bias"])
    # Eight groups of one channel: the grouped convolution is one factor a channel.
    first, mixed = given[f"{part}.attention_maps.0.weight"].view(8), given[f"{part}.attention_maps.1.weight"].view(3, 8)
    feature = given[f"{part}.feat_conv.weight"].view(8)
    expected = torch.zeros(3, 8, dtype=torch.float64)
    for token in range(3):
        logits = [sum(float(mixed[token, c] * first[c] * norm[0, n, c]) for c in range(8)) for n in range(4)]
        total = sum(math.exp(each) for each in logits)
        for n in range(4):
            expected[token] += math.exp(logits[n]) / total * patches[0, n] * feature
    reduction = model("vit").token_reduction
    assert reduction is not None
    torch.testing.assert_close(reduction(patches.float())[0].double(), expected, atol=1e-6, rtol=1e-6)


def change(state: dict[str, Any]) -> None:
    state["transformer.token_embedding.weight"] = torch.zeros(30522, 128)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change, r"of another size are transformer\.token_embedding\.weight \(30522 x 128 instead of 21128 x 128\)"),
        (lambda state: state.pop("visual.proj"), r"it lacks visual\.proj"),
        (lambda state: state.pop("transformer.resblocks.1.ln_2.bias"), r"lacks transformer\.resblocks\.1\.ln_2\.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "the model has not, extra"),
        (lambda state: state["visual.ln_pre.bias"].fill_(torch.nan), r"finite in visual\.ln_pre\.bias"),
    ],
    ids=["another vocabulary", "missing", "missing in a layer", "unexpected", "not a number"],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_weights_names(
    damage: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "ARCHITECTURES", tiny.TINY)
    state = {name: value.clone() for name, value in tiny.checkpoint("vit_g").items()}
    damage(state)
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(DataError, match=rf"x\.ckpt \(vit_g\) is not that model: .*{message}"):
        released.load("vit_g", (tmp_path / "x.ckpt").as_uri())


def test_swins_weights_are_named_as_in_the_checkpoint() -> None:
    state = tiny.checkpoint("swin_g")
    del state["visual.layers.0.downsample.reduction.weight"], state["visual.head.bias"]
    message = r"lacks visual\.layers\.0\.downsample\.reduction\.weight, visual\.head\.bias;"
    with pytest.raises(DataError, match=message):
        released.ReleasedModel(tiny.TINY["swin_g"]).load_released(state, "x")


@pytest.mark.parametrize("form", ["released", "safetensors"])
def test_what_is_no_weight_is_left_out_and_old_names_are_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "ARCHITECTURES", tiny.TINY)
    state = {name.replace("token_reduction", "token_learner"): value for name, value in tiny.checkpoint("swin").items()}
    state["loss.logit_scale"] = torch.tensor(4.6)
    state["visual.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    state["visual.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    state["visual.norm.bias"] = state["visual.norm.bias"].half()
    if form == "released":
        torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "x")
    else:
        save_file(state, tmp_path / "x")
    found = released.load("swin", (tmp_path / "x").as_uri()).released_weights()
    expected = tiny.checkpoint("swin")
    expected["visual.norm.bias"] = expected["visual.norm.bias"].half().float()
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_that_was_not_released_is_refused() -> None:
    with pytest.raises(ConfigError, match="released no model 'wukong_vit_h'; they released: wukong_vit_b, "):
        released.load("wukong_vit_h", "file:///nowhere")
