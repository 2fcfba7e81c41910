"""Two teams before the real API servers of Kubernetes and of KFP in multi-user mode: what is refused, what is not."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kfp_server
import kube_api_server
import pytest
import requests
import trespass
from kube_api_server import Server
from manifests import plain
from test_team import TEAMS, rows

from cli import kfp_api, submit
from cli.run_result import SubmitError
from infra import cluster, team
from infra.team import Quota

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]

AUDIENCE = "pipelines.kubeflow.org"
EXPERIMENT = Path(__file__).parents[1] / "cluster" / "experiment.yaml"
_MADE_FIRST = ("Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "StatefulSet")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster with the installation's objects, as far as a team is made of them, and both teams."""
    with (
        kube_api_server.running(tmp_path_factory.mktemp("kubernetes")) as api,
        pytest.MonkeyPatch.context() as patch,
    ):
        for namespace in ("kubeflow", "kube-system"):
            api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, dry_run=False)
        for manifest in copy.deepcopy(list(plain())):  # other tests read what was remembered
            if manifest["kind"] in _MADE_FIRST or manifest["kind"] in ("Deployment", "Job"):
                if manifest["metadata"]["name"] == "mlflow" and manifest["kind"] == "Deployment":
                    container = manifest["spec"]["template"]["spec"]["containers"][0]
                    container["env"].append({"name": "MLFLOW_ENABLE_WORKSPACES", "value": "true"})
                assert api.create(manifest, dry_run=False) == ""
        path = api.kubeconfig(tmp_path_factory.mktemp("admin") / "kubeconfig")
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        cluster.make_credentials("wukong", "kubeflow")
        patch.setattr("infra.team._run_in_cluster", lambda *_: None)  # nobody runs Jobs here
        for name in TEAMS:
            team.make(name, Quota())
        yield api


