"""The dual encoder of figure 1: a locked image tower, a text tower, a head on each, one learned temperature."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.config import Model as Settings
from wukong.data.tokenizer import Tokenizer
from wukong.errors import ConfigError
from wukong.model import bert, weights
from wukong.model.image_encoder import ImageEncoder, ImageFeatures
from wukong.model.loss import global_loss, token_loss
from wukong.model.similarity import Scores, global_similarity, token_similarity
from wukong.model.text_encoder import TextEncoder


class Texts(NamedTuple):
    """Captions in the common space.

    Attributes:
        vectors: unit vectors, [texts, d], or [texts, tokens, d] for the token-wise similarity.
        counted: bool [texts, tokens], the tokens that take part: neither [CLS], which is the first, nor padding.
    """

    vectors: Tensor
    counted: Tensor


class Embedded(NamedTuple):
    """A batch of pairs in the common space, and what makes logits of its similarities.

    Attributes:
        image: unit vectors, [pairs, d], or [pairs, tokens, d] for the token-wise similarity.
        text: of the captions.
        scale: one over the temperature, a scalar.
        bias: of the sigmoid loss, a scalar; None for the softmax.
    """

    image: Tensor
    text: Texts
    scale: Tensor
    bias: Tensor | None


class DualEncoder(nn.Module):
    """Image and text encoder with learnable linear projections to one space.

    The heads are trained also when the image tower is locked, as in section 4.4.

    Args:
        settings: the architecture.
        tokenizer: of the captions; gives the size of the vocabulary and the special tokens.
        image: the image tower, or None for a model that is trained on features of it computed before; then
            ``feature_width`` must be given.
        feature_width: width of the image features; the tower's own unless given.
        with_weights: start the text encoder from the weights its settings name; without, it is random until a state is
            loaded.

    Raises:
        ConfigError: without projections, the towers are of different widths; or the text encoder's weights cannot be
            had.
        DataError: they are of another architecture.
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
        self.token_wise = settings.similarity == "token"
        self.special = (tokenizer.pad, tokenizer.cls)
        self.image = image
        if image is not None:
            feature_width = image.token_width if self.token_wise else image.pooled_width
        text = settings.text
        self.text = TextEncoder(
            len(tokenizer),
            text.layers,
            text.heads,
            text.width,
            text.max_tokens,
            text.dropout,
            tokenizer.pad,
            text.norm_epsilon,
        )
        if with_weights and text.weights != "random":
            bert.start_from(self.text, text.weights)
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
                f"model.embedding: without projections pictures are {feature_width} and captions {text.width} wide; "
                "give it a width"
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / settings.temperature)))
        self.bias = nn.Parameter(torch.tensor(settings.bias)) if settings.loss == "sigmoid" else None

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Load a trained model's state; one that was trained on features has no image tower, which then stays as it is.

        Raises:
            DataError: the state is of another architecture, or a weight is missing or not a number.
        """
        tower = {f"image.{name}": value for name, value in self.image.state_dict().items()} if self.image else {}
        weights.fill(self, {**tower, **state}, "the trained state")

    @property
    def width(self) -> int:
        """Of the common space."""
        return self.settings.text.width if self.settings.embedding is None else self.settings.embedding

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with: one over the temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back to its lower bound; to be called after each step of the optimiser."""
        self.log_scale.clamp_(max=math.log(1 / self.settings.min_temperature))

    def select(self, features: ImageFeatures) -> Tensor:
        """Of the image tower's output, what this model's similarity is computed from."""
        return features.tokens if self.token_wise else features.pooled

    @torch.no_grad()
    def whiten_image_head(self, features: Tensor, shrinkage: float = 1.0) -> None:
        """Set the image head to the leading principal directions of some features, each scaled to equal variance.

        Frozen features of pictures of one kind share most of their direction; whitened, they tell pictures apart
        before anything is learned. Directions of little variance are held back.

        Args:
            features: [pictures, width] or [pictures, tokens, width], of the training pictures.
            shrinkage: added to each variance; 1 is the mean variance of a standardised feature.

        Raises:
            ConfigError: the model has no heads.
        """
        if not isinstance(self.image_head, nn.Linear):
            raise ConfigError("whiten_image_head: the model has no projection to whiten with; give model.embedding")
        flat = features.reshape(-1, features.shape[-1]).double()
        mean, deviation = flat.mean(0), flat.std(0) + 1e-3
        standardised = (flat - mean) / deviation
        variances, directions = torch.linalg.eigh(standardised.T @ standardised / len(flat))
        kept = min(self.image_head.out_features, len(variances))
        variances, directions = variances.flip(0)[:kept], directions.flip(1)[:, :kept]
        # An eigenvector's sign is arbitrary: fix it, so that the same features give the same head.
        signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        weight = (directions * signs / (variances + shrinkage).sqrt()).T / deviation
        weight /= ((flat - mean) @ weight.T).norm(dim=1).mean()
        self.image_head.weight.zero_()[:kept] = weight.float()
        self.image_head.bias.zero_()[:kept] = -(weight @ mean).float()

    def embed_features(self, features: Tensor) -> Tensor:
        """Project image features, [images, (tokens,) width], to unit vectors [images, (tokens,) d]."""
        return self._unit(self.image_head(features))

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Encode uint8 pictures [images, 3, size, size] to unit vectors [images, (tokens,) d]."""
        if self.image is None:
            raise ValueError("this model holds no image tower: give it features")
        return self.embed_features(self.select(self.image(pixels)))

    def embed_text(self, ids: Tensor) -> Texts:
        """Encode token ids, int64 [texts, tokens], to unit vectors."""
        pad, cls = self.special
        if self.token_wise:
            taken = self.text(ids)
        elif self.settings.text.pooling == "cls":
            taken = self.text(ids, first=True)
        else:
            taken = self.text(ids).sum(1) / (ids != pad).sum(1, keepdim=True)
        return Texts(self._unit(self.text_head(taken)), (ids != pad) & (ids != cls))

    def _unit(self, vectors: Tensor) -> Tensor:
        """Scale to unit length, in float32 at least; tokens under autocast are then what it computes in.

        Autocast on CUDA normalises in float32 and leaves the result so; on the processor it does neither. The global
        similarity, a product of two vectors, gets float32 of both; of the token-wise one the tokens are what costs.
        """
        unit = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
        device = vectors.device.type
        if self.token_wise and torch.is_autocast_enabled(device):
            return unit.to(torch.get_autocast_dtype(device))
        return unit

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Similarities of embedded pictures with embedded captions, not divided by the temperature."""
        if self.token_wise:
            return token_similarity(image, *text, self.settings.match_text_cls)
        return global_similarity(image, text.vectors)

    def forward(self, features: Tensor, ids: Tensor) -> Embedded:
        """Embed the pictures and captions of a batch: what ``loss`` reads.

        Args:
            features: uint8 pictures [pairs, 3, size, size], or image features computed before.
            ids: token ids, int64 [pairs, tokens].
        """
        image = self.embed_pixels(features) if features.dtype == torch.uint8 else self.embed_features(features)
        return Embedded(image, self.embed_text(ids), self.scale, self.bias)

    def loss(self, pairs: Embedded, captions: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
        """The loss of this worker's pairs against every worker's; see ``wukong.model.loss``."""
        image, text, scale, bias = pairs
        if self.token_wise:
            return token_loss(image, *text, scale, captions, label_smoothing, bias, self.settings.match_text_cls)
        return global_loss(image, text.vectors, scale, captions, label_smoothing, bias)
