"""Only signed images run: the cluster's own are signed in a registry, and the API server refuses all others.

Needs cosign, crane, a registry that both and the program of ``WUKONG_IMAGES`` (``images``) reach, whose address
``WUKONG_REGISTRY`` has, and nodes whose images have digests as names too, which the program gives them.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import kube
import pytest
import runs
import yaml
from session import State, experiment_of

from infra.images import cosign, provenance, verify

POLICY = Path(__file__).parents[2] / "k8s" / "components" / "signed-images" / "policy.yaml"
NAME = "wukong-signed-images"


@dataclass
class Signed:
    """What is signed.

    Attributes:
        digests: of the images, by the last part of their names.
        pipelines: folder of the pipelines that name them.
        stranger: the digest of an image that is in the registry, changed and not signed.
    """

    digests: dict[str, str]
    pipelines: Path
    stranger: str

    def image(self, name: str) -> str:
        return f"localhost/wukong/{name}@{self.digests[name]}"


def _ran(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout.strip()


@pytest.fixture
def signed(
    services: runs.Services,
    overlay: str,
    search: None,
    versions: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Signed]:
    """The cluster's images in a registry, signed; servers and RayJobs by digest; the policy in force."""
    images.program()
    registry = os.environ.get("WUKONG_REGISTRY")
    missing = [name for name in ("cosign", "crane") if shutil.which(name) is None]
    if missing or not registry:
        pytest.skip(f"needs WUKONG_REGISTRY, and on PATH: {', '.join(missing) or 'nothing more'}")
    monkeypatch.setenv("COSIGN_PASSWORD", "of-the-test")
    _ran("cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / 'key'}")
    digests = {}
    for name in images.NAMES:
        there = f"{registry}/wukong/{name}:0.2.0"
        digests[name] = images.do("push", images.tagged(name), there)
        assert digests[name] == _ran("crane", "digest", there)
        images.do("name", images.tagged(name), f"localhost/wukong/{name}@{digests[name]}")
        _sign(f"{registry}/wukong/{name}@{digests[name]}", str(tmp_path / "key.key"), name, versions["images"])
    made = Signed(digests, images.compiled(tmp_path / "pipelines", f"localhost/wukong/data@{digests['data']}"), "")
    made.stranger = _changed(f"{registry}/wukong/data", digests["data"], tmp_path)
    objects = _by_digest(overlay, made)
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    key = ["--key", str(tmp_path / "key.pub"), "--kept-at", f"localhost/={registry}/"]
    assert verify.main([*key, "--image", f"localhost/wukong/data@{made.stranger}"]) == 1
    asked = ["--overlay", str(tmp_path / "objects.yaml"), "--pipelines", str(made.pipelines)]
    assert verify.main([*key, *asked, "--write", str(tmp_path / "images.yaml")]) == 0
    policy, binding = yaml.safe_load_all(POLICY.read_text(encoding="utf-8"))
    (change,) = yaml.safe_load((tmp_path / "images.yaml").read_text(encoding="utf-8"))
    policy["spec"]["variables"][0]["expression"] = change["value"]
    try:
        kube.apply(policy, binding)
        kube.until("the policy", lambda: _refused(_pod("wukong", images.tagged("data"))), 60, 1)
        kube.apply(*objects)
        kube.rollout("deployment/mlflow")
        yield made
    finally:
        kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
        kube.kubectl("delete", kinds, NAME, "--ignore-not-found")
        kube.kubectl("apply", "-k", overlay)
        kube.rollout("deployment/mlflow")


