"""Train both objectives on the demo under many settings, choose the best of each, and compare them over seeds.

    python benchmarks/train/objectives.py prepare            crawl and filter the demo, compute features of both towers
    python benchmarks/train/objectives.py search             train each point of objectives.json
    python benchmarks/train/objectives.py tables             print the results of all, and of those with several seeds
    python benchmarks/train/objectives.py probe              how often a linear classifier names a picture by one patch
    python benchmarks/train/objectives.py causes             recall of the kept token-wise models by other scores
    python benchmarks/train/objectives.py curves             draw recall by temperature and by number of tokens

Every choice is made by the mean recall on `trained-styles`: held-out captions of the styles that are trained on. The
demo's own hold-outs are measured too, and decide nothing. A training is the demo's: pre-training, then fine-tuning, on
stored features, in one process with one thread. Two run at a time (`--processes`). Of a point with a seed, the answers
and the model are kept too. Each result is a file in `--folder`; one that is there is not made again, so that the
command can be killed and started again.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from infra import corpus, stack  # noqa: E402
from infra.stack.state import Stack  # noqa: E402
from wukong.config import documents  # noqa: E402
from wukong.config.experiment import Experiment  # noqa: E402
from wukong.data.tokenizer import Tokenizer  # noqa: E402
from wukong.evaluate import answers, holdouts, paired, tasks  # noqa: E402
from wukong.evaluate.data_set import RetrievalData  # noqa: E402
from wukong.evaluate.model import OwnModel  # noqa: E402
from wukong.evaluate.protocol import OWN  # noqa: E402
from wukong.model.dual import DualEncoder  # noqa: E402
from wukong.model.image_encoder import ImageEncoder  # noqa: E402
from wukong.model.pooling import AreaMeans, shares  # noqa: E402
from wukong.model.saved_model import SavedModel, load_for_features, save  # noqa: E402
from wukong.store import manifest, storage  # noqa: E402
from wukong.store.manifest import Manifest, digest_of  # noqa: E402
from wukong.train import determinism  # noqa: E402
from wukong.train.corpus import Corpus  # noqa: E402
from wukong.train.feature_pairs import FeaturePairs  # noqa: E402
from wukong.train.loop import train  # noqa: E402

CHOICE = "trained-styles"
HELD_OUT = {"name": CHOICE, "title": "Unseen captions: trained styles", "source": "*", "captions": "unseen"}
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "lite0": {},
    # 7 x 7 patches, as many as Lite0's.
    "dinov2-s": {"name": "vit_small_patch14_dinov2", "image_size": 98, "block": None},
}
WHITENED = 16_384  # pairs, as in a training stage

Point = dict[str, Any]
"""What differs from the demo: ``tower``, ``similarity``, ``tokens`` and ``temperature``; if given ``rate``, ``seed``,
``whiten``, ``pooling``, ``pool``, and changes of the sections ``text``, ``model``, ``pretrain`` and ``finetune``."""


def demo_experiment(folder: Path, tower: str) -> Experiment:
    """Return the demo with one more hold-out, the image tower, and its storage in a folder."""
    value = documents.load(REPOSITORY / "configs/demo.yaml").model_dump(mode="json", exclude_unset=True)
    value["storage"] = storage.from_path(folder / "store")
    value["crawl"]["queries"] = storage.from_path(folder / "queries.txt")
    value["filter"]["split"]["holdouts"].append(HELD_OUT)
    value["model"]["image"] |= TOWERS[tower]
    return documents.parse(value)


def prepare(folder: Path) -> None:
    """Crawl, filter, and compute the features of each tower and similarity."""
    import ray

    from ray_jobs import crawl, features
    from ray_jobs import filter as filter_job

    demo = corpus.prepare(progress=False)
    experiment = demo_experiment(folder, "lite0")
    corpus.upload_queries(demo, experiment.crawl.queries)
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with stack.sample_site(Stack(folder / "home", "a", "b", "c", {}), demo.catalogue) as site:
        os.environ["WUKONG_CONNECT_TO"] = site
        crawled = crawl.run(experiment, {})
    filtered = filter_job.run(experiment, {"crawl": crawled})
    made: dict[str, Any] = {"filter": filtered.uri}
    for tower in TOWERS:
        for similarity in ("global", "token"):
            of_tower = demo_experiment(folder, tower)
            of_model = of_tower.model_copy(
                update={"model": of_tower.model.model_copy(update={"similarity": similarity})}
            )
            for pairs in ("train", "holdouts"):
                computed = features.run(of_model, {"filter": filtered}, pairs=pairs)
                made[f"{tower} {similarity} {pairs}"] = computed.uri
    ray.shutdown()
    (folder / "prepared.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


def experiment_of(folder: Path, point: Point) -> Experiment:
    """Return the experiment of a point."""
    base = demo_experiment(folder, point["tower"]).model_dump(mode="json", exclude_unset=True)
    model, temperature = base["model"], point["temperature"]
    model |= {"similarity": point["similarity"], "temperature": temperature, "min_temperature": temperature}
    if point["tokens"] not in (None, 49):
        model["image"] |= {"tokens": point["tokens"], "pooling": point.get("pooling", "areas")}
    model["text"] |= point.get("text", {})
    base["pretrain"]["learning_rate"] = point.get("rate", base["pretrain"]["learning_rate"])
    base["seed"] = point.get("seed", 0)
    for section in ("model", "pretrain", "finetune"):
        base[section] |= point.get(section, {})
    return documents.parse(base)


def trained(experiment: Experiment, point: Point, made: Mapping[str, str], filtered: Manifest) -> SavedModel:
    """Pre-train and fine-tune a model as the demo's stages do, on the features that are stored."""
    tokenizer = Tokenizer.of(experiment.model.text)
    prefix = made[f"{point['tower']} {point['similarity']} train"]
    torch.manual_seed(experiment.seed)
    model: DualEncoder | None = None
    for settings in (experiment.pretrain, experiment.finetune):
        pairs = FeaturePairs(Corpus.of(filtered, settings.sources), tokenizer, prefix, [0])
        if model is None:
            few = pairs.sample(WHITENED)
            model = DualEncoder(experiment.model, tokenizer, feature_width=few.shape[-1])
            if "pool" in point:
                model.image_pooling = POOLS[point["pool"]](point["tokens"], few.float())
            by_picture = point.get("whiten") == "picture"
            pooling, model.image_pooling = model.image_pooling, None if by_picture else model.image_pooling
            model.whiten_image_head(few.float().mean(1) if by_picture else few)
            model.image_pooling = pooling
        train(model, pairs, settings, experiment.seed)
    assert model is not None
    return SavedModel(model.eval(), tokenizer)


