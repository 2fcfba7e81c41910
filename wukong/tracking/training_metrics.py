"""Metrics of a training, sent to MLflow beside it: training does not wait, and its end waits for seconds.

Metrics that could not be sent are sent with the next ones, or at the end from the manifest.
"""

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from wukong.tracking.availability import enabled, unless_away
from wukong.tracking.mlflow_rest import Metric, Server
from wukong.tracking.mlflow_runs import as_metrics

log = logging.getLogger(__name__)

_JOINED = 50  # sets of metrics that are sent together
_Unsent = tuple[str, list[Metric]]
_unsent: list[_Unsent] = []
"""What this process could not send: the run's ID and its metrics, the oldest first."""


def epoch_metric(stage: str, name: str) -> str:
    """Name of a metric of a training's epochs, whose steps are epochs: ``pretrain/epoch/loss``."""
    return f"{stage}/epoch/{name}"


def keep_metrics(metrics: Mapping[str, float], step: int = 0) -> bool:
    """Keep metrics for ``send_metrics``, which may run in another thread; return whether there is a run to log to.

    It is the run that ``MLFLOW_RUN_ID`` names.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not enabled() or not run_id:
        return False
    _unsent.append((run_id, as_metrics(metrics, step)))
    return True


def send_metrics() -> None:
    """Send all metrics that are kept; if MLflow is away, they stay."""
    unless_away(_send, f"metrics are kept for later, {unsent()} sets so far")


def unsent() -> int:
    """Return how many sets of metrics are kept and not sent."""
    return len(_unsent)


def _send() -> None:
    server = Server()
    while sets := _unsent[:_JOINED]:
        run_id = sets[0][0]
        joined = [values for run, values in sets if run == run_id]
        server.log(run_id, metrics=[value for values in joined for value in values])
        # Only this thread takes sets away, and those that were added meanwhile stand behind these.
        _unsent[: len(sets)] = [entry for entry in sets if entry[0] != run_id]


class MetricSender:
    """Keeps metrics and sends them from a thread of its own, all that have come since the last time together.

    Args:
        stage: name of the stage, for the log.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._sending: Future[None] | None = None

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of a step; they are sent when MLflow has answered to those before.

        Raises:
            MlflowError: MLflow has refused those before.
        """
        if keep_metrics(metrics, step) and (self._sending is None or self._sending.done()):
            if self._sending is not None:
                self._sending.result()
            self._sending = self._thread.submit(send_metrics)

    def finish(self, seconds: float) -> None:
        """Send what MLflow has not got yet, for so many seconds in all, and log what is left out.

        Raises:
            MlflowError: MLflow has refused metrics.
        """
        if self._sending is None:
            return
        until = time.monotonic() + seconds
        try:
            self._sending.result(seconds)
            if unsent():
                self._thread.submit(send_metrics).result(max(until - time.monotonic(), 0))
        except TimeoutError:
            log.warning("MLflow has not taken the last metrics of %s in %g s", self._stage, seconds)
        if left := unsent():
            log.warning(
                "%d sets of metrics of %s are left out; the epochs are sent from its history.json when it has ended",
                left,
                self._stage,
            )

    def close(self) -> None:
        """Give the thread back, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