def _sign(image: str, key: str, name: str, revision: str) -> None:
    """Sign an image, with statements as long as this test needs them: what is in it is another test's."""
    made = provenance.Made(
        *("https://git.example/wukong", revision, False, name, "base", f"sha256:{'0' * 64}"),
        *({}, "", "", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    )
    cosign.attest(image, key, cosign.SBOM, {"bomFormat": "CycloneDX", "specVersion": "1.6"})
    cosign.attest(image, key, cosign.PROVENANCE, provenance.predicate(made))
    cosign.sign(image, key)


def _changed(repository: str, digest: str, folder: Path) -> str:
    """Put a changed image beside a signed one; its digest."""
    there = f"{repository}:changed"
    _ran("crane", "mutate", f"{repository}@{digest}", "--label=changed=yes", f"--tag={there}")
    return _ran("crane", "digest", there)


def _by_digest(overlay: str, signed: Signed) -> list[kube.Object]:
    """The objects of the overlay that name our images, without jobs, by digest."""
    text = kube.kubectl("kustomize", overlay)
    for name in images.NAMES:
        text = re.sub(rf"{re.escape(images.tagged(name))}(-cuda)?\b", signed.image(name), text)
    wanted = (("Deployment", "mlflow"), ("ConfigMap", "ray-job"))
    return [one for one in yaml.safe_load_all(text) if (one["kind"], one["metadata"]["name"]) in wanted]


def _pod(namespace: str, image: str, secret: str = "", **more: Any) -> kube.Object:
    container: dict[str, Any] = {
        "name": "main",
        "image": image,
        "command": ["true"],
        "securityContext": kube.RESTRICTED,
    }
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    spec = {"securityContext": kube.POD, "restartPolicy": "Never", "containers": [container], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried", "namespace": namespace}, "spec": spec}


def _refused(manifest: kube.Object) -> str:
    """What the policy says against an object, if it were made; empty if it is accepted."""
    try:
        kube.kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(manifest))
    except kube.KubectlError as error:
        assert NAME in str(error), error
        return str(error)
    return ""


@pytest.mark.cluster(
    claim="Where the operator's list says so, a pod or RayJob in `wukong`, and a pod of Kubeflow with a credential of "
    "Wukong's, runs signed images alone: a changed one and a name without a digest are refused at admission. The "
    "signed ones run, in servers, components and RayJobs",
    how="the component `signed-images` with the list of `infra.images.verify`, cosign 3 with a key of the test, the "
    "cluster's own images pushed to a registry; refusals by a dry run of the API server; a data run by digest",
)
def test_only_signed_images_run(
    signed: Signed, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    stranger = f"localhost/wukong/data@{signed.stranger}"
    for image in (images.tagged("data"), stranger):
        assert image in _refused(_pod("wukong", image))
        assert image in _refused(_pod("kubeflow", image, "component-crawl-s3"))
        assert _refused(_pod("kubeflow", image)) == "", "other people's pods are none of ours"
    assert _refused(_pod("wukong", signed.image("data"))) == ""
    assert _refused(_pod("kubeflow", signed.image("data"), "component-crawl-s3")) == ""
    quality = 60 + int(stamp) % 35
    made = experiment_of(session_state, f"crawl.jpeg_quality={quality}", "release.files=1")
    run = runs.start(services, made, f"signed-{stamp}", pipeline=str(signed.pipelines / "data"))
    runs.succeed(services, run)
    jobs = runs.ray_jobs(run)
    assert {job["metadata"]["labels"]["wukong/stage"] for job in jobs} >= {"crawl", "filter", "validate"}
    body = {key: jobs[0][key] for key in ("apiVersion", "kind", "spec")}
    head = body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == signed.image("ray")
    head["image"] = stranger
    labels = jobs[0]["metadata"]["labels"]
    again = {**body, "metadata": {"name": "tried", "namespace": "wukong", "labels": labels}}
    assert stranger in _refused(again)
    components = {
        container["image"]
        for pod in runs.component_pods(run)
        for container in pod["spec"]["containers"]
        if container["name"] == "main"
    }
    assert components == {signed.image("data")}
    found.append(f"{len(jobs)} RayJobs and {len(runs.component_pods(run))} components by digest, 5 refusals")
