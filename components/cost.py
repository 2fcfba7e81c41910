"""Store and log what a run and its stages have cost, as far as it is known. What cannot be known stops nothing."""

import logging
from typing import Any

from pydantic import ValidationError

from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.report import costs as report_costs
from wukong.runs import run_costs
from wukong.runs.run_costs import StageCost
from wukong.stages import prices, run_paths
from wukong.stages.prices import Prices
from wukong.store import storage
from wukong.tracking import mlflow_runs, stage_results

log = logging.getLogger(__name__)


def note_stage(experiment: Experiment, run: str, stage: str, run_id: str | None) -> None:
    """Store what a run has cost so far, and log what a stage of it has.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        stage: the stage that has ended.
        run_id: ID of the stage's run in MLflow; None if it is not tracked.
    """
    try:
        costs, price = _stored(experiment, run)
        for each in costs:
            if each.stage == stage:
                said, numbers = " ".join(report_costs.said([each], price)), run_costs.numbers(each, price)
                stage_results.log_cost(run_id, stage, said, numbers)
    except (WukongError, ValidationError) as error:
        log.warning("what the stage %s has cost is left out: %s", stage, error)


def note_run(experiment: Experiment, run: str) -> dict[str, Any]:
    """Store and log what a run has cost, and return what its report shows; empty if that cannot be found out."""
    try:
        costs, price = _stored(experiment, run)
        if costs:
            numbers = run_costs.numbers(run_costs.total(costs), price)
            mlflow_runs.log_cost(experiment, run, " ".join(report_costs.said(costs, price)), numbers)
        return report_costs.shown(costs, price)
    except (WukongError, ValidationError) as error:
        log.warning("what the run %s has cost is left out: %s", run, error)
        return {}


def _stored(experiment: Experiment, run: str) -> tuple[list[StageCost], Prices]:
    """Find what a run has cost, and store it beside the run's records."""
    costs, price = run_costs.of_run(experiment, run), prices.of_environment()
    storage.write_json(run_paths.uri_of(experiment, run, run_costs.FILE), run_costs.document(costs, price))
    return costs, price
