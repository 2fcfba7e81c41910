"""Sends the metrics of a training to MLflow beside it: training does not wait, and its end waits for seconds."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from wukong import tracking

log = logging.getLogger(__name__)


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
        if tracking.keep_metrics(metrics, step) and (self._sending is None or self._sending.done()):
            if self._sending is not None:
                self._sending.result()
            self._sending = self._thread.submit(tracking.send_metrics)

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
            if tracking.unsent():
                self._thread.submit(tracking.send_metrics).result(max(until - time.monotonic(), 0))
        except TimeoutError:
            log.warning("MLflow has not taken the last metrics of %s in %g s", self._stage, seconds)
        if left := tracking.unsent():
            log.warning(
                "%d sets of metrics of %s are left out; the epochs are sent from its history.json when it has ended",
                left,
                self._stage,
            )

    def close(self) -> None:
        """Give the thread back, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
