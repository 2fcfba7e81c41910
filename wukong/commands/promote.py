"""``wukong promote`` and ``wukong rollback``: move the alias of a registered model."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from wukong.commands.output import JsonOption, echo, print_json
from wukong.config.experiment import Experiment
from wukong.config.registry import Registry
from wukong.errors import ConfigError, StackError
from wukong.registry.aliases import ModelRegistry
from wukong.runtime import environment
from wukong.runtime.cancel import end_on_signal
from wukong.store.manifest import Manifest
from wukong.tracking import availability
from wukong.tracking.mlflow_rest import Server

AliasOption = Annotated[str, typer.Option("--alias", help="The alias that moves.")]
_ALIAS = str(Registry.model_fields["alias"].default)


def promote(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[/VERSION]",
            help="A registered model, also as models:/MODEL/VERSION; without a version its newest one.",
        ),
    ],
    alias: AliasOption = _ALIAS,
    force: Annotated[bool, typer.Option("--force", help="Move the alias without asking the gate.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded. --force needs it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Give the alias to a model if it is better than the one that holds it by more than noise.

    Both must have answered the same queries: a holder that was measured on another test set is evaluated on the model's
    first, which takes as long as an evaluation. Each attempt at one holder makes the test stricter. The decision is a
    page of the model's run in MLflow. The command ends with status 1 if the alias stays where it is. Example:

        wukong promote demo/7
    """
    if force and not reason.strip():
        raise ConfigError("--force needs --reason: it is recorded with the move")
    if reason and not force:
        raise ConfigError("--reason goes with --force; without it the gate's own reasons are recorded")
    name, _, version = model.removeprefix("models:/").partition("/")
    with end_on_signal(), _output_to_stderr():
        decision = _registry(name, alias).promote(version, forced=reason.strip())
    if as_json:
        print_json(decision.as_json())
    else:
        candidate = f"{name}/{decision.candidate}"
        echo(f"{candidate} {'holds' if decision.promoted else 'does not take'} @{alias}. {decision.says}")
        if decision.anew:
            echo(f"{name}/{decision.holder} was evaluated anew for this: {decision.anew.evaluation}")
        if not decision.promoted and decision.holder:
            echo(f"{name}/{decision.holder} keeps it.")
    if not decision.promoted:
        raise typer.Exit(1)


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered model.")],
    alias: AliasOption = _ALIAS,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "",
) -> None:
    """Give the alias back to the version that held it before. Only --force gives it to the one it leaves again.

    The reason is recorded. Example:

        wukong rollback demo --reason "slower than allowed"
    """
    model = model.removeprefix("models:/")
    left, to = _registry(model, alias).rollback(reason.strip())
    echo(f"{model}/{to} holds @{alias} again; {model}/{left} was rolled back.")


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Let what this process and its children print go to standard error: a job's log is no part of the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _registry(model: str, alias: str) -> ModelRegistry:
    environment.use_for("models:/")
    availability.refuse_untracked()
    return ModelRegistry(Server(), model, alias, _evaluate)


def _evaluate(experiment: Experiment, run: str, parents: Sequence[str]) -> Manifest:
    echo("The holder has not answered the model's queries: it is evaluated on them first …", err=True)
    return evaluated(experiment, run, parents)


def _not_evaluated(_experiment: Experiment, _run: str, _parents: Sequence[str]) -> Manifest:
    raise StackError(
        "that needs the platform, and only the library is installed: do it in a checkout of the repository"
    )


evaluated: Callable[[Experiment, str, Sequence[str]], Manifest] = _not_evaluated
"""Evaluates a registered model on another one's test set; the platform does (``ray_jobs.launch.evaluate_champion``)."""
