"""Check signatures of the images that an overlay or a cluster runs: ``python -m infra.images.verify --key PUBLIC ...``.

Each image must be named by digest, and have a signature, a list of its content and the provenance that
``infra.images.sign`` gives, by the key. ``--write`` then writes the patch with these digests for the component
``k8s/components/signed-images``, whose policy admits no others.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infra.images import cosign, docker, provenance
from wukong.commands.output import echo, print_data
from wukong.errors import ConfigError, StackError, WukongError
from wukong.runs import origin
from wukong.runtime.language import translated
from wukong.stages import overlay

_EXACT = re.compile(r"[^@\s]+@(?P<digest>sha256:[0-9a-f]{64})")
_KINDS = (
    *(("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("batch/v1", "CronJob")),
    *(("ray.io/v1", "RayJob"), ("ray.io/v1", "RayService"), ("v1", "Pod")),
)
_ENDED = ("Succeeded", "Failed")
_ENDED_JOB = ("Complete", "Failed", "ValidationFailed")
_COMPONENT = "pipelines.kubeflow.org/v2_component=true"
_LAUNCHER = "kfp-launcher"  # what a component starts with, and KFP's driver of one does not
_LIST = "/spec/variables/0/expression"  # of the policy


def images_of(manifests: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the images that manifests name, also in YAML texts of ConfigMaps and in compiled pipelines.

    Of a pod's container that has started it is what has been started.
    """
    return {image for manifest in manifests for image in _images(manifest)}


def _images(value: Any) -> Iterator[str]:
    match value:
        case {"kind": "Pod", "spec": spec, "status": dict() as status}:
            if status.get("phase") not in _ENDED:
                started = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
                identities = {each["name"]: each.get("imageID", "") for each in started}
                for container in [*spec.get("initContainers", []), *spec["containers"]]:
                    yield _started(container["image"], identities.get(container["name"], ""))
        case {"kind": "RayJob", "status": {"jobDeploymentStatus": state}} if state in _ENDED_JOB:
            pass  # it is kept for a while after its end
        case {"kind": "ConfigMap", "data": texts}:
            for name, text in texts.items():
                if name.endswith(".yaml"):
                    yield from _images(yaml.safe_load(text))
        case dict():
            for name, entry in value.items():
                if name == "image" and isinstance(entry, str):
                    yield entry
                elif name != "status":
                    yield from _images(entry)
        case list():
            for entry in value:
                yield from _images(entry)


def _started(image: str, identity: str) -> str:
    return image if _EXACT.fullmatch(image) else origin.reference(image, identity)


def of_cluster(namespace: str, kfp_namespace: str) -> set[str]:
    """Return the images that the objects and pods of the kubeconfig's cluster name.

    Args:
        namespace: where the platform runs.
        kfp_namespace: where components run; of their pods, Kubeflow's own containers do not count.

    Raises:
        StackError: there is no kubeconfig, or the cluster does not answer or refuses.
    """
    from infra.cluster_api import Cluster  # takes a while

    cluster = Cluster()
    pods = cluster.items("v1", "Pod", kfp_namespace, _COMPONENT)
    components = [
        pod for pod in pods if any(each["name"] == _LAUNCHER for each in pod["spec"].get("initContainers", []))
    ]
    for pod in components:
        pod["spec"] = {"containers": [each for each in pod["spec"]["containers"] if each["name"] == "main"]}
    found = [each for version, kind in _KINDS for each in cluster.items(version, kind, namespace)]
    job = cluster.get("v1", "ConfigMap", "ray-job", namespace)
    return images_of([*found, *([job] if job else []), *components])


