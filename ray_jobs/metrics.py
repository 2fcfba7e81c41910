"""What jobs tell Prometheus: counters and gauges that each Ray node gives out at its metrics port.

Ray puts ``ray_`` before a name and ``_total`` behind that of a counter: ``ray_wukong_crawl_urls_total``
is what Prometheus reads of ``wukong_crawl_urls``. The names are stable: the dashboard and the alerts use them, and
``docs/monitoring.md`` lists them. A series ends some time after the process that made it.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ray
import ray.util.metrics

if TYPE_CHECKING:
    from wukong.train.looks import Look  # the images that crawl and filter have no torch


class Metric(NamedTuple):
    """A metric: its kind, what it tells, and its labels."""

    kind: Literal["counter", "gauge"]
    about: str
    labels: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "wukong_crawl_urls": Metric("counter", "URLs that are done, by their status", ("status",)),
    "wukong_crawl_bytes": Metric("counter", "bytes of the parts that are written"),
    "wukong_crawl_queue": Metric("gauge", "URLs that are planned and not done"),
    "wukong_filter_rows": Metric("counter", "pairs that the rules have judged"),
    "wukong_filter_dropped": Metric("counter", "pairs that were left out, by the rule", ("rule",)),
    "wukong_training_step": Metric("gauge", "steps taken so far", ("stage",)),
    "wukong_training_loss": Metric("gauge", "mean loss of the steps since the last look", ("stage",)),
    "wukong_training_samples_per_second": Metric("gauge", "pairs a second, of all workers together", ("stage",)),
    "wukong_training_waiting_share": Metric("gauge", "share of the time that training waited for data", ("stage",)),
    "wukong_training_checkpoint_seconds": Metric("gauge", "seconds for which checkpoints stopped training", ("stage",)),
    "wukong_training_gradient_norm": Metric("gauge", "norm of the last step's gradient", ("stage",)),
    "wukong_training_workers": Metric("gauge", "workers that train together", ("stage",)),
    "wukong_training_workers_wanted": Metric("gauge", "workers that the experiment asks for", ("stage",)),
    "wukong_evaluate_tasks": Metric("gauge", "evaluation tasks, done and in all", ("state",)),
}

_OF_LOOK = ("step", "loss", "samples_per_second", "waiting_share", "checkpoint_seconds", "gradient_norm")


def add(name: str, amount: float, **labels: str) -> None:
    """Add to a counter. Without a Ray, or for an amount of 0, this does nothing.

    Args:
        name: one of ``METRICS``.
        amount: at least 0.
        labels: a value for each of the metric's labels.

    Raises:
        KeyError: there is no such metric.
    """
    metric = METRICS[name]
    if ray.is_initialized() and amount:
        _made(name, metric).inc(amount, tags=labels)


def show(name: str, value: float, **labels: str) -> None:
    """Set a gauge. Without a Ray this does nothing.

    Args:
        name: one of ``METRICS``.
        value: the value now.
        labels: a value for each of the metric's labels.

    Raises:
        KeyError: there is no such metric.
    """
    metric = METRICS[name]
    if ray.is_initialized():
        _made(name, metric).set(value, tags=labels)


def show_look(stage: str, look: "Look", workers: int, wanted: int) -> None:
    """Set the gauges of a training.

    Args:
        stage: the training stage.
        look: what was measured.
        workers: number of workers that train.
        wanted: number of workers that the experiment asks for.
    """
    for field in _OF_LOOK:
        show(f"wukong_training_{field}", float(getattr(look, field)), stage=stage)
    show("wukong_training_workers", workers, stage=stage)
    show("wukong_training_workers_wanted", wanted, stage=stage)


@cache
def _made(name: str, metric: Metric) -> Any:
    kind = ray.util.metrics.Counter if metric.kind == "counter" else ray.util.metrics.Gauge
    return kind(name, description=metric.about, tag_keys=metric.labels)
