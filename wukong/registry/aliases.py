"""The alias of a registered model in MLflow: who holds it, how it moves, and what is recorded of that.

Tags of the registered model hold the record: ``wukong.attempts.KEY`` the evaluations that were compared with one
holder by one metric; ``wukong.history.ALIAS`` each move of the alias. Tags of a version say what
decides about it: ``wukong.evaluation.uri``, ``wukong.gate`` (``Gate``), ``wukong.origin`` and ``wukong.chosen``
(``wukong.registry.choices``); and what was decided (``DECISION``). MLflow has no locks: two candidates at the
same moment may count as one attempt.
"""

import getpass
import json
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from wukong.config.experiment import Experiment
from wukong.config.registry import Registry
from wukong.errors import ConfigError, DataError, StorageError, WukongError
from wukong.evaluate import stored
from wukong.evaluate.stored import Evaluation
from wukong.registry import choices, comparison, promotion
from wukong.registry.choices import Choice
from wukong.registry.promotion import Anew, Decision, Rules
from wukong.runs.run import Run
from wukong.runs.verdict import Verdict
from wukong.runtime.language import _, chinese_of
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, digest_of
from wukong.store.patience import AwayError
from wukong.tracking import availability, mlflow_runs, model_versions, run_links
from wukong.tracking.mlflow_rest import MISSING, MlflowError, Server
from wukong.tracking.tags import EVALUATION_TAG, HISTORY_TAG, RUN_TAG

GATE, ORIGIN, ROLLED_BACK = "wukong.gate", "wukong.origin", "wukong.rolled_back"
CHOSEN, DECISION = "wukong.chosen", "wukong.decision"
_DIGEST, _MODEL = "wukong.evaluation", "wukong.model"
_ATTEMPTS, _HISTORY = "wukong.attempts.", HISTORY_TAG
_MOST_MOVES = 200  # of a history, whose tag holds 100,000 characters
_SHOWN = 600  # characters of an error
_LONGEST_REASON = 2000  # characters in the tag of a version, which holds 5,000
_CHOICES = TypeAdapter(list[Choice])

log = logging.getLogger(__name__)


class Gate(BaseModel):
    """What the gate asks of a version, stored with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metric: str
    level: float
    guards: dict[str, float] = {}
    first: str = "above-chance"

    @classmethod
    def of(cls, registry: Registry) -> "Gate":
        """The gate of an experiment's ``registry`` section."""
        return cls.model_validate(registry.model_dump(include=set(cls.model_fields)))

    @property
    def rules(self) -> Rules:
        """The rules of the decision."""
        return Rules(self.metric, self.level, self.guards, self.first)


Evaluate = Callable[[Experiment, str, Sequence[str]], Manifest]
"""Runs the evaluate stage: the experiment, the name of the run, and the URIs of the parents' manifests."""


def register(
    experiment: Experiment, run_id: str, model: Manifest, evaluation: Manifest, evaluate: Evaluate | None = None
) -> dict[str, float]:
    """Register a model as a new version, and give it the alias if the gate says so.

    Args:
        experiment: its ``registry`` section names the model and the alias, and says what the gate asks for.
        run_id: the MLflow run whose artifacts hold the saved model.
        model: manifest of the stage whose ``model/`` folder is registered.
        evaluation: manifest of the evaluation of that model.
        evaluate: see ``ModelRegistry``.

    Returns:
        ``version``; ``promoted``, 1 if this version has the alias now; ``attempt``, see ``wukong.registry.promotion``;
        and the deciding metric under its name.

    Raises:
        DataError: the evaluation did not measure the metric that decides.
        AwayError: MLflow was away for longer than the patience.
    """
    registry = experiment.registry
    tags = {
        EVALUATION_TAG: storage.join(evaluation.uri, "manifest.json"),
        GATE: Gate.of(registry).model_dump_json(),
        CHOSEN: _CHOICES.dump_json(choices.of_model(experiment.root, model)).decode(),
    }
    version = model_versions.register(experiment, run_id, model, evaluation, tags)
    registered = ModelRegistry(Server(), registry.model_name, registry.alias, evaluate)
    by = f"the pipeline of {experiment.name}"
    decision = availability.MLFLOW.until_answered(lambda: registered.promote(version, by=by))
    log.info("version %s of %s: %s", version, registry.model_name, decision.says)
    return {
        "version": float(version),
        "promoted": float(decision.promoted),
        "attempt": float(decision.attempt),
        registry.metric: evaluation.metrics[registry.metric],
    }


