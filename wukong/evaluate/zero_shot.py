"""The evaluator of zero-shot classification (section 5.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wukong.evaluate import answers, class_names, classification, examples, prompts
from wukong.evaluate.blocks import Block, Sizes, Work, cut
from wukong.evaluate.data_set import ClassificationData
from wukong.evaluate.model import Spread
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import Classified, ClassResult, Outcome

DATA = ClassificationData
_MOST_CONFUSED = 50  # classes of a set whose confusions are kept


def blocks(data: ClassificationData, protocol: Protocol, roles: Sequence[str], sizes: Sizes) -> list[list[Block]]:
    """Divide the work; see ``wukong.evaluate.tasks.blocks``."""
    ranges = cut(len(_names(data, protocol)), classification.PIECE_CLASSES)
    texts = [Block("texts", role, classes) for role in roles for classes in ranges]
    return [texts, [Block("images", "", rows) for rows in cut(len(data), sizes.images)]]


def make(work: Work, block: Block) -> None:
    """Make a block's files; see ``wukong.evaluate.tasks.make``. Images are compared with the classes at once."""
    names, asked = _names(work.data, work.protocol), prompts.of(work.protocol.prompts, work.data.name)
    if block.kind == "texts":
        model = work.models[block.role]
        classification.embed_piece(model, names, asked, work.protocol, work.classes, block.rows[0])
        return
    classes = {
        role: classification.embed(model, names, asked, work.protocol, work.classes)
        for role, model in work.models.items()
    }
    for role, encoded in work.encode(slice(*block.rows)).items():
        spread = Spread.of(encoded, "image")
        scores = classification.compare(work.models[role], encoded, classes[role], work.protocol)
        work.files.below(role).write(block.name, {"scores": scores, **spread.stored()})


def _names(data: ClassificationData, protocol: Protocol) -> Sequence[str]:
    return data.names or [each.chinese for each in class_names.of(data.named_as or data.name, protocol.class_names)]


def measure(work: Work, role: str) -> Outcome:
    """Measure top-1, top-5 and the mean over classes; see ``wukong.evaluate.tasks.Measure``."""
    data, protocol, files = work.data, work.protocol, work.files.below(role)
    names, labels = _names(data, protocol), torch.from_numpy(data.labels)
    made = [files.read(Block("images", "", rows).name) for rows in cut(len(data), work.sizes.images)]
    Spread.read(made).refuse("image")
    scores = torch.cat([each["scores"] for each in made])
    measured = classification.measured(scores, labels, protocol, data.name, every_class=data.every_class)
    results = {"top1": measured.top1, "mean_per_class": measured.mean_per_class}
    chance = {"top1": 1 / len(names), "mean_per_class": 1 / len(names)}
    if measured.top5 is not None:
        results["top5"], chance["top5"] = measured.top5, 5 / len(names)
    # What a wrong image is taken for; where the right class ties with another, the other.
    wrong = scores.scatter(1, labels[:, None], -torch.inf).argmax(1)
    best = torch.where(measured.right, labels, wrong)
    confusion = torch.bincount(labels * len(names) + best, minlength=len(names) ** 2).view(len(names), -1)
    few = len(names) <= _MOST_CONFUSED
    return Outcome(
        data.name,
        data.title,
        "classification",
        data.split,
        data.digest,
        protocol.name,
        {"images": len(data), "classes": len(names)},
        measured.metric,
        results,
        chance,
        _classes(names, confusion, measured.classes),
        confusion.tolist() if few else (),
        tuple(names) if few else (),
        tuple(
            Classified(data.ids[i], names[int(labels[i])], names[int(best[i])], bool(measured.right[i]))
            for i in examples.chosen(measured.right)
        ),
        answers.of_images(data.ids, data.labels, _by_image(scores, labels, protocol), data.pictures).ordered(
            data.order, sorted(data.ids)
        ),
    )


def _by_image(scores: Tensor, labels: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Return whether each image counts as right, by result."""
    best = classification.right(scores, labels, protocol.classification_ties)
    same = protocol.mean_ties == protocol.classification_ties
    mean = best if same else classification.right(scores, labels, protocol.mean_ties)
    right = {"top1": best[:, 0], "mean_per_class": mean[:, 0]}
    return right | ({"top5": best[:, 1]} if scores.shape[1] >= 5 else {})


def _classes(names: Sequence[str], confusion: Tensor, shares: Sequence[float]) -> tuple[ClassResult, ...]:
    """Return the result of each class that has images."""
    others = confusion.clone()
    others.fill_diagonal_(0)
    most, second = others.max(1)
    return tuple(
        ClassResult(name, count, share, names[other] if times else None)
        for name, count, share, times, other in zip(
            names, confusion.sum(1).tolist(), shares, most.tolist(), second.tolist(), strict=True
        )
        if count
    )
