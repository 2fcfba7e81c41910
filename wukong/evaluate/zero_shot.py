"""The evaluator of zero-shot classification (section 5.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wukong.evaluate import answers, class_names, classification, examples, prompts
from wukong.evaluate.blocks import Block, Sizes, Work, cut
from wukong.evaluate.classification import Judged
from wukong.evaluate.data_set import ClassificationData
from wukong.evaluate.model import Spread
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import Classified, ClassResult, Outcome

DATA = ClassificationData
_MOST_CONFUSED = 50  # classes of a set whose confusions are kept


def blocks(data: ClassificationData, protocol: Protocol, roles: Sequence[str], sizes: Sizes) -> list[list[Block]]:
    """Divide the work; see ``wukong.evaluate.tasks.blocks``."""
    classes = len(_names(data, protocol))
    ranges = cut(classes, classification.PIECE_CLASSES)
    texts = [Block("texts", role, rows) for role in roles for rows in ranges]
    return [texts, _compared(data, classes, sizes)]


def make(work: Work, block: Block) -> None:
    """Make a block's files; see ``wukong.evaluate.tasks.make``. Images are encoded and compared with the classes."""
    names, asked = _names(work.data, work.protocol), prompts.of(work.protocol.prompts, work.data.name)
    if block.kind == "texts":
        model = work.models[block.role]
        classification.embed_piece(model, names, asked, work.protocol, work.classes, block.rows[0])
        return
    classes = {
        role: classification.embed(model, names, asked, work.protocol, work.classes)
        for role, model in work.models.items()
    }
    labels = torch.from_numpy(work.data.labels)[slice(*block.columns)]
    for role, encoded in work.encode(slice(*block.columns)).items():
        spread = Spread.of(encoded, "image")
        scores = classification.compare(work.models[role], encoded, classes[role], work.protocol)
        judged = classification.judged(scores, labels, work.protocol, work.data.name)
        work.files.below(role).write(block.name, {**judged._asdict(), **spread.stored()})


def _compared(data: ClassificationData, classes: int, sizes: Sizes) -> list[Block]:
    """Return the blocks that compare images with all classes."""
    return [Block("scores", "", (0, classes), images) for images in cut(len(data), sizes.images)]


def _names(data: ClassificationData, protocol: Protocol) -> Sequence[str]:
    return data.names or [each.chinese for each in class_names.of(data.named_as or data.name, protocol.class_names)]


def measure(work: Work, role: str) -> Outcome:
    """Measure top-1, top-5 and the mean over classes; see ``wukong.evaluate.tasks.Measure``."""
    data, protocol, files = work.data, work.protocol, work.files.below(role)
    names = _names(data, protocol)
    made = [files.read(block.name) for block in _compared(data, len(names), work.sizes)]
    Spread.read(made).refuse("image")
    judged = Judged(*(torch.cat([each[field] for each in made]) for field in Judged._fields))
    measured = classification.measured(judged, len(names), protocol, data.name, every_class=data.every_class)
    labels, best, right = judged.labels, judged.best, judged.right
    by_image = {"top1": right[:, 0], "mean_per_class": judged.mean}
    results = {"top1": measured.top1, "mean_per_class": measured.mean_per_class}
    chance = {"top1": 1 / len(names), "mean_per_class": 1 / len(names)}
    if measured.top5 is not None:
        results["top5"], chance["top5"], by_image["top5"] = measured.top5, 5 / len(names), right[:, 1]
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
            Classified(data.ids[i], names[int(labels[i])], names[int(best[i])], bool(right[i, 0]))
            for i in examples.chosen(right[:, 0])
        ),
        answers.of_images(data.ids, data.labels, by_image, data.pictures).ordered(data.order, sorted(data.ids)),
    )


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
