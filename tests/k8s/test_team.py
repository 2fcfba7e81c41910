"""Teams: what the command makes of the installation, and that what it makes opens nothing of another team's."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import api_server
import boto3
import numpy as np
import pytest
import store_server
import trespass
import yaml
from api_server import ApiServer
from manifests import plain
from mlflow_server import MlflowServer
from stolen_keys import begins_with_its_key, crawls_with_its_key
from test_manifests import component

from infra import cluster, team
from infra.team import Quota
from wukong import stages
from wukong.errors import ConfigError, StackError
from wukong.stages import access

TEAMS = ("vision", "speech")
PAGE = Path(__file__).parents[2] / "docs" / "teams.md"
HOME = "/api/v1/namespaces/wukong"


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


def installed(api: ApiServer) -> None:
    """Have the installation in a cluster, with the component for teams."""
    for manifest in plain():
        api.put(manifest)
    (mlflow,) = (each for each in api.named("deployments", "wukong").values())
    variables = mlflow["spec"]["template"]["spec"]["containers"][0]["env"]
    variables.append({"name": "MLFLOW_ENABLE_WORKSPACES", "value": "true"})
    cluster.make_credentials("wukong", "kubeflow")
    api.changes.clear()


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server.running(tmp_path, monkeypatch) as server:
        installed(server)
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Two teams, made one after the other."""
    with api_server.running(tmp_path_factory.mktemp("cluster"), patch) as server:
        installed(server)
        for name in TEAMS:
            team.make(name, Quota())
        yield server


def keys_of(api: ApiServer, name: str) -> dict[str, dict[str, str]]:
    """The S3 keys that lie in a team's namespace, that of KFP among them."""
    held = {each: api.secrets[f"{name}/{each}"] for each in api.named("secrets", name)}
    of_kfp = held["mlpipeline-minio-artifact"]
    kfp = {"AWS_ACCESS_KEY_ID": of_kfp["accesskey"], "AWS_SECRET_ACCESS_KEY": of_kfp["secretkey"]}
    return {each: key for each, key in held.items() if "AWS_ACCESS_KEY_ID" in key} | {"of KFP": kfp}


def test_a_team_has_all_that_its_pods_name(made: ApiServer) -> None:
    """By the compiled pipelines and the template of RayJobs, which are the same in each namespace."""
    there = {kind: {*made.named(kind, "vision")} for kind in ("secrets", "configmaps", "serviceaccounts")}
    assert {*access.copied_to_components()} <= there["secrets"]
    assert {access.key_of_job(stage) for stage in stages.JOBS} <= there["secrets"]
    job = made.named("configmaps", "vision")["ray-job"]["data"]["template.yaml"]
    named = {kind: {*re.findall(rf"{kind}: \{{name: ([a-z0-9-]+)\}}", job)} for kind in ("secretRef", "configMapRef")}
    assert named["secretRef"] <= there["secrets"]
    assert named["configMapRef"] <= there["configmaps"]
    assert {*re.findall("serviceAccountName: ([a-z-]+)", job)} <= there["serviceaccounts"]
    settings = made.named("configmaps", "vision")["wukong-settings"]["data"]
    theirs = made.objects[f"{HOME}/configmaps/wukong-settings"]["data"]
    assert settings == theirs | {"WUKONG_CLUSTER": "vision", "MLFLOW_WORKSPACE": "vision"}


