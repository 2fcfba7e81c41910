"""``wukong models``: the registered models, their versions and who holds an alias."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from wukong.commands.output import Console, JsonOption, Table, echo, print_json, wide
from wukong.errors import ConfigError
from wukong.registry.aliases import DECISION
from wukong.runtime import environment
from wukong.runtime.language import _, restored, translated
from wukong.tracking import availability, tags
from wukong.tracking.mlflow_rest import MlflowError, Server

_READERS = 8


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        model: ``models:/NAME/VERSION``.
        aliases: the aliases that it holds.
        run: name of the pipeline run that made it; empty if MLflow does not know.
        metric: the metric that decides about it.
        value: its value of this metric; None if it is not known.
        registered: when, in ISO 8601.
        decided: what the gate said, a sentence; empty if it was not asked.
    """

    model: str
    aliases: tuple[str, ...]
    run: str
    metric: str
    value: float | None
    registered: str
    decided: str


def models(
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A registered model; by default all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered models: each version, who holds which alias, the run, and what was decided, the newest first.

    `wukong show models:/NAME/VERSION` says more about one. Example:

        wukong models demo
    """
    environment.use_for("models:/")
    availability.refuse_untracked()
    listed = versions(Server(), name.removeprefix("models:/") if name else None)
    if as_json:
        print_json([asdict(each) for each in listed])
        return
    if not listed:
        echo("No model is registered yet: a run registers one at its end.")
        return
    table = Table(box=None, pad_edge=False)
    for column in (_("model"), _("aliases"), _("run"), _("registered")):
        table.add_column(column, no_wrap=True)
    table.add_column(_("value"), justify="right")
    table.add_column(_("decided"), no_wrap=True)
    for each in listed:
        held = " ".join(f"@{alias}" for alias in each.aliases)
        value = "" if each.value is None else f"{each.value:.3f}"
        when = datetime.fromisoformat(each.registered).astimezone()
        said = translated(each.decided)
        sentence, stop, _rest = said.partition(". " if said == each.decided else "。")
        table.add_row(each.model, held, each.run, f"{when:%Y-%m-%d %H:%M}", value, f"{sentence}{stop.strip()}")
    console = Console()
    wide(console).print(table, crop=False)
    metrics = sorted({each.metric for each in listed if each.metric})
    if metrics:
        console.print(f"value: {', '.join(metrics)}", style="dim", highlight=False, soft_wrap=True)


def versions(server: Server, name: str | None = None) -> list[Version]:
    """Return the versions of registered models, the newest first.

    Args:
        server: MLflow's.
        name: of one model; None for all.

    Raises:
        ConfigError: there is no such model.
        MlflowError: MLflow answers with an error.
    """
    if name is not None and set(name) & set("'\"\\"):
        raise ConfigError(f"model {name!r}: a model's name has no quotes; `wukong models` lists all")
    holders: dict[tuple[str, str], list[str]] = {}
    for each in server.registered("registered-models", name or ""):
        for entry in each.get("aliases", ()):
            holders.setdefault((each["name"], str(entry["version"])), []).append(entry["alias"])
    found = server.registered("model-versions", name or "")
    if name and not found:
        raise ConfigError(f"MLflow at {server.address} has no model {name!r}; `wukong models` lists all")
    with ThreadPoolExecutor(_READERS) as pool:
        runs = list(pool.map(lambda each: _run_of(server, each.get("run_id", "")), found))
    listed = [
        _version(each, sorted(holders.get((each["name"], str(each["version"])), ())), run)
        for each, run in zip(found, runs, strict=True)
    ]
    return sorted(listed, key=lambda each: each.registered, reverse=True)


def _version(described: Mapping[str, Any], aliases: Sequence[str], run: str) -> Version:
    known = {tag["key"]: tag["value"] for tag in described.get("tags", ())}
    decided = json.loads(known.get(DECISION, "{}"))
    return Version(
        model=f"models:/{described['name']}/{described['version']}",
        aliases=tuple(aliases),
        run=run,
        metric=known.get("wukong.metric", ""),
        value=float(known["wukong.value"]) if "wukong.value" in known else None,
        registered=datetime.fromtimestamp(int(described["creation_timestamp"]) / 1000, UTC).isoformat(),
        decided=restored(decided.get("says", ""), decided.get("chinese", {})),
    )


def _run_of(server: Server, run_id: str) -> str:
    """Return the name of the pipeline run of a version's run; empty if it was deleted."""
    if not run_id:
        return ""
    try:
        return server.run(run_id).tags.get(tags.RUN_TAG, "")
    except MlflowError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