def verdict_of(experiment: Experiment, version: str) -> Verdict | None:
    """Read what was decided about a version of an experiment's model; None if nothing is known of it.

    Raises:
        ConfigError: MLflow has no such version.
        MlflowError: MLflow answers with an error.
    """
    registry = experiment.registry
    tags = ModelRegistry(Server(), registry.model_name, registry.alias).version(version)["tags"]
    if DECISION not in tags:
        return None
    return Verdict(model=registry.model_name, alias=registry.alias, version=version, **json.loads(tags[DECISION]))


def compare(experiment: Experiment, run: str, verdict: Verdict) -> dict[str, Any] | None:
    """Compare a run with the one whose model held the alias: what ``wukong.registry.comparison.compare`` returns.

    Returns:
        None if no other model held it.

    Raises:
        ConfigError: MLflow no longer knows the other run or its version.
        DataError: the evaluation of a run is damaged.
        StorageError: the evaluation of a run is gone, or cannot be read.
        MlflowError: MLflow answers with an error.
    """
    if verdict.holder in ("", verdict.version):
        return None
    server = Server()
    holder = ModelRegistry(server, verdict.model, verdict.alias).version(verdict.holder)
    own = mlflow_runs.pipeline_run(server, experiment, run)
    return comparison.compare(comparison.read(server, comparison.find(server, [holder["run_id"], own.run_id])))


