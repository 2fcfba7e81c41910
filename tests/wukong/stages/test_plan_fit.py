"""What is said of a plan: where it does not fit what it runs on, and where it is slow."""

from dataclasses import replace

import pytest

from wukong.config.experiment import Experiment
from wukong.model.cost import Shape, Size
from wukong.stages import fit, measured_rates
from wukong.stages.capacity import Capacity, Pods
from wukong.stages.estimate import Work

GIB = 2**30
ROOMY = Pods(workers=4, cores=12, gpus=1, memory=64 * GIB, shared_memory=16 * GIB, disk=64 * GIB)


def work(capacity: Capacity | None = None, training: dict[str, object] | None = None, **more: object) -> Work:
    pretrain = {"epochs": 2, "batch_size": 1_024, "workers": 4, "gpus_per_worker": 1, "store_features": False}
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "storage": "s3://wukong",
            "crawl": {"queries": "s3://wukong/queries.txt", "endpoint": "http://nowhere.test/"},
            "validation": {"min_pairs": 1},
            "pretrain": pretrain | (training or {}),
            "finetune": {"epochs": 0},
            **more,
        }
    )
    given = capacity or Capacity(4, {"pretrain": ROOMY, "crawl": ROOMY, "filter": ROOMY})
    size = Size(weights=100_000_000, image=60_000_000, tower_flops=9e9, shape=Shape(1, 768))
    return Work(experiment, 3_000_000, 2_000_000, size, given, measured_rates.load())


def problems(asked: Work) -> list[str]:
    return list(fit.problems(asked, fit.estimates(asked)))


def notes(asked: Work) -> list[str]:
    return list(fit.notes(asked, fit.estimates(asked)))


def test_what_fits_is_no_problem() -> None:
    assert problems(work()) == []


@pytest.mark.parametrize(
    ("pods", "training", "said"),
    [
        (
            {"shared_memory": 200 * 2**20},
            {"loader_workers": 4},  # (2 x 4 + 2) batches of 256 pictures of 3 x 224 x 224 bytes
            "loaders of a worker of pretrain hand over 385.4 MB and there are 209.7 MB of shared memory: lower "
            "loader_workers or batch_size, or enlarge stages.pretrain.shared_memory of the ConfigMap ray-job",
        ),
        (
            {"disk": GIB // 4},  # 12 bytes of each of 40 million weights
            {},
            "a checkpoint of pretrain takes 480.0 MB and a worker has 268.4 MB for temporary files: enlarge the volume "
            "tmp in template.yaml of the ConfigMap ray-job",
        ),
        (
            {"memory": GIB},  # what Ray's worker takes, and 16 bytes of each weight that is trained
            {},
            "a task of pretrain needs ",
        ),
        (
            {"memory": GIB // 2},
            {},
            "pretrain: a model of 100,000,000 weights is not read in a pod with 536.9 MB of memory",
        ),
        (
            {"cores": 3},
            {"loader_workers": 4},
            "pretrain.loader_workers: 4 processes decode in a pod with 3 cores for each worker: at most 3 are",
        ),
    ],
)
def test_a_pod_that_is_too_small_is_named(pods: dict[str, int], training: dict[str, object], said: str) -> None:
    image = {"model": {"embedding": 256, "image": {"image_size": 224, "weights": "random"}}}
    found = problems(work(Capacity(4, {"pretrain": replace(ROOMY, **pods)}), training, **image))
    assert [each for each in found if each.startswith(said)], found
    assert problems(work(Capacity(4, {"pretrain": ROOMY}), training, **image)) == []


def test_the_disk_of_a_pod_that_crawls_is_compared_with_a_part() -> None:
    """A part of 100,000 pictures of 30 KB lies on the disk, and the tar that is made of it."""
    crawl = {"queries": "s3://wukong/q.txt", "endpoint": "http://nowhere.test/", "part_size": 100_000}
    (said,) = problems(work(Capacity(4, {"crawl": replace(ROOMY, disk=5 * 10**9)}), crawl=crawl))
    assert said.startswith("what a task of crawl makes takes 6.0 GB and a worker has 5.0 GB for temporary files")


def test_sets_without_a_reader_are_named() -> None:
    evaluate = {"tasks": ["imagenet", "image-net"], "sets": "s3://wukong/sets"}
    validated = {"validation": {"every_steps": 1, "tasks": ["held", "coco"]}}
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "held", "source": "*", "captions": "unseen"}]}
    marked = {"split": split, "decontaminate": {"sets": ["cifar10", "cifar", "held"], "action": "mark"}}
    said = [*fit.unknown_sets(work(training=validated, evaluate=evaluate, filter=marked).experiment)]
    assert [each.partition("; there are ")[0] for each in said] == [
        "evaluate.tasks: there is no evaluation set 'image-net'",
        "filter.decontaminate.sets: there is no evaluation set 'cifar'",
        "pretrain.validation.tasks: there is no evaluation set 'coco'",
    ]
    assert "; there are held, aic-icc, aircraft" in said[1] and "; there are aic-icc" in said[0]
    facts = [*fit.facts(asked := work(evaluate=evaluate), fit.estimates(asked))]
    assert "2 published sets are measured, of 50,000 pictures and about 6.2 GB, at s3://wukong/sets." in facts


def test_a_store_that_is_asked_for_more_than_it_gives_is_said() -> None:
    asked = work()
    (pretrain,) = [each.asks for name, each in fit.estimates(asked).items() if name == "pretrain"]
    said = "pretrain: its workers ask the store for "
    assert [note for note in notes(asked) if note.startswith(said)] == [] and 0 < pretrain < 1.25e9
    (note,) = [note for note in notes(replace(asked, told={"store": pretrain / 2e9})) if note.startswith(said)]
    assert "is what it gives: take a store of more servers" in note
    assert not [note for note in notes(replace(asked, told={"store": 1.01e-9 * pretrain})) if note.startswith(said)]
    fast = replace(asked, told={"gpu": 1e6, "decode": 1e6, "augment": 1e6})
    (note,) = [note for note in notes(fast) if note.startswith(said)]
    assert "and 1.2 GB/s is what it is assumed to give" in note


def test_a_network_that_is_slower_than_the_step_is_said() -> None:
    said = "pretrain: to exchange what a step needs takes longer"
    assert not [note for note in notes(work()) if note.startswith(said)]
    assert [note for note in notes(replace(work(), told={"network": 1e-3})) if note.startswith(said)]


def test_the_exchange_of_a_step_is_a_fact() -> None:
    """40 million weights of 4 bytes; 256 pictures and texts of a worker, of 512 numbers of 4 bytes, to and fro."""
    model = {"embedding": 512, "image": {"image_size": 224, "weights": "random"}}
    asked = work(model=model)
    (said,) = [fact for fact in fit.facts(asked, fit.estimates(asked)) if fact.startswith("In a step of pretrain")]
    vectors = 2 * 256 * 512 * 4
    assert "160.0 MB of gradients" in said and f"{5 * vectors / 1e6:.1f} MB of vectors" in said
    sent = (3 * vectors + 0.75 * (2 * 160e6 + 4 * vectors)) / 1e6
    assert f"it sends {sent:.1f} MB, in 0.0197 s at 12.5 GB/s between nodes" in said
