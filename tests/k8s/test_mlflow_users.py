"""MLflow's users, with the real server and its users on loopback: what stages may do, and what they may not."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import api_server
import measured
import numpy as np
import pytest
import requests
from manifests import plain
from mlflow_server import MlflowServer

from infra import cluster
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.registry import aliases
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import availability, mlflow_runs, stage_results, training_metrics
from wukong.tracking.mlflow_rest import MlflowError, Server

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("flask_wtf", reason="MLflow's server with users needs Flask-WTF: pip install 'mlflow[auth]'")
pytestmark = pytest.mark.long
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    """The Secrets that the setup job makes, by making them."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch, api_server.running(folder, patch) as api:
        for each in plain():
            api.put(each)
        cluster.make_credentials("wukong", "kubeflow")
        return dict(api.secrets)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, secrets: Mapping[str, Mapping[str, str]]
) -> Iterator[MlflowServer]:
    """The server with users."""
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    started.start_with_users(secrets["wukong/mlflow-server"], secrets["wukong/mlflow-admin"])
    try:
        started.wait_ready()
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def made(server: MlflowServer, secrets: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """The setup job's last step has run; the credentials that it has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        become(secrets["wukong/mlflow-admin"], patch)
        for kind, secret in (("STAGES", "wukong-mlflow"), ("RUNS", "runs-mlflow"), ("SEARCH", "search-mlflow")):
            for key in ("USERNAME", "PASSWORD"):
                patch.setenv(f"{kind}_{key}", secrets[f"wukong/{secret}"][f"MLFLOW_TRACKING_{key}"])
        cluster.main(["mlflow-users"])
    return secrets["kubeflow/wukong-mlflow"]


@pytest.fixture
def stages(server: MlflowServer, made: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """This process is the user of stages."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    become(made, monkeypatch)
    return made


def become(user: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in user.items():
        monkeypatch.setenv(name, value)


def experiment_at(folder: Path, name: str) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": name, "storage": storage.from_path(folder), "crawl": crawl})


def finished(experiment: Experiment, name: str, *parents: Manifest, **metrics: float) -> Manifest:
    stage = Stage(experiment.root, name, {"seed": 1}, parents)
    storage.write_json(stage.path("model/config.json"), {"model": {"similarity": "global"}})
    storage.write_bytes(stage.path("docs/index.html"), b"<p>")
    parts = [stage.describe("model/config.json"), stage.describe("docs/index.html")]
    return stage.commit(parts, counts={"pairs": 7}, metrics=metrics)


def test_stages_do_their_work_without_being_administrators(
    stages: Mapping[str, str],
    secrets: Mapping[str, Mapping[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert stages["MLFLOW_TRACKING_USERNAME"] == "stages"
    become(secrets["wukong/mlflow-admin"], monkeypatch)
    theirs = Server().experiment("theirs")  # what an administrator has made
    become(stages, monkeypatch)
    with mlflow_runs.stage_run(experiment_at(tmp_path, "mine"), "first", "crawl"):
        pass
    experiment = experiment_at(tmp_path, "theirs")
    with mlflow_runs.stage_run(experiment, "first", "finetune") as run_id:
        model = finished(experiment, "finetune")
        monkeypatch.setenv("MLFLOW_RUN_ID", str(run_id))
        training_metrics.keep_metrics({"loss": 1.0}, 1)
        training_metrics.send_metrics()
        stage_results.log_stage(run_id, model)
    with mlflow_runs.stage_run(experiment, "first", "evaluate") as run_id:
        half = measured.searched("new", np.arange(400) % 2 == 0)
        evaluation = measured.evaluation(experiment.root, [half], [model])
        stage_results.log_stage(run_id, evaluation)
    with mlflow_runs.stage_run(experiment, "first", "register", needed=True) as run_id:
        assert aliases.register(experiment, str(run_id), model, evaluation)["promoted"] == 1
    mlflow_runs.log_page(experiment, "first", "<p>", "report.html")
    mlflow_runs.complete_run(experiment, "first", evaluation.metrics)
    runs = Server().search_runs(theirs, "")
    assert {run.name: run.status for run in runs} == dict.fromkeys(
        ("first", "finetune", "evaluate", "register"), "FINISHED"
    )
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("theirs", "champion").tags["wukong.model"] == model.uri
    (known,) = client.search_logged_models([theirs])
    assert {metric.key for metric in known.metrics or []} >= {"eval/retrieval/new/mean_recall"}
    (finetune,) = (run.run_id for run in runs if run.name == "finetune")
    assert [file.path for file in client.list_artifacts(finetune, "docs")] == ["docs/index.html"]


@pytest.mark.parametrize(
    ("method", "endpoint", "values", "version"),
    [
        ("POST", "users/create", {"username": "another", "password": "of twelve letters"}, "2.0"),
        ("PATCH", "users/update-admin", {"username": "stages", "is_admin": True}, "2.0"),
        ("PATCH", "users/update-password", {"username": "admin", "password": "of twelve letters"}, "2.0"),
        (
            "POST",
            "users/permissions/grant",
            {"username": "stages", "resource_type": "experiment", "resource_id": "*", "permission": "MANAGE"},
            "3.0",
        ),
        ("POST", "experiments/delete", {"experiment_id": "0"}, "2.0"),
    ],
)
def test_stages_may_do_nothing_else(
    stages: Mapping[str, str], method: str, endpoint: str, values: Mapping[str, object], version: str
) -> None:
    with pytest.raises(MlflowError) as refused:
        Server().ask(method, endpoint, values, version)
    assert refused.value.status == 403


def test_all_but_the_registration_is_done_without_changing_models(
    stages: Mapping[str, str],
    secrets: Mapping[str, Mapping[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user `runs` does in a run, the experiment being another's."""
    become(secrets["wukong/mlflow-admin"], monkeypatch)
    Server().experiment("of-another")
    become(secrets["wukong/runs-mlflow"], monkeypatch)
    experiment = experiment_at(tmp_path, "of-another")
    with mlflow_runs.stage_run(experiment, "first", "finetune") as run_id:
        model = finished(experiment, "finetune")
        monkeypatch.setenv("MLFLOW_RUN_ID", str(run_id))
        training_metrics.keep_metrics({"loss": 1.0}, 1)
        training_metrics.send_metrics()
        stage_results.log_stage(run_id, model)
    mlflow_runs.log_page(experiment, "first", "<p>", "report.html")
    mlflow_runs.complete_run(experiment, "first", {})
    mlflow_runs.end_open_runs(experiment, "first", "FAILED")
    (found,) = [run for run in Server().search_runs(Server().experiment("of-another"), "") if run.name == "finetune"]
    assert found.status == "FINISHED"


def rows() -> dict[str, list[set[str]]]:
    """The page's table of users: what each does with experiments, with models, and with users."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition("| user | Secret | held by |")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cell[0].strip("`"): [{*each.split(", ")} - {"nothing"} for each in cell[3:]] for cell in cells}


def test_a_stolen_user_can_do_what_the_page_says(
    server: MlflowServer,
    made: Mapping[str, str],
    secrets: Mapping[str, Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each action on what another user has made."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    become(secrets["wukong/mlflow-admin"], monkeypatch)
    experiment, client = Server().experiment("stolen from"), mlflow.MlflowClient()
    run = Server().create_run(experiment, "first", {}).run_id
    client.create_registered_model("stolen")
    client.create_model_version("stolen", f"mlflow-artifacts:/{experiment}/{run}/artifacts/model", run)
    of = {"experiment_id": experiment}
    model: dict[str, object] = {"name": "stolen"}
    user = {"username": "new", "password": "of twelve letters"}
    grant = {"username": "search", "resource_type": "experiment", "resource_id": experiment, "permission": "MANAGE"}
    tag = {"key": "a", "value": "b"}
    asked: list[list[tuple[str, str, str, Mapping[str, object], str]]] = [
        [
            ("reads", "GET", "experiments/get", of, "2.0"),
            ("reads", "GET", "runs/get", {"run_id": run}, "2.0"),
            ("changes", "POST", "runs/create", of, "2.0"),
            ("changes", "POST", "runs/set-tag", {"run_id": run, **tag}, "2.0"),
            ("deletes", "POST", "runs/delete", {"run_id": run}, "2.0"),
            ("deletes", "POST", "experiments/delete", of, "2.0"),
        ],
        [
            ("reads", "GET", "registered-models/get", model, "2.0"),
            ("changes", "POST", "registered-models/set-tag", model | tag, "2.0"),
            ("changes", "POST", "registered-models/alias", model | {"alias": "champion", "version": "1"}, "2.0"),
            ("changes", "POST", "model-versions/set-tag", model | {"version": "1", **tag}, "2.0"),
            ("deletes", "DELETE", "model-versions/delete", model | {"version": "1"}, "2.0"),
            ("deletes", "DELETE", "registered-models/delete", model, "2.0"),
        ],
        [
            ("changes", "POST", "users/create", user, "2.0"),
            ("changes", "POST", "users/permissions/grant", grant, "3.0"),
        ],
    ]
    held = ("runs-mlflow", "wukong-mlflow", "search-mlflow", "mlflow-admin")  # who deletes comes last
    seen = {}
    for secret in held:
        become(secrets[f"wukong/{secret}"], monkeypatch)
        able: list[set[str]] = []
        for kind in asked:
            answers = [
                (verb, allowed(method, endpoint, values, version)) for verb, method, endpoint, values, version in kind
            ]
            assert not {verb for verb, may in answers if may} & {verb for verb, may in answers if not may}, answers
            able.append({verb for verb, may in answers if may})
        seen[secrets[f"wukong/{secret}"]["MLFLOW_TRACKING_USERNAME"]] = able
    assert seen == rows()


def allowed(method: str, endpoint: str, values: Mapping[str, object], version: str) -> bool:
    try:
        Server().ask(method, endpoint, values, version)
    except MlflowError as error:
        assert error.status == 403, error
        return False
    return True


def test_the_search_page_reads_models_and_changes_nothing(
    stages: Mapping[str, str],
    secrets: Mapping[str, Mapping[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pod is asked by everybody who may see the page."""
    server = Server()
    experiment = server.experiment("searched")
    run = server.create_run(experiment, "first", {}).run_id
    client = mlflow.MlflowClient()
    (tmp_path / "weights").write_bytes(b"weights")
    client.log_artifact(run, str(tmp_path / "weights"), "model")
    client.create_registered_model("searched")
    client.create_model_version("searched", f"mlflow-artifacts:/{experiment}/{run}/artifacts/model", run)
    client.set_registered_model_alias("searched", "champion", "1")
    become(secrets["wukong/search-mlflow"], monkeypatch)
    folder = mlflow.artifacts.download_artifacts("models:/searched@champion", dst_path=str(tmp_path / "got"))
    assert (Path(folder) / "weights").read_bytes() == b"weights"
    attempts: list[tuple[str, str, dict[str, object]]] = [
        ("POST", "registered-models/alias", {"name": "searched", "alias": "champion", "version": "1"}),
        ("DELETE", "registered-models/alias", {"name": "searched", "alias": "champion"}),
        ("POST", "registered-models/set-tag", {"name": "searched", "key": "wukong.champion", "value": "x"}),
        ("POST", "model-versions/set-tag", {"name": "searched", "version": "1", "key": "a", "value": "b"}),
        ("DELETE", "model-versions/delete", {"name": "searched", "version": "1"}),
        ("DELETE", "registered-models/delete", {"name": "searched"}),
        ("POST", "model-versions/create", {"name": "searched", "source": f"mlflow-artifacts:/{experiment}"}),
        ("POST", "runs/create", {"experiment_id": experiment}),
        ("POST", "runs/set-tag", {"run_id": run, "key": "a", "value": "b"}),
        ("POST", "runs/delete", {"run_id": run}),
        ("POST", "experiments/update", {"experiment_id": experiment, "new_name": "b"}),
        ("POST", "users/create", {"username": "another", "password": "of twelve letters"}),
    ]
    for method, endpoint, values in attempts:
        with pytest.raises(MlflowError) as refused:
            Server().ask(method, endpoint, values)
        assert refused.value.status == 403, endpoint
    with pytest.raises(requests.HTTPError, match="403"):
        client.log_artifact(run, str(tmp_path / "weights"), "model/other")


def test_who_has_no_password_reaches_nothing(stages: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(MlflowError, match=r"401.*MLFLOW_TRACKING_PASSWORD") as refused:
        Server().experiment("mine")
    assert refused.value.status == 401
    assert not availability.is_away(refused.value), "to wait does not mend it"


def test_a_new_password_is_taken_over(
    stages: Mapping[str, str], secrets: Mapping[str, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(secrets["wukong/mlflow-admin"], monkeypatch)
    users = {
        kind: {key: secrets[f"wukong/{kind}-mlflow"][f"MLFLOW_TRACKING_{key}"] for key in ("USERNAME", "PASSWORD")}
        for kind in ("runs", "search")
    }
    cluster.make_mlflow_users(users | {"stages": {"USERNAME": "stages", "PASSWORD": "a new one, renewed"}})
    become({**stages, "MLFLOW_TRACKING_PASSWORD": "a new one, renewed"}, monkeypatch)
    assert Server().experiment("mine")
    become(stages, monkeypatch)
    with pytest.raises(MlflowError) as refused:
        Server().experiment("mine")
    assert refused.value.status == 401
