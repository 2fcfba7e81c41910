"""What an image and a pair cost, from a model's architecture: weights, shape of features, floating-point operations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from wukong.config.model import Model
from wukong.config.training import Training

if TYPE_CHECKING:
    from wukong.model.image_encoder import ImageEncoder


class Shape(NamedTuple):
    """The features of one image: the number of vectors, 1 without the token-wise similarity, and their width."""

    tokens: int
    width: int


@dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes:
        weights: number of its weights.
        image: number of the weights of its image tower.
        tower_flops: floating-point operations of the tower's forward pass for one image.
        shape: that of an image's features.
    """

    weights: int
    image: int
    tower_flops: float
    shape: Shape

    @classmethod
    def of(cls, model: Model, tower: "ImageEncoder | None" = None) -> "Size":
        """Return the size of a model, which is built without memory for its weights.

        Args:
            model: the architecture.
            tower: its image tower from ``empty_tower``; by default it is built.

        Raises:
            ConfigError: the model cannot be built.
        """
        import torch

        from wukong.data.tokenizer import Tokenizer
        from wukong.model.dual import DualEncoder

        tokenizer, tower = Tokenizer.of(model.text), tower or empty_tower(model)
        with torch.device("meta"):
            built = DualEncoder(model, tokenizer, tower, with_weights=False)
        count = [sum(parameter.numel() for parameter in module.parameters()) for module in (built, tower)]
        return cls(count[0], count[1], tower_flops(model, tower), feature_shape(model, tower))

    def trained(self, settings: Training) -> int:
        """Return the number of weights that are trained; of a tower that is locked in part none counts."""
        return self.weights if settings.lock == "none" else self.weights - self.image

    def memory(self, settings: Training) -> int:
        """Return the least bytes of a worker, in float32: weights, and for trained ones gradients and two moments."""
        trained, shares = self.trained(settings), settings.workers if settings.shard_optimizer else 1
        moments = 8 * trained // shares
        return 8 * trained + moments + (0 if settings.reads_features else 4 * (self.weights - trained))


def empty_tower(model: Model) -> "ImageEncoder":
    """Return the image tower of a model without memory for its weights.

    Raises:
        ConfigError: the tower cannot be built.
    """
    import torch

    from wukong.model.image_encoder import ImageEncoder

    with torch.device("meta"):
        return ImageEncoder(model.image, with_weights=False)


def feature_shape(model: Model, tower: "ImageEncoder | None" = None) -> Shape:
    """Return the shape of an image's features.

    Args:
        model: the architecture.
        tower: its image tower from ``empty_tower``; by default it is built, which takes seconds.

    Raises:
        ConfigError: the tower cannot be built.
    """
    tower = tower or empty_tower(model)
    if model.is_token_wise:
        return Shape(tower.token_count, tower.token_width)
    return Shape(1, tower.pooled_width)


def pair_flops(model: Model, shape: Shape, words: int) -> float:
    """Return the floating-point operations to compare an image with a text of so many words, or with its one vector."""
    compared = compared_vectors(model, shape) * (words if model.is_token_wise else 1)
    return 2.0 * compared * (model.embedding or model.text.width)


def compared_vectors(model: Model, shape: Shape) -> int:
    """Return how many vectors of an image are compared with a text: its pooled tokens, or all of its features."""
    return model.image.tokens or shape.tokens


def tower_flops(model: Model, tower: "ImageEncoder | None" = None) -> float:
    """Return the floating-point operations of the image tower's forward pass for one image; arguments as above."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tower, size = tower or empty_tower(model), model.image.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counted, torch.inference_mode():
        tower.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return float(counted.get_total_flops())


def text_flops(model: Model, tokens: int) -> float:
    """Return the floating-point operations of the text tower's forward pass for one text: products of matrices.

    These are 2 operations for each weight and token (Kaplan et al. 2020, section 2.1), and those of the attention.
    """
    text = model.text
    return (2 * 12 * text.layers * text.width**2 + 2 * 2 * text.layers * text.width * tokens) * float(tokens)


def text_step_flops(model: Model, settings: Training, shape: Shape, caption_tokens: int) -> float:
    """Return the floating-point operations for one pair of a step on stored features, forward and backward.

    The backward pass has twice as many as the forward pass (Kaplan et al. 2020, section 2.1). Embeddings, norms and the
    optimiser are left out.
    """
    text = model.text
    embedding = model.embedding or text.width
    words = caption_tokens if model.is_token_wise else 1
    tokens = compared_vectors(model, shape)
    projected = tokens if model.image.pooling == "areas" else shape.tokens
    heads = 2 * embedding * (projected * shape.width + words * text.width)
    return 3.0 * (text_flops(model, caption_tokens) + heads) + loss_flops(model, settings, shape, caption_tokens)


def loss_flops(model: Model, settings: Training, shape: Shape, caption_tokens: int) -> float:
    """Return the floating-point operations of one pair's similarities with all captions of the batch and back.

    They are counted as products forward and twice as many backward. On GPUs captions are padded to ``max_tokens``.
    """
    words = model.text.max_tokens if settings.gpus_per_worker else caption_tokens
    return 3.0 * settings.batch_size * pair_flops(model, shape, words)


class Exchange(NamedTuple):
    """What a worker hands to the others in a step, in bytes by collective.

    Attributes:
        workers: how many there are.
        gradients: float32, which are summed (all-reduce).
        vectors: of its texts, and without the token-wise similarity of its images, which all get (all-gather).
        returned: float32 gradients of all workers' vectors, which are summed where the vectors are (reduce-scatter).
        scores: float32, of its images with all texts, and their gradients (all-to-all).
        weights: float32, of the weights that it moves alone where workers share the optimiser's state (broadcast).
    """

    workers: int
    gradients: float
    vectors: float = 0.0
    returned: float = 0.0
    scores: float = 0.0
    weights: float = 0.0

    @property
    def sent(self) -> float:
        """What a worker sends, where workers stand in a ring (Patarasuk and Yuan 2009); what a sum needs goes twice."""
        others = self.workers - 1
        return others * (self.vectors + self.weights) + others / self.workers * (
            2 * self.gradients + self.returned + self.scores
        )


def exchange(model: Model, settings: Training, trained: int) -> Exchange:
    """Return what a worker hands to the others in a step (``wukong.model.loss``, and DistributedDataParallel).

    Captions have ``max_tokens``, to which GPUs pad them. Left out are 8 bytes for each caption, by which equal ones are
    known, and a byte for each of its words.

    Args:
        model: the architecture.
        settings: settings of the training.
        trained: number of weights that are trained.
    """
    workers, width = settings.workers, model.embedding or model.text.width
    if workers == 1:
        return Exchange(1, 0.0)
    rows, is_softmax = settings.batch_size // workers, model.loss == "softmax"
    gathered = rows * width * (model.text.max_tokens if model.is_token_wise else 1 + is_softmax)
    half = model.is_token_wise and settings.precision in ("bfloat16", "float16")
    scores = 2 * 4 * rows * settings.batch_size if model.is_token_wise and is_softmax else 0
    weights = 4.0 * trained / workers if settings.shard_optimizer else 0.0
    vectors = (2.0 if half else 4.0) * gathered
    return Exchange(workers, 4.0 * trained, vectors, 4.0 * workers * gathered, float(scores), weights)