class AreasAndWhole(AreaMeans):
    """The means of areas, and as one more token the mean of the whole picture."""

    def __init__(self, count: int, _features: torch.Tensor) -> None:
        super().__init__(count)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens [images, patches, d] to [images, areas + 1, d]."""
        return torch.cat([super().forward(tokens), tokens.mean(1, keepdim=True)], 1)


class AreasOfForeground(AreaMeans):
    """The means of areas over the patches that do not show the ground on which the pictures stand.

    The ground is the mean of the corners of all pictures. A patch whose cosine with it is above 0.6 shows the ground,
    and is left out; an area of the ground alone keeps its mean.

    Args:
        count: number of areas, a square number.
        features: [images, patches, d], of training pairs.
    """

    def __init__(self, count: int, features: torch.Tensor) -> None:
        super().__init__(count)
        side = int(features.shape[1] ** 0.5)
        corners = features[:, [0, side - 1, -side, -1]].flatten(0, 1)
        self.ground = F.normalize(corners.mean(0), dim=0)

    def weights(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the weight of each patch in the mean of its area, [images, patches]."""
        return (F.normalize(tokens, dim=-1) @ self.ground.to(tokens) <= 0.6).to(tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens [images, patches, d] to [images, areas, d]."""
        plain = shares(tokens.shape[1], self.count).to(tokens)
        weighted = plain * self.weights(tokens)[:, None]
        total = weighted.sum(-1, keepdim=True)
        return torch.where(total > 0, weighted / total.clamp(min=1e-6), plain) @ tokens


class AreasByDistance(AreasOfForeground):
    """The means of areas over all patches, each with the weight 1 minus its cosine with the ground, at least 0.05."""

    def weights(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the weight of each patch in the mean of its area, [images, patches]."""
        return (1 - F.normalize(tokens, dim=-1) @ self.ground.to(tokens)).clamp(min=0.05)


POOLS: Mapping[str, Callable[[int, torch.Tensor], AreaMeans]] = {
    "whole": AreasAndWhole,
    "foreground": AreasOfForeground,
    "by distance": AreasByDistance,
}


def result_of(folder: Path, point: Point) -> Path:
    """Return the file of a point's result."""
    return folder / "results" / f"{digest_of(sorted(point.items()))[:16]}.json"


def run(folder: Path, point: Point) -> None:
    """Train and measure a point; write its result, and if it has a seed its answers and its model."""
    file = result_of(folder, point)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    determinism.ask(deterministic=True)
    made = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    filtered, experiment = manifest.load(made["filter"]), experiment_of(folder, point)
    began = time.process_time()
    saved = trained(experiment, point, made, filtered)
    seconds = time.process_time() - began
    model, measured = OwnModel(saved, "model"), {}
    metrics: dict[str, float] = {}
    for name in experiment.held_out_tasks:
        data = holdouts.read(experiment, filtered, name)
        assert data is not None
        stored = holdouts.features(experiment, filtered, made[f"{point['tower']} {point['similarity']} holdouts"], data)
        encoded = torch.cat([model.encode_features(block) for block in stored.split(64)])
        outcome = tasks.measure(model, data, OWN.for_pairs(experiment.evaluate.captions), encoded=encoded)
        metrics |= {f"{name}/{result}": value.value for result, value in outcome.results.items()}
        measured[name] = outcome
    if "seed" in point:
        target = file.with_suffix("")
        target.mkdir(parents=True, exist_ok=True)
        for name, outcome in measured.items():
            assert outcome.answers is not None
            table = answers.table(
                {"model": outcome.answers}, task=name, digest=outcome.digest, protocol=outcome.protocol
            )
            storage.write_table(storage.from_path(target / f"{name}.parquet"), table)
        whole = DualEncoder(experiment.model, saved.tokenizer, ImageEncoder(experiment.model.image), with_weights=False)
        whole.load_trained(saved.model.state_dict())
        save(storage.from_path(target / "model"), whole, saved.tokenizer)
    temperature = 1 / saved.model.scale.item()
    value = {"point": point, "metrics": metrics, "seconds": seconds, "temperature": temperature}
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(storage.from_path(file), value)


def over_seeds(folder: Path) -> None:
    """Print mean and spread over seeds of each setting with several, and the paired difference from the global one."""
    settings: dict[str, list[Path]] = {}
    for value in results(folder):
        if "seed" in value["point"]:
            setting = {key: each for key, each in value["point"].items() if key != "seed"}
            settings.setdefault(json.dumps(setting), []).append(result_of(folder, value["point"]))
    baselines = {json.loads(named)["tower"]: files for named, files in settings.items() if '"global"' in named}
    experiment = demo_experiment(folder, "lite0")
    for named, files in settings.items():
        baseline = baselines[json.loads(named)["tower"]]
        values = [json.loads(file.read_text(encoding="utf-8"))["metrics"] for file in files]
        print(
            f"\n{named}, {len(files)} seeds\n\n| result | mean ± sd | difference, paired 95 % interval |\n|---|---|---|"
        )
        for name in experiment.held_out_tasks:
            scores = [
                _mean_scores([file.with_suffix("") / f"{name}.parquet" for file in of]) for of in (baseline, files)
            ]
            (difference,) = paired.differences(scores[0], [scores[1]])
            for result, interval in difference.items():
                each = [metrics[f"{name}/{result}"] for metrics in values]
                mean = f"{statistics.fmean(each):.3f} ± {statistics.stdev(each):.3f}"
                change = f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
                print(f"| {name} {result} | {mean} | {change} |")


def _mean_scores(files: Sequence[Path]) -> answers.Scores:
    """Return the mean of the answers of several models to the same queries."""
    each = [answers.read(storage.read_table(storage.from_path(file)), "model").scores() for file in files]
    return replace(each[0], sums=np.mean([scores.sums for scores in each], 0))


def probe(folder: Path, tower: str) -> None:
    """Print how often a linear classifier finds a picture's name, from all of it, from areas, and from one patch.

    The classifier is a ridge regression on the names that occur in training and in the hold-out. Chance is one over
    their number.
    """
    made = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    filtered, experiment = manifest.load(made["filter"]), demo_experiment(folder, tower)
    whole = Corpus.of(filtered)
    captions = [text for shard in range(len(whole.names)) for text in whole.pairs(shard)["caption"].to_pylist()]
    trained_on = FeaturePairs(whole, Tokenizer.of(experiment.model.text), made[f"{tower} token train"], [0])
    features = trained_on.sample(len(captions)).float()
    print(f"\n{tower}\n\n| hold-out | from | names | one token | all tokens vote | any token |")
    print("|---|---|---|---|---|---|")
    for name in ("fluent-style", "tuxpaint-captions"):
        data = holdouts.read(experiment, filtered, name)
        assert isinstance(data, RetrievalData)
        right = {i: caption.text for caption in data.captions for i in caption.images if caption.text in set(captions)}
        if not right:
            continue
        names = sorted(set(right.values()))
        seen = holdouts.features(experiment, filtered, made[f"{tower} token holdouts"], data)[list(right)].float()
        wanted = torch.tensor([names.index(text) for text in right.values()])
        one_hot = torch.tensor([[float(text == each) for each in names] for text in captions])
        for areas in (1, 4, 9, 49):
            weights = shares(features.shape[1], areas)
            scores = _classified(weights @ features, one_hot, weights @ seen)
            found = scores.argmax(-1) == wanted[:, None]
            vote = (scores.mean(1).argmax(-1) == wanted).float().mean()
            shares_right = (found.float().mean(), vote, found.any(1).float().mean())
            cells = " | ".join(f"{share:.3f}" for share in shares_right)
            print(f"| {name} | {areas} areas | {len(names)} | {cells} |", flush=True)


def _classified(features: torch.Tensor, one_hot: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Fit a ridge regression of names on tokens; return scores of seen tokens, [pictures, tokens, names]."""
    flat = features.flatten(0, 1)
    mean, deviation = flat.mean(0), flat.std(0) + 1e-3
    flat, seen = (flat - mean) / deviation, (seen - mean) / deviation
    targets = one_hot.repeat_interleave(features.shape[1], 0)
    gram = flat.T @ flat + 0.1 * len(flat) * torch.eye(flat.shape[1])
    scores: torch.Tensor = seen @ torch.linalg.solve(gram, flat.T @ (targets - targets.mean(0)))
    return scores


def causes(folder: Path) -> None:
    """Print text-to-image R@1 of each kept token-wise model, if tokens are compared in other ways than in training.

    So it shows what costs recall: that each word takes its best token (s^T), that patches are apart, or [SEP].
    """
    made = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    filtered = manifest.load(made["filter"])
    ways = ("s^T", "s^I", "their mean", "s^T to the mean of all patches", "s^T without [SEP]")
    print(f"\n| tower | tokens | seed | hold-out | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 4)}")
    points = [value["point"] for value in results(folder)]
    for point in sorted(points, key=lambda each: (each["tower"], each["tokens"] or 0, each.get("seed", 0))):
        place = result_of(folder, point).with_suffix("") / "model"
        if point["similarity"] != "token" or not place.is_dir():
            continue
        saved = load_for_features(storage.from_path(place))
        for name in (CHOICE, "fluent-style"):
            data = holdouts.read(experiment_of(folder, point), filtered, name)
            assert isinstance(data, RetrievalData)
            stored = holdouts.features(
                experiment_of(folder, point), filtered, made[f"{point['tower']} token holdouts"], data
            )
            cells = [f"{share:.3f}" for share in _in_other_ways(saved, stored.float(), data)]
            about = f"{point['tower']} | {point['tokens']} | {point.get('seed', 0)} | {name}"
            print(f"| {about} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def _in_other_ways(saved: SavedModel, features: torch.Tensor, data: RetrievalData) -> list[float]:
    """Return text-to-image R@1 by each way of ``causes``."""
    model, captions = saved.model, [caption for caption in data.captions if caption.images]
    ids = saved.tokenizer([caption.text for caption in captions])
    text = model.embed_text(ids)
    apart = model.embed_features(features)
    together = model._unit(model.image_head(features.mean(1, keepdim=True)))
    found: list[list[torch.Tensor]] = []
    for words, counted, own in zip(text.vectors, text.counted, ids, strict=True):
        matches = torch.einsum("ikd,wd->ikw", apart, words[counted])
        by_word, by_token = matches.amax(1).mean(-1), matches.amax(2).mean(-1)
        of_mean = torch.einsum("id,wd->iw", together[:, 0], words[counted]).mean(-1)
        no_sep = torch.einsum("ikd,wd->ikw", apart, words[counted & (own != saved.tokenizer.sep)])
        found.append([by_word, by_token, by_word + by_token, of_mean, no_sep.amax(1).mean(-1)])
    return [
        statistics.fmean(int(scores.argmax()) in caption.images for scores, caption in zip(each, captions, strict=True))
        for each in zip(*found, strict=True)
    ]


def curves(folder: Path, file: Path) -> None:
    """Draw the mean recall of the points that differ in temperature or number of tokens alone, on all hold-outs."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = {"trained-styles": "unseen captions, trained styles", "fluent-style": "unseen style",
             "fluent-concept": "unseen style and concept", "tuxpaint-captions": "unseen captions, stamps"}  # fmt: skip
    plain = {"tower", "similarity", "tokens", "temperature", "rate"}
    known = [value for value in results(folder) if set(value["point"]) <= plain and value["point"]["tower"] == "lite0"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for colour, (name, title) in zip(colours, names.items(), strict=False):
        for similarity, style in (("global", "--o"), ("token", "-o")):
            points = sorted(
                (value["point"]["temperature"], value["metrics"][f"{name}/mean_recall"])
                for value in known
                if value["point"]["similarity"] == similarity
                and value["point"]["tokens"] in (None, 4)
                and (similarity == "global") == ("rate" not in value["point"])
            )
            label = title if similarity == "token" else None
            axes[0].plot(*zip(*points, strict=True), style, color=colour, label=label)
        by_tokens = sorted(
            (value["point"]["tokens"], value["metrics"][f"{name}/mean_recall"])
            for value in known
            if value["point"]["similarity"] == "token" and value["point"]["temperature"] == 0.08
        )
        axes[1].plot(*zip(*by_tokens, strict=True), "-o", color=colour)
    axes[0].set(xlabel="temperature", ylabel="mean recall", title="global (dashed), token-wise with 4 tokens")
    axes[1].set(xlabel="tokens of an image", xscale="log", title="token-wise, temperature 0.08")
    axes[1].set_xticks([1, 4, 9, 16, 49], ["1", "4", "9", "16", "49"])
    figure.legend(loc="lower center", ncols=4, fontsize="small")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=110)
    print(file)


def run_all(folder: Path, points: Sequence[Point], processes: int) -> None:
    """Run the points that have no result yet."""
    left = [point for point in points if not result_of(folder, point).exists()]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = {pool.submit(run, folder, point): point for point in left}
        for number, (future, point) in enumerate(asked.items(), 1):
            future.result()
            value = json.loads(result_of(folder, point).read_text(encoding="utf-8"))
            print(f"{number} of {len(left)}: {_line(value)}", flush=True)


def results(folder: Path) -> list[dict[str, Any]]:
    """Read all results."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "results").glob("*.json"))]


def _line(value: Mapping[str, Any]) -> str:
    metrics, point = value["metrics"], value["point"]
    recalls = ("trained-styles", "fluent-style", "fluent-concept", "tuxpaint-captions")
    shown = " ".join(f"{metrics[f'{name}/mean_recall']:.3f}" for name in recalls)
    shown += f" R@1 {metrics['fluent-style/text_to_image_r1']:.3f}"
    shown += "".join(f" {metrics[name]:.3f}" for name in metrics if name.endswith("top1"))
    return f"{shown} {value['seconds']:.0f}s T {value['temperature']:.3f} {json.dumps(point)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("prepare", "search", "tables", "probe", "causes", "curves"))
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "objectives")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--points", type=Path, default=Path(__file__).with_suffix(".json"), help="JSON: what is trained"
    )
    options = parser.parse_args()
    if options.part == "prepare":
        options.folder.mkdir(parents=True, exist_ok=True)
        prepare(options.folder)
    elif options.part == "search":
        run_all(options.folder, json.loads(options.points.read_text(encoding="utf-8")), options.processes)
    elif options.part == "tables":
        for value in sorted(results(options.folder), key=lambda value: -value["metrics"][f"{CHOICE}/mean_recall"]):
            print(_line(value))
        over_seeds(options.folder)
    elif options.part == "probe":
        for tower in TOWERS:
            probe(options.folder, tower)
    elif options.part == "causes":
        causes(options.folder)
    else:
        curves(options.folder, options.folder / "objectives.png")


if __name__ == "__main__":
    main()