class ModelRegistry:
    """A registered model of an MLflow server.

    Args:
        server: MLflow's.
        model: the registered model's name.
        alias: the alias that moves.
        evaluate: evaluates the version that holds the alias on the candidate's test set, where it was measured on
            another one; None to compare with what is there alone.

    All methods raise ``MlflowError`` if the server answers with an error.
    """

    def __init__(self, server: Server, model: str, alias: str, evaluate: Evaluate | None = None) -> None:
        self._server = server
        self.model = model
        self.alias = alias
        self._evaluate = evaluate

    def version(self, number: str = "") -> dict[str, Any]:
        """A version, or the newest one: ``version``, ``run_id`` and ``tags``.

        Raises:
            ConfigError: there is none.
        """
        if number:
            asked = {"name": self.model, "version": number}
            if not (answer := self._server.ask("GET", "model-versions/get", asked, but=MISSING)):
                raise ConfigError(f"MLflow at {self._server.address} has no model {self.model}/{number}")
            return _version(answer["model_version"])
        quoted = self.model.replace("'", "\\'")
        values = {"filter": f"name = '{quoted}'", "order_by": "version_number DESC", "max_results": 1}
        versions = self._server.ask("GET", "model-versions/search", values).get("model_versions", [])
        if not versions:
            raise ConfigError(f"MLflow at {self._server.address} has no model {self.model!r}, or no version of it")
        return _version(versions[0])

    def state(self) -> tuple[str, dict[str, str]]:
        """The version that holds the alias, empty if none does, and the registered model's tags.

        Raises:
            ConfigError: there is no such model.
        """
        if not (answer := self._server.ask("GET", "registered-models/get", {"name": self.model}, but=MISSING)):
            raise ConfigError(f"MLflow at {self._server.address} has no model {self.model!r}")
        registered = answer["registered_model"]
        held = {entry["alias"]: str(entry["version"]) for entry in registered.get("aliases", [])}
        return held.get(self.alias, ""), {entry["key"]: entry["value"] for entry in registered.get("tags", [])}

    def decide(self, number: str = "") -> Decision:
        """Ask the gate about a version, the newest by default, and count the attempt. The alias does not move.

        A version that was asked about before keeps the number of its attempt. If the holder of the alias did not answer
        the candidate's queries, it is evaluated on them first.

        Raises:
            ConfigError: there is no such version.
            DataError: its evaluation is gone or does not have the metric.
        """
        candidate = self.version(number)
        holder, tags = self.state()
        gate = _gate(candidate)
        name, rules = candidate["version"], gate.rules

        def no(why: str) -> Decision:
            return promotion.refused(rules, self.model, self.alias, name, holder, why)

        if holder == name:
            return replace(no(_("It holds the alias already.")), promoted=True)
        if when := candidate["tags"].get(ROLLED_BACK):
            return no(
                _("It was rolled back ({when}), and only `wukong promote --force --reason` brings it back.").format(
                    when=when
                )
            )
        evaluation = stored.read(_tag_of(candidate, EVALUATION_TAG))
        chosen = _CHOICES.validate_json(_tag_of(candidate, CHOSEN))
        known = {"model": self.model, "alias": self.alias, "version": name, "choices": chosen}
        if not holder:
            return promotion.decide(rules, evaluation, None, **known)
        held = self.version(holder)
        if held["tags"].get(ORIGIN, "") != candidate["tags"].get(ORIGIN, ""):
            return no(
                _(
                    "Version {holder}, which holds the alias, is of another experiment or of images from another "
                    "source, so the two do not compete: give registry.model_name another name."
                ).format(holder=holder)
            )
        theirs, why = _evaluation_of(held, evaluation, rules)
        anew = None
        if why:
            try:
                theirs = self._evaluated_anew(candidate, held, evaluation)
            except WukongError as error:
                gone = isinstance(error, MlflowError) and error.code == MISSING
                if isinstance(error, AwayError | MlflowError) and not gone:
                    raise
                shortened = textwrap.shorten(str(error), _SHOWN, placeholder=" …").rstrip(".")
                return no(
                    _(
                        "Version {holder}, which holds the alias, has no answers to the candidate's queries "
                        "({why}), and cannot be evaluated on them: {shortened}. Mend that and run `wukong "
                        "promote {model}/{name}`, or use `wukong promote --force --reason`."
                    ).format(holder=holder, why=why, shortened=shortened, model=self.model, name=name)
                )
            anew = Anew.of(why, theirs)
        first = promotion.decide(rules, evaluation, theirs, **known, held_by=holder)
        if not first.attempt:  # not comparable: nothing was tested
            return replace(first, anew=anew)
        attempt = self._attempt(tags, first, _tag_of(candidate, _DIGEST))
        return replace(promotion.decide(rules, evaluation, theirs, **known, held_by=holder, attempt=attempt), anew=anew)

    def promote(self, number: str = "", *, forced: str = "", by: str = "") -> Decision:
        """Ask the gate about a version, the newest by default, and move the alias if it says yes.

        The decision is logged as a page of the version's run, and the move is recorded.

        Args:
            number: the version.
            forced: why the gate is not asked; empty to ask it.
            by: who moves it; empty for the user of this process.

        Raises:
            ConfigError: there is no such version.
            DataError: its evaluation is gone or does not have the metric.
        """
        candidate = self.version(number)
        if forced:
            holder = self.state()[0]
            rules = _gate(candidate).rules
            decision = replace(
                promotion.refused(rules, self.model, self.alias, candidate["version"], holder, ""),
                promoted=True,
                says=_("A person moved the alias without the gate: {forced}").format(forced=forced),
                forced=forced,
            )
        else:
            decision = self.decide(candidate["version"])
        if decision.holder == decision.candidate:
            return decision  # the page of the decision by which it took the alias stays
        self._log(candidate, decision)
        decided = {
            "promoted": decision.promoted,
            "says": decision.says[:_LONGEST_REASON],
            "holder": decision.holder,
            "chinese": chinese_of(decision.says) if len(decision.says) <= _LONGEST_REASON else {},
        }
        self._tag_version(candidate["version"], DECISION, json.dumps(decided, ensure_ascii=False))
        if decision.promoted:
            self._move("promote", candidate, decision.holder, forced or decision.says, by)
        return decision

    def rollback(self, reason: str, by: str = "") -> tuple[str, str]:
        """Give the alias back to the version that held it before; return the version it leaves and the one it goes to.

        Raises:
            ConfigError: nobody held it before, or that version is deleted.
        """
        holder, tags = self.state()
        before = held_before(json.loads(tags.get(_HISTORY + self.alias, "[]")), holder)
        if not before:
            raise ConfigError(
                f"no version of {self.model} held {self.alias!r} before {holder or 'now'}, so there is nothing to roll "
                f"back to: `wukong promote {self.model}/VERSION --force --reason TEXT` takes any version"
            )
        self._move("rollback", self.version(before), holder, reason, by)
        self._tag_version(holder, ROLLED_BACK, f"{_now()}: {reason}" if reason else _now())
        return holder, before

    def _evaluated_anew(
        self, candidate: Mapping[str, Any], held: Mapping[str, Any], evaluation: Evaluation
    ) -> Evaluation:
        """Evaluate a version on the test set of a candidate's evaluation, under the candidate's run.

        Raises:
            WukongError: it cannot be done.
        """
        if self._evaluate is None:
            raise DataError("this program compares only evaluations that are there")
        if _MODEL not in held["tags"]:
            raise DataError(f"version {held['version']} does not say where its files are")
        model = manifest.load(held["tags"][_MODEL])
        run = self._server.run(candidate["run_id"])
        if (folder := run_links.folder_of(run)) is None:
            raise DataError(f"MLflow does not say where the folder of the candidate's run {run.name} is")
        evaluated = manifest.load(evaluation.uri)
        experiment, parents = places.rematch(Run(folder).experiment, evaluated, model)
        log.info("version %s of %s is evaluated on the test set of %s", held["version"], self.model, evaluation.uri)
        made = self._evaluate(experiment, run.tags[RUN_TAG], parents)
        return stored.read(storage.join(made.uri, "manifest.json"))

    def _attempt(self, tags: Mapping[str, str], decision: Decision, candidate: str) -> int:
        """Return the number of an attempt, which is counted before its outcome is used.

        What was chosen from several is as many attempts, ``DIGESTxCOUNT`` in the tag.
        """
        key = digest_of([decision.holder, self.alias, decision.rules.metric])[:16]
        made = json.loads(tags.get(_ATTEMPTS + key, "[]"))
        if (short := candidate[:16] + (f"x{decision.count}" if decision.count > 1 else "")) not in made:
            made.append(short)
            self._tag(_ATTEMPTS + key, json.dumps(made, separators=(",", ":")))
        return 1 + sum(int(each.partition("x")[2] or 1) for each in made[: made.index(short)])

    def _move(self, action: str, version: Mapping[str, Any], holder: str, reason: str, by: str) -> None:
        tags = self.state()[1]
        history = json.loads(tags.get(_HISTORY + self.alias, "[]"))
        what = {"action": action, "version": version["version"], "from": holder}
        if not history or {key: history[-1].get(key) for key in what} != what:  # it may be an answer that was lost
            history.append(what | {"at": _now(), "by": by or _user(), "reason": reason[:300]})
        # The history first: a move without a record could not be rolled back.
        self._tag(_HISTORY + self.alias, json.dumps(history[-_MOST_MOVES:], ensure_ascii=False))
        if action == "promote" and ROLLED_BACK in version["tags"]:
            self._server.ask(
                "DELETE",
                "model-versions/delete-tag",
                {"name": self.model, "version": version["version"], "key": ROLLED_BACK},
            )
        values = {"name": self.model, "alias": self.alias, "version": version["version"]}
        self._server.ask("POST", "registered-models/alias", values)

    def _log(self, candidate: Mapping[str, Any], decision: Decision) -> None:
        """Log the decision's page to the version's run, unless the run is gone."""
        from wukong.report import promotion as page

        try:
            run = self._server.run(candidate["run_id"])
            files = {
                "promotion.html": page.render(decision.as_json()),
                "promotion.json": json.dumps(decision.as_json(), ensure_ascii=False, indent=2),
            }
            mlflow_runs.log_files(self._server, run, files)
        except MlflowError as error:
            if error.status >= 500:
                raise
            log.warning("the page of the decision is not logged: %s", error)

    def _tag(self, key: str, value: str) -> None:
        self._server.ask("POST", "registered-models/set-tag", {"name": self.model, "key": key, "value": value})

    def _tag_version(self, version: str, key: str, value: str) -> None:
        values = {"name": self.model, "version": version, "key": key, "value": value}
        self._server.ask("POST", "model-versions/set-tag", values)


