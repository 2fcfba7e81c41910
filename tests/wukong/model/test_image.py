import timm
import torch

from wukong.config import ImageEncoder as Settings
from wukong.model.image import ImageEncoder, packaged_weights

NAME = "tf_efficientnet_lite0"


def pictures(size: int = 96) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def reference() -> torch.nn.Module:
    """timm's own model with the package's weights, classifier included, matched by position."""
    model = timm.create_model(NAME, pretrained=False)
    state = packaged_weights(NAME)
    names = list(model.state_dict())
    assert len(names) == len(state)
    model.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=True)
    return model.eval()


def test_lite0_gives_what_the_whole_classifier_is_made_of() -> None:
    encoder, whole = ImageEncoder(Settings(image_size=96)), reference()
    scaled = pictures().float() / 127.5 - 1
    with torch.inference_mode():
        pooled, tokens = encoder(pictures())
        logits = whole(scaled)
        torch.testing.assert_close(whole.classifier(pooled), logits, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 9, 1280)
    torch.testing.assert_close(tokens.mean(1), pooled, rtol=1e-4, atol=1e-5)


def test_block_4_is_the_input_of_the_last_convolution() -> None:
    encoder, whole = ImageEncoder(Settings(image_size=96, block=4)), reference()
    seen: list[torch.Tensor] = []
    whole.conv_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        whole(pictures().float() / 127.5 - 1)
        pooled, tokens = encoder(pictures())
    torch.testing.assert_close(pooled, seen[0].mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert tokens.shape == (3, 9, 320)


def test_folding_batch_norm_changes_nothing() -> None:
    for block in (None, 4):
        settings = Settings(image_size=96, block=block)
        with torch.inference_mode():
            plain = ImageEncoder(settings).eval()(pictures())
            folded = ImageEncoder(settings).for_inference()(pictures())
        torch.testing.assert_close(folded.pooled, plain.pooled, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(folded.tokens, plain.tokens, rtol=1e-3, atol=1e-3)


def test_a_locked_tower_stays_as_it_is() -> None:
    encoder = ImageEncoder(Settings(image_size=96))
    encoder.lock()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    encoder(pictures())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