def test_components_may_do_in_the_team_what_the_installations_may_in_its_namespace(made: ApiServer) -> None:
    """And look at their own run (``ray_jobs.launch.kuberay.pipeline_run``), as KFP's Role lets the installation's."""

    def rights(*rules: Mapping[str, Any]) -> set[tuple[str, str, str, str]]:
        return {
            (group, resource, name, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", [""])
            for verb in rule["verbs"]
        }

    kueue = Path(__file__).parents[2] / "k8s" / "components" / "kueue" / "access.yaml"
    wanted = [each for each in yaml.safe_load_all(kueue.read_text(encoding="utf-8")) if each["kind"] == "Role"]
    wanted.append(made.named("roles", "wukong")["ray-job-launcher"])
    held = rights(*made.named("roles", "vision")["components"]["rules"])
    assert {right for role in wanted for right in rights(*role["rules"])} <= held
    assert {("argoproj.io", "workflows", "", verb) for verb in ("get", "list", "watch")} <= held


def test_outside_of_its_namespace_only_servers_learn_of_it(api: ApiServer) -> None:
    team.make("vision", Quota())
    outside = [each for each in api.changes if "/namespaces/vision" not in each]
    assert outside == [
        f"PATCH {HOME}/secrets/object-store",
        "PATCH /apis/apps/v1/namespaces/wukong/statefulsets/object-store",
        f"POST {HOME}/secrets",
        "POST /apis/batch/v1/namespaces/wukong/jobs",
    ]


def test_a_second_run_changes_nothing(api: ApiServer) -> None:
    for name in (*TEAMS, *TEAMS):
        team.make(name, Quota())
    api.changes.clear()
    cluster.make_credentials("wukong", "kubeflow")
    team.make("vision", Quota())
    cluster.make_credentials("wukong", "kubeflow")
    team.make("speech", Quota())
    assert [each for each in api.changes if not each.endswith("/jobs")] == [], "the store would start again"


def test_no_credential_is_in_two_namespaces(made: ApiServer) -> None:
    values: dict[str, set[str]] = {}
    for namespace in (*TEAMS, "kubeflow", "wukong"):
        for name in made.named("secrets", namespace):
            for key, value in made.secrets[f"{namespace}/{name}"].items():
                if name not in ("object-store", "team-vision", "team-speech") and len(value) >= 20:
                    values.setdefault(value, set()).add(f"{namespace} {key}")
    shared = [held for held in values.values() if len({each.partition(" ")[0] for each in held} - {"kubeflow"}) > 1]
    assert shared == []


@pytest.mark.parametrize("name", ["wukong", "kubeflow", "kube-team", "Vision", "a", "a/b", "-a", "a-", "ä", "a" * 31])
def test_a_name_that_cannot_be_is_refused(api: ApiServer, name: str) -> None:
    for act in (partial(team.make, name, Quota()), partial(team.delete, name)):
        with pytest.raises(ConfigError, match="cannot be called"):
            act()
    assert api.changes == []


def test_a_namespace_of_somebody_else_is_left_alone(api: ApiServer) -> None:
    api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vision", "labels": {}}})
    for act in (partial(team.make, "vision", Quota()), partial(team.delete, "vision")):
        with pytest.raises(StackError, match="no team's"):
            act()
    assert api.changes == []
    assert team.main(["vision"]) == 1
    api.objects["/api/v1/namespaces/vision"]["metadata"]["labels"] = {"wukong/team": "vision"}
    assert team.main(["vision"]) == 0


def test_without_workspaces_no_team_is_made(api: ApiServer) -> None:
    """Its experiments would be everybody's."""
    (mlflow,) = api.named("deployments", "wukong").values()
    mlflow["spec"]["template"]["spec"]["containers"][0]["env"].pop()
    with pytest.raises(StackError, match="k8s/components/teams"):
        team.make("vision", Quota())
    assert api.changes == []


@pytest.mark.parametrize("on", ["base", "overlays/external-s3"])
def test_the_component_for_teams_is_what_the_command_asks_for(api: ApiServer, tmp_path: Path, on: str) -> None:
    api.objects = {path: each for path, each in api.objects.items() if "/secrets/" in path}
    for manifest in component(tmp_path, "teams", on=on):
        api.put(manifest)
    own = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "of the operator's own store"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wukong-s3", "namespace": "vision"}}
    api.put({**secret, "stringData": own})
    team.make("vision", Quota())
    stores = api.named("networkpolicies", "vision")["to-object-store"]["spec"]["egress"]
    assert [rule["ports"][0]["port"] for rule in stores] == [8333 if on == "base" else 443]


def test_a_teams_pods_reach_its_own_and_what_serves_it(made: ApiServer) -> None:
    """By the policies of its namespace. A peer without a namespace is of the same one."""
    policies = made.named("networkpolicies", "vision")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    reached: dict[str, set[str]] = {}
    for name, policy in policies.items():
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "*"}}}]):
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                place = labels.get("kubernetes.io/metadata.name", "" if "podSelector" in peer else "address")
                what = peer.get("podSelector", {}).get("matchLabels", {})
                reached.setdefault(name, set()).add(f"{place} {next(iter(what.values()), '')}".strip())
    assert reached == {
        "dns": {"kube-system kube-dns", "address"},
        "to-object-store": {"wukong object-store"},
        "ray": {"ray", "wukong mlflow"},
        "crawler": {"address"},
        "components": {
            *("kubeflow ml-pipeline", "kubeflow metadata-grpc-server"),
            *("wukong mlflow", "wukong object-store", "*"),  # at the ports of the Kubernetes API
        },
    }
    ports = [rule["ports"] for rule in policies["components"]["spec"]["egress"] if "to" not in rule]
    assert ports == [[{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]]


def test_a_job_that_fails_is_named(api: ApiServer) -> None:
    api.conditions = [{"type": "Failed", "status": "True"}]
    with pytest.raises(StackError, match=r"wukong/team-vision-\d+ has failed: kubectl -n wukong logs job/team-vision-"):
        team.make("vision", Quota())
    api.conditions = []
    with pytest.raises(StackError, match="has not ended after 0 s"):
        team.make("vision", Quota(), seconds=0)


def job_of(api: ApiServer, name: str) -> dict[str, Any]:
    """The Job of a team that was made once."""
    (job,) = (each for key, each in api.named("jobs", "wukong").items() if key.startswith(f"team-{name}-"))
    return job


def test_the_job_is_the_installations_with_the_teams_users(made: ApiServer) -> None:
    template = job_of(made, "vision")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["python", "-m", "infra.cluster", "mlflow-users", "--team", "vision"]
    held = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
    assert held == ["mlflow-admin", "team-vision"]
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "setup", "which MLflow is reached by"
    assert made.secrets["wukong/team-vision"]["RUNS_USERNAME"] == "vision-runs"


def test_a_store_of_the_operators_own_gives_the_team_the_key_that_the_operator_has_made(api: ApiServer) -> None:
    del api.objects["/apis/apps/v1/namespaces/wukong/statefulsets/object-store"]
    with pytest.raises(StackError, match="s3-policy wukong-s3 --team vision"):
        team.make("vision", Quota())
    own = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "of the operator's own store"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wukong-s3", "namespace": "vision"}}
    api.put({**secret, "stringData": own})
    before = api.secrets["wukong/object-store"]
    team.make("vision", Quota())
    assert all(key == own for key in keys_of(api, "vision").values())
    assert api.secrets["wukong/object-store"] == before


def test_the_policy_of_a_teams_key_names_its_prefix_alone(capsys: pytest.CaptureFixture[str]) -> None:
    cluster.main(["s3-policy", "job-crawl-s3", "--team", "vision"])
    statements = json.loads(capsys.readouterr().out)["Statement"]
    places = {each for statement in statements for each in statement["Resource"]} - {"arn:aws:s3:::wukong"}
    places |= {f"arn:aws:s3:::wukong/{each}" for each in statements[1]["Condition"]["StringLike"]["s3:prefix"]}
    within = ("arn:aws:s3:::wukong/teams/vision/", "arn:aws:s3:::wukong/shared/")
    assert [place for place in places if not place.startswith(within)] == []
    with pytest.raises(SystemExit):
        cluster.main(["s3-policy", "search-s3", "--team", "vision"])


def test_images_of_a_registry_with_a_password_are_pulled(api: ApiServer) -> None:
    api.objects[f"{HOME}/serviceaccounts/ray"]["imagePullSecrets"] = [{"name": "registry"}]
    pull = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": "wukong"}}
    with pytest.raises(StackError, match="names the pull secret registry, and there is none"):
        team.make("vision", Quota())
    api.put({**pull, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{}"}})
    team.make("vision", Quota())
    assert api.named("secrets", "vision")["registry"]["type"] == "kubernetes.io/dockerconfigjson"
    accounts = api.named("serviceaccounts", "vision")
    for account in ("ray", "default-editor"):
        assert accounts[account]["imagePullSecrets"] == [{"name": "registry"}]
    applied = [each for each in api.changes if "/serviceaccounts/" in each]
    assert len(applied) == len(set(applied)), "what one apply does not name, it takes from the one before"


def test_without_kueue_kubernetes_bounds_what_a_team_asks_for(api: ApiServer) -> None:
    team.main(["vision", "--cpu", "4", "--memory", "8Gi", "--gpus", "2"])
    (quota,) = api.named("resourcequotas", "vision").values()
    amounts = {"requests.cpu": "4", "requests.memory": "8Gi", "requests.nvidia.com/gpu": "2"}
    assert quota["spec"]["hard"] == amounts
    assert not api.named("clusterqueues")


def test_with_kueue_a_team_has_a_queue_in_the_cohort(api: ApiServer) -> None:
    kueue = Path(__file__).parents[2] / "k8s" / "components" / "kueue" / "queues.yaml"
    for manifest in yaml.safe_load_all(kueue.read_text(encoding="utf-8")):
        api.put(manifest)
    job = api.objects[f"{HOME}/configmaps/ray-job"]["data"]
    job["queue.yaml"] = "queue: wukong\npriority: wukong-normal\n"
    team.main(["vision", "--cpu", "4", "--memory", "8Gi", "--gpus", "2"])
    queue = api.named("clusterqueues")["vision"]["spec"]
    assert queue["cohortName"] == "wukong"
    assert queue["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "vision"}}
    ((flavor,),) = (group["flavors"] for group in queue["resourceGroups"])
    assert {each["name"]: each["nominalQuota"] for each in flavor["resources"]} == {
        "cpu": "4",
        "memory": "8Gi",
        "nvidia.com/gpu": "2",
    }
    assert api.named("localqueues", "vision")["wukong"]["spec"] == {"clusterQueue": "vision"}
    assert not api.named("resourcequotas", "vision"), "it would refuse what others lend"
    kinds = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    api.put({**kinds, "metadata": {"name": "clusterqueues.kueue.x-k8s.io"}})
    team.delete("vision")
    assert {*api.named("clusterqueues")} == {"wukong"}


def test_a_team_that_is_deleted_leaves_its_data_and_nothing_else(api: ApiServer) -> None:
    team.make("speech", Quota())
    told = (f"{HOME}/secrets/object-store", "/apis/apps/v1/namespaces/wukong/statefulsets/object-store")

    def others() -> dict[str, Any]:
        return {path: each for path, each in api.objects.items() if "/jobs/" not in path and path not in told}

    before = others()
    team.make("vision", Quota())
    api.changes.clear()
    team.main(["vision", "--delete"])
    assert others() == before
    names = [each["name"] for each in json.loads(api.secrets["wukong/object-store"]["s3.json"])["identities"]]
    assert not [name for name in names if name.startswith("team-vision:")]
    assert [name for name in names if name.startswith("team-speech:")]
    assert f"PATCH {told[1]}" in api.changes, "its keys are refused when the store has started again"
    api.changes.clear()
    team.delete("vision")
    assert api.changes == []


def rows(header: str) -> set[str]:
    """The first column of a table of the page."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"| {header} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {line.strip("|").split("|")[0].strip() for line in lines}


@pytest.fixture(scope="module")
def store(made: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The object store with the identities that the command has told it of, and objects of each team."""
    identities = json.loads(made.secrets["wukong/object-store"]["s3.json"])["identities"]
    with store_server.running(tmp_path_factory.mktemp("store"), identities) as url:
        owner = client(url, made.secrets["wukong/setup-s3"])
        owner.create_bucket(Bucket="wukong")
        for name in TEAMS:
            for path in (trespass.OBJECT, "same/runs/first/run.json", "kfp/a", "inputs/queries.txt"):
                owner.put_object(Bucket="wukong", Key=f"{trespass.prefix_of(name)}/{path}", Body=name.encode())
        owner.put_object(Bucket="wukong", Key="shared/vocabulary.txt", Body=b"of all")
        owner.put_object(Bucket="wukong", Key="inputs/queries.txt", Body=b"of the installation")
        yield url


def client(url: str, key: Mapping[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.mark.long
@pytest.mark.parametrize(("own", "other"), [TEAMS, TEAMS[::-1]])
def test_no_key_of_a_team_opens_anything_of_another(made: ApiServer, store: str, own: str, other: str) -> None:
    keys = keys_of(made, own)
    assert keys.keys() == {*access.s3_keys_of_team(own)} | {"of KFP"}
    opened = {name: trespass.s3(client(store, key), other, own) for name, key in keys.items()}
    assert {name: [what for what, done in tried.items() if done] for name, tried in opened.items()} == {
        name: [] for name in keys
    }
    assert rows("of the other team's data").issuperset(opened["wukong-s3"])
    owner = client(store, made.secrets["wukong/setup-s3"])
    key = f"{trespass.prefix_of(other)}/{trespass.OBJECT}"
    assert owner.get_object(Bucket="wukong", Key=key)["Body"].read() == other.encode()


@pytest.mark.long
def test_a_teams_own_key_opens_its_own_and_what_is_shared(made: ApiServer, store: str) -> None:
    """The same attempts on its own things succeed, so what is refused above is not refused for another reason."""
    own = client(store, made.secrets["vision/wukong-s3"])
    done = trespass.s3(own, "vision", "vision")
    assert all(done.values()), done
    assert own.get_object(Bucket="wukong", Key="shared/vocabulary.txt")["Body"].read() == b"of all"
    for act in (
        lambda: own.put_object(Bucket="wukong", Key="shared/vocabulary.txt", Body=b"changed"),
        lambda: own.get_object(Bucket="wukong", Key="inputs/queries.txt"),
    ):
        assert not trespass.done(act)


@pytest.mark.long
def test_a_team_is_as_bounded_within_its_own_prefix_as_the_installation_is(made: ApiServer, store: str) -> None:
    crawler = client(store, made.secrets["vision/job-crawl-s3"])
    prefix = trespass.prefix_of("vision")
    crawler.put_object(Bucket="wukong", Key=f"{prefix}/same/crawl/KEY/a", Body=b"x")
    crawler.get_object(Bucket="wukong", Key=f"{prefix}/inputs/queries.txt")
    assert not trespass.done(lambda: crawler.get_object(Bucket="wukong", Key=f"{prefix}/{trespass.OBJECT}"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "does"), [("job-crawl-s3", crawls_with_its_key), ("component-run-s3", begins_with_its_key)]
)
def test_what_a_teams_pods_do_with_files_their_keys_allow(
    made: ApiServer, store: str, monkeypatch: pytest.MonkeyPatch, key: str, does: Callable[[str], None]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name, value in made.secrets[f"vision/{key}"].items():
        monkeypatch.setenv(name, value)
    does(access.storage_of_team("vision"))


@pytest.fixture(scope="module")
def tracking(made: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow with users and workspaces, as the container starts it; the Jobs of both teams have run."""
    pytest.importorskip("flask_wtf", reason="MLflow's server with users needs Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("mlflow")
    started, held = MlflowServer(folder), made.secrets["wukong/mlflow-server"]
    lines = held["auth.ini"].splitlines()
    local = [f"database_uri = sqlite:///{folder}/auth.db" if "database_uri" in line else line for line in lines]
    (folder / "auth.ini").write_text("\n".join(local))
    admin = made.secrets["wukong/mlflow-admin"]
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": held["MLFLOW_FLASK_SERVER_SECRET_KEY"],
        "MLFLOW_AUTH_ADMIN_USERNAME": admin["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_ENABLE_WORKSPACES": "true",
    }
    started.start("--app-name=basic-auth", environment=variables)
    try:
        started.wait_ready()
        for name in TEAMS:
            in_job(started, made, name)
        yield started
    finally:
        started.kill()


def in_job(server: MlflowServer, made: ApiServer, name: str) -> None:
    """Do what a team's Job does."""
    (container,) = job_of(made, name)["spec"]["template"]["spec"]["containers"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        for secret in ("mlflow-admin", f"team-{name}"):
            for variable, value in made.secrets[f"wukong/{secret}"].items():
                patch.setenv(variable, value)
        assert cluster.main(container["command"][3:]) == 0


@pytest.fixture(scope="module")
def recorded(made: ApiServer, tracking: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What MLflow has of each team, after both have run an experiment of the same name and registered its model."""
    return {name: run_of(made, tracking, name, tmp_path_factory.mktemp(name)) for name in TEAMS}


def run_of(made: ApiServer, server: MlflowServer, name: str, folder: Path) -> dict[str, str]:
    import measured
    from test_mlflow_users import become, experiment_at, finished

    from wukong.registry import aliases
    from wukong.tracking import mlflow_runs, stage_results
    from wukong.tracking.mlflow_rest import Server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        patch.setenv("MLFLOW_WORKSPACE", name)
        experiment = experiment_at(folder, "same")
        become(made.secrets[f"{name}/runs-mlflow"], patch)
        with mlflow_runs.stage_run(experiment, "first", "finetune") as run_id:
            model = finished(experiment, "finetune")
            stage_results.log_stage(run_id, model)
        with mlflow_runs.stage_run(experiment, "first", "evaluate") as evaluate_id:
            half = measured.searched("new", np.arange(400) % 2 == 0)
            evaluation = measured.evaluation(experiment.root, [half], [model])
            stage_results.log_stage(evaluate_id, evaluation)
        become(made.secrets[f"{name}/wukong-mlflow"], patch)
        with mlflow_runs.stage_run(experiment, "first", "register", needed=True) as register_id:
            assert aliases.register(experiment, str(register_id), model, evaluation)["promoted"] == 1
        found = Server()
        run = found.run(str(run_id))
        secret = f"workspaces/{name}/"
        found.write_file(run, "secret.txt", secret.encode())
        return {
            "workspace": name,
            "experiment": run.experiment_id,
            "run": run.run_id,
            "name": "same",
            "artifacts": run.artifacts.removeprefix("mlflow-artifacts:/"),
            "secret": secret,
            "model": model.uri,
        }


@pytest.mark.long
@pytest.mark.parametrize(("own", "other"), [TEAMS, TEAMS[::-1]])
def test_no_user_of_a_team_reaches_anything_of_another_in_mlflow(
    made: ApiServer, tracking: MlflowServer, recorded: Mapping[str, Mapping[str, str]], own: str, other: str
) -> None:
    done = {
        secret: trespass.mlflow(tracking.address, made.secrets[f"{own}/{secret}"], own, recorded[other])
        for secret in ("wukong-mlflow", "runs-mlflow", "search-mlflow")
    }
    assert {secret: [what for what, seen in tried.items() if seen] for secret, tried in done.items()} == {
        secret: [] for secret in done
    }
    assert rows("of the other team's runs and models") == done["wukong-mlflow"].keys()


@pytest.mark.long
def test_each_team_has_its_own_of_the_same_name(
    made: ApiServer,
    tracking: MlflowServer,
    recorded: Mapping[str, Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from test_mlflow_users import become

    from wukong.tracking.mlflow_rest import Server

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
    for name in TEAMS:
        monkeypatch.setenv("MLFLOW_WORKSPACE", name)
        become(made.secrets[f"{name}/wukong-mlflow"], monkeypatch)
        assert Server().model_tags("same", "@champion")["wukong.model"] == recorded[name]["model"]
        assert (
            Server().read_file(Server().run(recorded[name]["run"]), "secret.txt").decode() == recorded[name]["secret"]
        )
    assert recorded["vision"]["experiment"] != recorded["speech"]["experiment"]


@pytest.mark.long
def test_a_team_does_with_its_own_what_it_may_not_do_with_anothers(
    made: ApiServer, tracking: MlflowServer, recorded: Mapping[str, Mapping[str, str]]
) -> None:
    """So what is refused above is not refused for another reason. It comes last: its model and its run are changed."""
    done = trespass.mlflow(tracking.address, made.secrets["vision/wukong-mlflow"], "vision", recorded["vision"])
    assert {what for what, succeeded in done.items() if not succeeded} == {"becomes a user of the workspace"}