def needed_versions(server: Server) -> dict[str, dict[str, str]]:
    """Return the tags of the versions that hold an alias, and of those that a rollback would give it back to.

    Args:
        server: MLflow's.

    Returns:
        The tags, which say where the version's stages lie, by ``models:/NAME/VERSION``.
    """
    needed = {}
    for each in server.registered("registered-models"):
        tags = {entry["key"]: entry["value"] for entry in each.get("tags", ())}
        for entry in each.get("aliases", ()):
            holder = str(entry["version"])
            before = held_before(json.loads(tags.get(_HISTORY + entry["alias"], "[]")), holder)
            for version in filter(None, (holder, before)):
                try:
                    needed[f"models:/{each['name']}/{version}"] = server.model_tags(each["name"], version)
                except MlflowError as error:
                    if error.code != MISSING:  # somebody deleted it
                        raise
    return needed


def held_before(history: list[dict[str, Any]], holder: str) -> str:
    """Return the version that held an alias before the present holder; empty if there is none.

    Args:
        history: the recorded moves, the oldest first.
        holder: the version that holds the alias. Somebody may have moved it without a record.
    """
    held: list[str] = []
    for move in history:
        if move["action"] == "promote":
            if move["from"] and (not held or held[-1] != move["from"]):
                held.append(move["from"])  # moved without a record
            held.append(move["version"])
        elif held:
            held.pop()
    if held and held[-1] == holder:
        held.pop()
    return held[-1] if held else ""


