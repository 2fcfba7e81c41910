"""The fingerprints of published sets, with which the filter compares what would be trained on: a stage for each set.

The key is of the set's files and of the model that makes the vectors, so every filter that asks for the set reads the
same files. A Ray task reads one set.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image

from ray_jobs import gpus, packing
from ray_jobs.exchange import run_all
from wukong.config.decontaminate import made_by
from wukong.config.experiment import Experiment
from wukong.config.filter import Filter
from wukong.curate import hash_files, picture_vectors
from wukong.curate.alignment import thumbnail
from wukong.curate.overlap import Tests
from wukong.evaluate import fingerprints, packed
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

_HASHES, _THUMBNAILS = "fingerprints.parquet", "thumbnails.parquet"


def made(experiment: Experiment) -> list[Manifest]:
    """Make the fingerprints of the published sets that the filter is to compare with; those that are there stay.

    Raises:
        DataError: a set cannot be read.
        ConfigError: the model that makes the vectors cannot be used.
    """
    stages = {name: places.fingerprints(experiment, name) for name in places.decontaminated_sets(experiment)}
    return [stage.made(partial(_make, experiment, name, stage)) for name, stage in stages.items()]


def read(made: Manifest) -> Tests:
    """Read what ``made`` has made of a set."""
    uri, sha256 = made.file(_THUMBNAILS)
    small = storage.read_table(uri, sha256=sha256)
    return Tests.of(hash_files.read(*made.file(_HASHES)), small["thumbnail"].to_pylist())


def _make(experiment: Experiment, name: str, stage: Stage) -> Manifest:
    made = packing.made(experiment, [(name, None)], {name: stage.config["digest"]}).get(name)
    work = (stage, experiment.evaluate.sets, name, made, experiment.filter, gpus.count() > 0)
    (record,) = run_all(_read_set, [work], int(gpus.count() > 0))
    if unread := record["unread"]:
        log.warning(f"{unread:,} pictures of {name} cannot be read, and nothing is compared with them")
    return stage.commit([Part.model_validate(part) for part in record["parts"]], counts={"unread": unread})


def _read_set(
    stage: Stage, root: str, name: str, made: Manifest | None, settings: Filter, on_gpu: bool
) -> dict[str, Any]:
    device, small = gpus.of_task() if on_gpu else "cpu", list[bytes]()
    has_vectors = settings.decontaminate is not None and settings.decontaminate.min_cosine is not None

    def look(images: Sequence[Image.Image]) -> picture_vectors.Vectors:
        small.extend(map(thumbnail, images))
        return picture_vectors.encode(images, settings.vector_model, device)

    maker = (look, made_by(settings.vector_model)) if has_vectors else ()
    found = fingerprints.of_set(packed.data(root, name, None, made), *maker)
    hash_files.write(stage.path(_HASHES), found)
    storage.write_table(stage.path(_THUMBNAILS), pa.table({"thumbnail": pa.array(small, pa.binary())}))
    parts = [stage.describe(path, len(found.pictures)) for path in (_HASHES, _THUMBNAILS)]
    return {"parts": [part.model_dump() for part in parts], "unread": found.unread}
