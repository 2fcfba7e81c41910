"""What an overlay gives the stages, read from the manifests that kustomize makes of this repository's overlays."""

import shutil
from pathlib import Path

import pytest
from kubernetes.utils import parse_quantity

from wukong.config import documents
from wukong.config.decontaminate import Decontaminate
from wukong.config.filter import Filter
from wukong.errors import ConfigError
from wukong.stages import overlay

OVERLAYS = Path(__file__).parents[3] / "k8s" / "overlays"
GIB = 2**30


@pytest.mark.skipif(not (shutil.which("kubectl") or shutil.which("kustomize")), reason="neither kubectl nor kustomize")
def test_the_pods_of_an_overlay_are_read_through_its_patches() -> None:
    crawl = {"queries": "s3://wukong/queries.txt", "endpoint": "https://search.invalid"}
    training = {"workers": 5, "batch_size": 10}
    experiment = documents.parse({"name": "x", "crawl": crawl, "pretrain": training})
    found = overlay.read(OVERLAYS / "gpu", experiment)
    assert (found.of("crawl"), found.of("validate"), found.of("pretrain")) == (8 * 4, 4 * 4, 5 * 12)
    assert found.of("register") == 1
    assert (found.head_memory, found.pods["pretrain"].memory) == (8 * GIB, 96 * GIB)
    assert (found.pods["pretrain"].shared_memory, found.held_memory("crawl")) == (30 * GIB, (8 * 8 + 8) * GIB)
    assert found.sized_for == 166_000_000
    assert (found.gpus("evaluate"), found.gpus("filter")) == (1, 0)
    assert (found.pods["crawl"].disk, found.pods["pretrain"].disk) == (10 * GIB // 4, 10 * GIB), "a task on each core"
    on_gpus = documents.parse({"name": "x", "crawl": crawl, "pretrain": training | {"gpus_per_worker": 1}})
    shared = overlay.read(OVERLAYS / "gpu", on_gpus).pods["pretrain"].disk
    assert shared is None, "how many workers share the files of a pod, the nodes decide"
    marked = experiment.model_copy(update={"filter": Filter(decontaminate=Decontaminate(hashes=("s3://b/h",)))})
    assert overlay.read(OVERLAYS / "gpu", marked).gpus("filter") == 8
    kind = overlay.read(OVERLAYS / "kind", experiment)
    assert (kind.store, kind.pods["pretrain"].disk) == (60 * 256 * 2**20, 10 * GIB)
    assert overlay.read(OVERLAYS / "external-s3", experiment).store is None, "another store does not say what it holds"


@pytest.mark.parametrize(
    "quantity", ["500Gi", "12Ti", "1.5G", "77", "500m", "0.1", ".5", "3u", "7n", "2k", "1e3", "1E", "12E-1", "4Ei", 8]
)
def test_quantities_are_kubernetes(quantity: str) -> None:
    """As Kubernetes' own client for Python reads them."""
    assert overlay.amount_of(quantity) == parse_quantity(quantity)


@pytest.mark.parametrize("quantity", ["", "5 GB", "Gi", "-5Gi", "5gi", "5Ki5", "1..5", "5mi", "٥"])
def test_other_quantities_are_refused(quantity: str) -> None:
    with pytest.raises(ConfigError, match="500Gi or 12Ti"):
        overlay.amount_of(quantity)


def test_manifests_without_the_sizes_of_pods_are_refused(tmp_path: Path) -> None:
    crawl = {"queries": "s3://wukong/queries.txt", "endpoint": "https://search.invalid"}
    experiment = documents.parse({"name": "x", "crawl": crawl})
    (tmp_path / "other.yaml").write_text("kind: ConfigMap\nmetadata: {name: ray-job, namespace: other}\ndata: {}\n")
    with pytest.raises(ConfigError, match="no ConfigMap ray-job in the namespace wukong"):
        overlay.read(tmp_path / "other.yaml", experiment)
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        overlay.read(tmp_path / "broken.yaml", experiment)