@pytest.fixture(scope="module")
def kfp(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with kfp_server.running(server, tmp_path_factory.mktemp("kfp")) as address:
        yield address


def token_of(server: Server, namespace: str, account: str, audience: str = AUDIENCE) -> str:
    """What `kubectl create token` gives."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]}}
    return str(server.ask("POST", path, body)["status"]["token"])


@pytest.fixture(scope="module")
def submitted(server: Server, kfp: str) -> dict[str, dict[str, str]]:
    """What each team has, after both have submitted the same pipeline with the same experiment."""
    return {name: submit_as(kfp, token_of(server, name, "submitter"), name) for name in TEAMS}


def submit_as(address: str, token: str, name: str) -> dict[str, str]:
    api = kfp_api.Pipelines(address, token, name)
    prepared = submit.prepare("data", EXPERIMENT, name="same")
    version = api.upload(prepared.file)
    assert api.upload(prepared.file) == version, "it is found again"
    run = api.start("same", "same", version, prepared.values)
    recurring = api.schedule("same", "same", version, prepared.values, "7d")
    headers = {"Authorization": f"Bearer {token}"}
    found = requests.get(f"{address}/apis/v2beta1/runs/{run.identity}", headers=headers, timeout=60).json()
    ids = dict(zip(("pipeline", "version"), version, strict=True))
    return {"run": run.identity, "experiment": found["experiment_id"], "recurring": recurring.identity, **ids}


def test_both_submit_the_same_pipeline_and_each_has_its_own(
    server: Server, submitted: Mapping[str, Mapping[str, str]]
) -> None:
    for what in ("run", "experiment", "pipeline", "version", "recurring"):
        assert len({each[what] for each in submitted.values()}) == 2, what
    for name in TEAMS:
        (workflow,) = server.ask("GET", f"/apis/argoproj.io/v1alpha1/namespaces/{name}/workflows")["items"]
        assert workflow["metadata"]["labels"]["pipeline/runid"] == submitted[name]["run"]
        assert workflow["spec"]["serviceAccountName"] == "default-editor"


@pytest.mark.parametrize(("own", "other"), [TEAMS, TEAMS[::-1]])
@pytest.mark.parametrize("account", ["submitter", "default-editor"])
def test_no_token_of_a_team_reaches_anything_of_another_in_kfp(
    server: Server, kfp: str, submitted: Mapping[str, Mapping[str, str]], own: str, other: str, account: str
) -> None:
    done = trespass.kfp(kfp, token_of(server, own, account), other, submitted[other])
    assert [what for what, succeeded in done.items() if succeeded] == []
    assert rows("of the other team's pipelines and runs in KFP") == done.keys()


def test_a_team_does_with_its_own_what_it_may_not_do_with_anothers(server: Server, kfp: str) -> None:
    """So what is refused above is not refused for another reason. No header says who somebody is."""
    team.make("own", Quota())
    token = token_of(server, "own", "submitter")
    theirs = submit_as(kfp, token, "own")
    done = trespass.kfp(kfp, token, "own", theirs)
    assert {what for what, succeeded in done.items() if not succeeded} == {"says in a header who it is"}


@pytest.mark.parametrize("account", ["submitter", "default-editor", "ray"])
@pytest.mark.parametrize(("own", "other"), [TEAMS, TEAMS[::-1], ("vision", "wukong"), ("vision", "kubeflow")])
def test_no_account_of_a_team_may_do_anything_in_another_namespace(
    server: Server, own: str, other: str, account: str
) -> None:
    def may(attributes: Mapping[str, str]) -> bool:
        spec = {"resourceAttributes": dict(attributes), "user": f"system:serviceaccount:{own}:{account}"}
        spec["groups"] = ["system:serviceaccounts", f"system:serviceaccounts:{own}", "system:authenticated"]
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        return bool(server.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)["status"]["allowed"])

    done = trespass.kubernetes(may, other)
    assert [what for what, allowed in done.items() if allowed] == []
    assert rows("in the other team's namespace") == done.keys()
    # The same questions are not answered "no" for everybody.
    home = trespass.kubernetes(may, own)
    look = {"reads a Secret", "reads a setting", "reads a log", "looks at RayJobs"}
    able = {"submitter": look | {"takes a token"}, "default-editor": look | {"makes a RayJob", "makes a workflow"}}
    assert {what for what, allowed in home.items() if allowed} == able.get(account, set())


def test_a_token_for_another_service_is_refused(
    server: Server, kfp: str, submitted: Mapping[str, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes = token_of(server, "vision", "submitter", "https://kubernetes.default.svc")
    prepared = submit.prepare("data", EXPERIMENT, name="other")
    for token in (kubernetes, "no token", None):
        with pytest.raises(SubmitError, match=r"it refuses \(401\).*WUKONG_KFP_TOKEN"):
            kfp_api.Pipelines(kfp, token, "vision").upload(prepared.file)


def test_what_submit_says_of_another_teams_namespace(
    server: Server, kfp: str, submitted: Mapping[str, Mapping[str, str]]
) -> None:
    prepared = submit.prepare("data", EXPERIMENT, name="other")
    with pytest.raises(SubmitError, match=r"it refuses \(403\).*--namespace"):
        kfp_api.Pipelines(kfp, token_of(server, "vision", "submitter"), "speech").upload(prepared.file)


def test_a_token_in_a_file_is_read_when_it_is_renewed(
    server: Server, kfp: str, submitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(token_of(server, "vision", "submitter"), encoding="ascii")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    api = kfp_api.Pipelines(kfp, None, "vision")
    prepared = submit.prepare("data", EXPERIMENT, name="other")
    assert api.upload(prepared.file)[0] == submitted["vision"]["pipeline"]
    file.write_text("one that has expired", encoding="ascii")
    with pytest.raises(SubmitError, match="401"):
        api.upload(prepared.file)


def test_a_real_server_is_left_as_it_is_by_a_second_run(server: Server) -> None:
    def versions() -> dict[str, str]:
        kinds = ("secrets", "configmaps", "serviceaccounts", "resourcequotas", "limitranges")
        paths = [f"/api/v1/namespaces/{name}/{kind}" for name in ("vision", "wukong") for kind in kinds]
        paths += ["/apis/rbac.authorization.k8s.io/v1/namespaces/vision/roles"]
        paths += ["/apis/networking.k8s.io/v1/namespaces/vision/networkpolicies"]
        found = [item["metadata"] for path in paths for item in server.ask("GET", path)["items"]]
        return {f"{each['namespace']} {each['name']} {each['uid']}": each["resourceVersion"] for each in found}

    before = versions()
    assert len(before) > 50
    team.make("vision", Quota())
    assert versions() == before
