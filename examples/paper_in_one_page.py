"""The paper on one page: from a list of Chinese words to an evaluated vision-language model, section by section.

``paper_in_one_page.py VOCABULARY TEXT [EXPERIMENT.yaml [KEY=VALUE ...]]``: VOCABULARY is the URI of word vectors or of
a list of words, TEXT that of news in which they are counted. ``PAPER`` is what the paper did; another experiment makes
the same steps smaller. ``launch`` runs a step as a Ray job: on Kubernetes (``WUKONG_CLUSTER``), on a Ray cluster
(``RAY_ADDRESS``) or on this machine. A step that has finished is found by its manifest, and not run again.
"""

import sys
from pathlib import Path

import wukong
from ray_jobs.launch import launch
from wukong.config import documents
from wukong.config.crawl import Crawl
from wukong.config.decontaminate import Decontaminate
from wukong.config.evaluate import Evaluate
from wukong.config.experiment import Experiment
from wukong.config.filter import Filter
from wukong.config.model import Model
from wukong.config.registry import Registry
from wukong.config.split import Holdout, Split
from wukong.config.training import Training, Validating
from wukong.config.validation import Validation
from wukong.crawl import queries
from wukong.evaluate import alignment, holdouts, paper
from wukong.report.funnel import funnel
from wukong.stages import preflight_model
from wukong.store import storage

INPUTS, SETS = "s3://wukong/inputs", (*paper.TABLE_5, *paper.TABLE_7)
IMAGE = {"view": "crop", "weights": f"{INPUTS}/weights/vit_large_patch14_clip_quickgelu_224.openai.safetensors"}
TRAINING = Training(
    optimizer="lamb", epsilon=0.01, epochs=20,  # table 4
    lock="all", exclude_same_captions=False,  # section 4.4: the image tower is not trained (LiT); 4.3
    augmentations=("crop", "flip", "autoaugment"),  # section 5.1
    workers=40, gpus_per_worker=1, loader_workers=10,  # section 5.1; the rest is not in the paper
    batch_size=10_240, precision="bfloat16", deterministic=False, store_features=False, learning_rate=0.003,
    validation=Validating(  # section 5.1: zero-shot ImageNet chooses the model
        tasks=("imagenet",), metric="classification/imagenet/top1", keep="best", every_steps=9_766
    ),
)  # fmt: skip
PAPER = Experiment(
    name="paper", crawl=Crawl(  # section 3: the 200,000 most frequent words, 1,000 pictures each
        engine="baidu", endpoint="https://image.baidu.com/search/acjson", queries=f"{INPUTS}/queries.txt",
        max_queries=200_000, max_results_per_query=1_000,
    ),
    filter=Filter(
        min_side=201, max_aspect_ratio=3.0,  # section 3.1: sides of more than 200 pixels, none three times the other
        max_length=31, max_caption_count=10,  # section 3.2: Chinese captions below 32 characters, ten times each
        mask_names=True, decontaminate=Decontaminate(sets=SETS, action="mark"),  # section 3.2: <人名>; not in the paper
        split=Split(held_out_captions=0.0001, holdouts=(  # not in the paper
            Holdout(name="held-out", title="Held-out captions of the crawl", source="*", captions="unseen"),
        )),
    ),
    validation=Validation(min_pairs=50_000_000), registry=Registry(model_name="paper-vit-l"),
    # section 4: figure 1, the towers of table 3, the token-wise similarity of section 4.3
    model=Model.model_validate({"architecture": "vit-l-14", "image": IMAGE, "temperature": 0.07}),
    pretrain=TRAINING, finetune=Training(epochs=0),  # table 7 is trained further on each set's own pairs
    # section 5: 17 sets for classification, five for retrieval (docs/evaluation-sets.md)
    evaluate=Evaluate(tasks=SETS, protocol="paper", sets=f"{INPUTS}/evaluation-sets"),
)  # fmt: skip


def main(vocabulary: str, text: str, file: str = "", *overrides: str) -> None:
    """Do what the paper did, and print what came of it."""
    experiment, run = documents.load(Path(file), [*overrides]) if file else PAPER, "paper-in-one-page"

    # 3: rank the words by their frequency, search for each one, download what is found
    ranked = queries.build(vocabulary, [text], limit=experiment.crawl.max_queries)
    storage.write_bytes(experiment.crawl.queries, "".join(f"{word}\n" for word, _ in ranked).encode())
    crawled = launch("crawl", experiment, run, [])
    # 3.1, 3.2: apply the rules (one file each in wukong/curate/rules), mask names, hold captions out
    filtered = launch("filter", experiment, run, [crawled.uri])
    for step in funnel(crawled, filtered):
        sys.stdout.write(f"{step.title}: {step.rows}\n")
    # the gate: what follows gets no set that breaks an expectation (wukong/validate)
    validated = launch("validate", experiment, run, [filtered.uri])
    # 4: check that the dual encoder (wukong/model/dual.py) can be built
    size = preflight_model.check_model(experiment)
    sys.stdout.write(f"weights: {size.weights}\nweights of the locked image tower: {size.image}\n")
    # 4.4, 5.1: train the text tower against the locked image tower; fine-tune, where epochs are asked for
    pretrained = launch("pretrain", experiment, run, [filtered.uri, validated.uri])
    finetuned = launch("finetune", experiment, run, [filtered.uri, pretrained.uri])
    # 5.2, 5.3: measure the models, zero-shot classification and retrieval
    evaluated = launch("evaluate", experiment, run, [filtered.uri, pretrained.uri, finetuned.uri])
    for name, value in evaluated.metrics.items():
        sys.stdout.write(f"{name}: {value:.4f}\n")
    # 5.4: which word of its caption each patch of a held-out picture matches best
    pairs = holdouts.read(experiment, filtered, experiment.filter.split.holdouts[0].name)
    caption = pairs.captions[0]
    aligned = alignment.align(
        wukong.load(storage.join(finetuned.uri, "model")), pairs.image(caption.images[0]), caption.text
    )
    for number, token in enumerate(aligned.tokens):
        sys.stdout.write(f"{token}: {int((aligned.best == number).sum())} patches\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
