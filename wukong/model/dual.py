"""The dual encoder of figure 1: an image tower, a text tower, a linear head on each, and a learned temperature."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.config.model import TEXT_FILES
from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer
from wukong.errors import ConfigError
from wukong.model import bert, weights
from wukong.model.image_encoder import ImageEncoder, ImageFeatures
from wukong.model.loss import global_loss, token_loss
from wukong.model.pooling import AreaMeans, AttentionMaps, shares
from wukong.model.similarity import Scores, global_similarity, token_similarity
from wukong.model.text_encoder import TextEncoder
from wukong.store import contents


class Texts(NamedTuple):
    """Captions in the shared embedding space.

    Attributes:
        vectors: unit vectors, [texts, d], or [texts, tokens, d] for the token-wise similarity.
        counted: bool [texts, tokens], the tokens that count in the token-wise similarity: not padding, and not [CLS],
            which is the first token.
    """

    vectors: Tensor
    counted: Tensor


class Embedded(NamedTuple):
    """A batch of pairs in the shared embedding space, with the scale and bias that turn similarities into logits.

    Attributes:
        image: unit vectors of the images, [pairs, d], or [pairs, tokens, d] for the token-wise similarity.
        text: the embedded captions.
        scale: one over the temperature, a scalar.
        bias: bias of the sigmoid loss, a scalar; None for the softmax loss.
    """

    image: Tensor
    text: Texts
    scale: Tensor
    bias: Tensor | None


class DualEncoder(nn.Module):
    """An image encoder and a text encoder with learned linear projections (heads) to one embedding space.

    Both heads are trained, also when the image tower is locked (section 4.4).

    Args:
        settings: the architecture.
        tokenizer: the captions' tokenizer; it defines the vocabulary size and the special tokens.
        image: the image tower; or None to use image features that were computed before. Then ``feature_width`` is
            required.
        feature_width: width of the image features, for a model without an image tower.
        with_weights: load the weights that the text encoder's settings name. If False, the weights are random until
            ``load_trained`` is called.

    Raises:
        ValueError: there is neither an image tower nor ``feature_width``.
        ConfigError: the model has no projections and the towers have different widths; the tower's patches cannot be
            pooled as asked; or the text encoder's weights cannot be downloaded.
        DataError: the text encoder's weights have another architecture.
    """

    def __init__(
        self,
        settings: Settings,
        tokenizer: Tokenizer,
        image: ImageEncoder | None = None,
        feature_width: int = 0,
        with_weights: bool = True,
    ) -> None:
        super().__init__()
        if image is None and not feature_width:
            raise ValueError("without an image tower feature_width must be given")
        self.settings = settings
        self.token_wise = settings.is_token_wise
        self.special = (tokenizer.pad, tokenizer.cls)
        self.vocabulary = tokenizer.digest
        self.image = image
        if image is not None:
            feature_width = image.token_width if self.token_wise else image.pooled_width
        text = settings.text
        self.text = TextEncoder.of(text, len(tokenizer), tokenizer.pad)
        if with_weights and text.weights != "random":
            bert.start_from(self.text, text.weights)
            contents.check(text.weights, text.weights_sha256, TEXT_FILES)
        self.image_head: nn.Module = nn.Identity()
        self.text_head: nn.Module = nn.Identity()
        if settings.embedding is not None:
            self.image_head = nn.Linear(feature_width, settings.embedding)
            self.text_head = nn.Linear(text.width, settings.embedding)
            for head in (self.image_head, self.text_head):
                nn.init.normal_(head.weight, std=head.in_features**-0.5)
                nn.init.zeros_(head.bias)
        elif feature_width != text.width:
            raise ConfigError(
                f"model.embedding: without projections the vectors of pictures have {feature_width} numbers and those "
                f"of captions {text.width}; give it a width"
            )
        self.image_pooling: AreaMeans | AttentionMaps | None = None
        if (count := settings.image.tokens) is not None:
            learned = settings.image.pooling == "attention"
            self.image_pooling = AttentionMaps(self.width, count) if learned else AreaMeans(count)
            if image is not None and not learned:
                shares(image.token_count, count)  # refuses what cannot be pooled before anything is trained
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / settings.temperature)))
        self.bias = nn.Parameter(torch.tensor(settings.bias)) if settings.loss == "sigmoid" else None

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of a trained model.

        The state of a model that was trained on image features has no image tower; the image tower then stays as it
        is.

        Raises:
            DataError: the state has another architecture, or a weight is missing or not finite.
        """
        tower = {f"image.{name}": value for name, value in self.image.state_dict().items()} if self.image else {}
        weights.fill(self, {**tower, **state}, "the trained state")

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile the towers with ``torch.compile``, in place; the names of the weights do not change.

        The image tower is one graph. Of the text tower, each layer is one, for any number of captions and tokens: how
        many tokens are real is known only when captions are packed, which is outside of the layers.

        Args:
            backend: torch's name of the compiler's last part.
        """
        if self.image is not None:
            self.image.compile(backend=backend)
        for layer in self.text.layers:
            layer.compile(backend=backend, dynamic=True)

    @property
    def width(self) -> int:
        """Width of the shared embedding space."""
        return self.settings.text.width if self.settings.embedding is None else self.settings.embedding

    @property
    def scale(self) -> Tensor:
        """The factor on similarities: one over the temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Raise the temperature to its lower bound if it is below; call this after each optimiser step."""
        self.log_scale.clamp_(max=math.log(1 / self.settings.min_temperature))

    def select(self, features: ImageFeatures) -> Tensor:
        """Select the image features that this model's similarity uses: all tokens, or the pooled feature."""
        return features.tokens if self.token_wise else features.pooled

    @torch.no_grad()
    def whiten_image_head(self, features: Tensor, shrinkage: float = 1.0) -> None:
        """Initialise the image head with a whitening projection: the leading principal directions of some features.

        Locked features of similar images point in almost the same direction. After whitening they differ more, before
        any training. ``shrinkage`` reduces the weight of directions with little variance.

        Args:
            features: features of the training images, [images, width] or [images, tokens, width].
            shrinkage: added to each variance; 1 is the mean variance of a standardised feature.

        Raises:
            ConfigError: the model has no heads.
        """
        if not isinstance(self.image_head, nn.Linear):
            raise ConfigError("whiten_image_head: the model has no projection to whiten with; give model.embedding")
        if isinstance(self.image_pooling, AreaMeans):
            features = self.image_pooling(features)  # what the head reads
        flat = features.reshape(-1, features.shape[-1]).double()
        mean, deviation = flat.mean(0), flat.std(0) + 1e-3
        standardised = (flat - mean) / deviation
        variances, directions = torch.linalg.eigh(standardised.T @ standardised / len(flat))
        kept = min(self.image_head.out_features, len(variances))
        variances, directions = variances.flip(0)[:kept], directions.flip(1)[:, :kept]
        # The sign of an eigenvector is arbitrary. Fix it, so that the same features give the same head.
        signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        weight = (directions * signs / (variances + shrinkage).sqrt()).T / deviation
        weight /= ((flat - mean) @ weight.T).norm(dim=1).mean()
        self.image_head.weight.zero_()[:kept] = weight.float()
        self.image_head.bias.zero_()[:kept] = -(weight @ mean).float()

    def embed_features(self, features: Tensor, *, pool: bool = True) -> Tensor:
        """Project image features to unit vectors.

        Args:
            features: [images, width], or [images, patches, width] for the token-wise similarity.
            pool: whether patches are pooled, if the settings say so; without it each has a vector, to align it.

        Returns:
            [images, d], or [images, tokens, d].
        """
        pooling = self.image_pooling
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.log_scale.dtype)  # stored features, and those of a tower in half precision
        if isinstance(pooling, AttentionMaps):
            patches = self.image_head(features)
            return self._unit(pooling(patches) if pool else pooling.values(patches))
        # A mean may be taken before the head as well, which is linear, and costs less there.
        return self._unit(self.image_head(pooling(features) if pooling and pool else features))

    def embed_pixels(self, pixels: Tensor, *, pool: bool = True) -> Tensor:
        """Encode uint8 images [images, 3, size, size] to unit vectors [images, (tokens,) d]; see ``embed_features``."""
        if self.image is None:
            raise ValueError("this model holds no image tower: give it features")
        return self.embed_features(self.select(self.image(pixels)), pool=pool)

    def embed_text(self, ids: Tensor, packed: int | None = None) -> Texts:
        """Encode token ids, int64 [texts, tokens], to unit vectors; for ``packed`` see ``TextEncoder.forward``."""
        pad, cls = self.special
        if self.token_wise:
            taken = self.text(ids, packed=packed)
        elif self.settings.text.pooling == "cls":
            taken = self.text(ids, first=True, packed=packed)
        else:
            taken = self.text(ids, packed=packed).sum(1) / (ids != pad).sum(1, keepdim=True)
        return Texts(self._unit(self.text_head(taken)), (ids != pad) & (ids != cls))

    def _unit(self, vectors: Tensor) -> Tensor:
        """Scale vectors to unit length in float32 or more; under autocast, convert tokens to autocast's type.

        Autocast on CUDA normalises in float32 and returns float32; autocast on the CPU does neither. The global
        similarity is a cheap product of two vectors, so they stay float32. The token-wise similarity is expensive, so
        its tokens use autocast's type.
        """
        unit = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
        device = vectors.device.type
        if self.token_wise and torch.is_autocast_enabled(device):
            return unit.to(torch.get_autocast_dtype(device))
        return unit

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities of embedded images and captions, not divided by the temperature."""
        if self.token_wise:
            return token_similarity(image, *text, self.settings.match_text_cls)
        return global_similarity(image, text.vectors)

    def forward(self, features: Tensor, ids: Tensor, packed: int | None = None) -> Embedded:
        """Embed the images and captions of a batch; ``loss`` takes the result.

        Args:
            features: uint8 images [pairs, 3, size, size], or image features that were computed before.
            ids: token ids, int64 [pairs, tokens].
            packed: see ``TextEncoder.forward``.
        """
        image = self.embed_pixels(features) if features.dtype == torch.uint8 else self.embed_features(features)
        return Embedded(image, self.embed_text(ids, packed), self.scale, self.bias)

    def loss(self, pairs: Embedded, captions: Tensor | None = None) -> Tensor:
        """Compute the loss of this worker's pairs against the pairs of all workers; see ``wukong.model.loss``."""
        image, text, scale, bias = pairs
        if self.token_wise:
            # To ask the others for the longest caption of a batch, a processor would wait for its GPU.
            longest = None if image.device.type == "cpu" else self.text.positions.num_embeddings
            return token_loss(image, *text, scale, captions, bias, self.settings.match_text_cls, longest)
        return global_loss(image, text.vectors, scale, captions, bias)