def check(image: str, key: str, kept_at: Mapping[str, str]) -> str:
    """Check what is signed of an image, and return what it is: the revision, and how much is listed in it.

    Args:
        image: its name, with the digest.
        key: the public key, a file.
        kept_at: beginnings of names, and what stands in their place where the signatures lie.

    Raises:
        StackError: it is not named by digest, or something is missing or not signed by the key.
    """
    if not _EXACT.fullmatch(image):
        raise StackError(f"{image} is not named by digest (python -m infra.pin_images)")
    where = next((there + image.removeprefix(name) for name, there in kept_at.items() if image.startswith(name)), image)
    # cosign drops no tag before a digest, and some registries refuse both.
    where = f"{docker.repository(where)}@{where.partition('@')[2]}"
    cosign.check_signature(where, key)
    content = cosign.attested(where, key, cosign.SBOM)
    made = cosign.attested(where, key, cosign.PROVENANCE)
    return f"signed, revision {provenance.source_of(made)[:12]}, {len(content.get('components', []))} packages listed"


def patch(listed: Mapping[str, str]) -> str:
    """Return the patch of the policy, as kustomize and ``kubectl patch --type=json`` take it.

    Args:
        listed: images, named by digest, and what each is.
    """
    digests = {image.partition("@")[2]: f"{image.partition('@')[0]}: {says}" for image, says in listed.items()}
    value = json.dumps(dict(sorted(digests.items())), indent=1)
    return yaml.safe_dump([{"op": "replace", "path": _LIST, "value": value}], width=1000, sort_keys=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.images.verify", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--key", required=True, help=translated("the public key, a file"))
    parser.add_argument(
        "--overlay",
        type=Path,
        action="append",
        default=[],
        metavar="PLACE",
        help=translated("an installation: a folder that kustomize builds, or a file of its output; repeatable"),
    )
    parser.add_argument(
        "--pipelines", type=Path, action="append", default=[], metavar="FOLDER", help=translated("compiled pipelines")
    )
    parser.add_argument(
        "--cluster", action="store_true", help=translated("what the kubeconfig's cluster runs and names")
    )
    parser.add_argument("--namespace", default="wukong", help=translated("of the platform (default: wukong)"))
    parser.add_argument("--kfp-namespace", default="kubeflow", help=translated("of components (default: kubeflow)"))
    parser.add_argument(
        "--image", action="append", default=[], help=translated("a further image that must be signed; repeatable")
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="IMAGE@DIGEST",
        help=translated("an image of others, which you admit without a signature; repeatable"),
    )
    parser.add_argument(
        "--kept-at",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help=translated("signatures of images whose names begin with NAME lie at PLACE instead; repeatable"),
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help=translated("write the patch for the policy"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the images, and print what each is; 1 if one is not signed as it should be."""
    parser = _parser()
    options = parser.parse_args(arguments)
    kept_at = dict(each.split("=", 1) for each in options.kept_at if "=" in each)
    if len(kept_at) < len(options.kept_at):
        parser.error("--kept-at: write NAME=PLACE")
    wrong: list[str] = []
    listed: dict[str, str] = {}
    try:
        images = {*options.image}
        for place in options.overlay:
            images |= images_of(overlay.manifests(place))
        for folder in options.pipelines:
            images |= images_of(each for file in sorted(folder.glob("*.yaml")) for each in overlay.manifests(file))
        if options.cluster:
            images |= of_cluster(options.namespace, options.kfp_namespace)
        if not images:
            parser.error("name what to check: --overlay, --pipelines, --cluster or --image")
        for image in options.also:
            if not _EXACT.fullmatch(image):
                raise ConfigError(f"--also: {image} is not named by digest")
            listed[image] = "not signed, admitted by name"
    except WukongError as error:
        echo(f"error: {error}", err=True)
        return 1
    digests = {image.partition("@")[2] for image in listed}
    for image in sorted(images):
        if image.partition("@")[2] in digests:
            continue
        try:
            listed[image] = check(image, options.key, kept_at)
        except StackError as error:
            wrong.append(image)
            echo(f"error: {error}", err=True)
    for image, says in listed.items():
        print_data(f"{image}: {says}")
    if wrong:
        echo(f"error: {len(wrong)} of {len(images)} images are not signed; nothing is written", err=True)
        return 1
    if options.write:
        options.write.write_text(patch(listed), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