def _evaluation_of(held: Mapping[str, Any], candidate: Evaluation, rules: Rules) -> tuple[Evaluation, str]:
    """Return a version's own evaluation, and why it cannot be compared with a candidate's; empty if it can."""
    if EVALUATION_TAG not in held["tags"]:
        return Evaluation(), _("it was registered without the address of its evaluation")
    try:
        evaluation = stored.read(held["tags"][EVALUATION_TAG])
    except AwayError:
        raise
    except (DataError, StorageError):
        return Evaluation(), _("its evaluation is gone")
    return evaluation, promotion.unpaired(rules, candidate, evaluation)


def _version(found: Mapping[str, Any]) -> dict[str, Any]:
    tags = {entry["key"]: entry["value"] for entry in found.get("tags", [])}
    return {"version": str(found["version"]), "run_id": found.get("run_id", ""), "tags": tags}


def _tag_of(version: Mapping[str, Any], key: str) -> str:
    """A tag that a version has if Wukong registered it."""
    if key not in version["tags"]:
        raise DataError(f"version {version['version']} has no tag {key}: it was not registered by Wukong")
    return str(version["tags"][key])


def _gate(version: Mapping[str, Any]) -> Gate:
    """The gate that was stored with a version."""
    try:
        return Gate.model_validate_json(_tag_of(version, GATE))
    except ValueError as error:
        raise WukongError(f"version {version['version']}: its tag {GATE} cannot be read: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
