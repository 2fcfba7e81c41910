"""Where a run came from: the revision of its config, the code that submitted it, and the images that ran it.

Whoever submits a run makes a ``Source`` and hands it on as the pipeline's parameter ``source``. The run's first
component stores it beside the records, with the revision of its own image. A name of an image may lead to another image
later, so those that see the pods of a run write down which images these have had.
"""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from wukong.config.experiment import Experiment
from wukong.runtime import git
from wukong.stages.run_paths import uri_of
from wukong.store import storage
from wukong.store.manifest import code_revision, digest_of

FILE = "origin.json"
"""Beside the records of a run."""

COMPONENTS = "components"
"""Stands for the components beside the names of stages, as the user of an image."""

IMAGES = "images"
"""Folder beside the records, with the references of the images that pods have run."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CI = (
    ("CI_PROJECT_DIR", ("CI_PROJECT_URL",), "CI_COMMIT_SHA"),  # GitLab
    ("GITHUB_WORKSPACE", ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"), "GITHUB_SHA"),
)
"""Variables by which services of CI say where a checkout lies, what its address is, and what was checked out."""


class Source(BaseModel):
    """What was submitted. A text is empty if it is not known.

    Attributes:
        repository: address of the repository that the config is in, without credentials.
        revision: of that repository, in full.
        dirty: whether the config, or another file that git knows, differs from that revision; None if it is not known.
        file: path of the config in the repository.
        overrides: ``key.path=value`` entries that were applied to it.
        params: ``name=value`` entries, further parameters of the pipeline.
        digest: of the experiment that all these make.
        code: revision of the Wukong that submitted it.
        pipeline: name of the pipeline.
        version: of the pipeline, a digest of its file.
    """

    model_config = ConfigDict(frozen=True)

    repository: str = ""
    revision: str = ""
    dirty: bool | None = None
    file: str = ""
    overrides: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    digest: str = ""
    code: str = ""
    pipeline: str = ""
    version: str = ""


class Origin(Source):
    """What is stored of a run.

    Attributes:
        image_revision: revision of the image of the run's components.
    """

    image_revision: str = ""

    @property
    def difference(self) -> str:
        """A sentence, if the run was submitted by another revision than that of the image of its components."""
        if not self.code or self.image_revision in ("", self.code):
            return ""
        return (
            f"The run was submitted by revision {self.code} of Wukong, and the image of its components has revision "
            f"{self.image_revision}: compile and submit the pipelines of the images that are installed."
        )


def own_revision() -> str:
    """Return the revision of this code; empty if it is not known."""
    revision = code_revision()
    return "" if revision == "unknown" else revision


def of_file(file: Path, overrides: Sequence[str] = ()) -> Source:
    """Return where a config comes from, as git says; without git, as the variables of GitLab CI or GitHub Actions."""
    file = file.resolve()
    known = {"overrides": tuple(overrides), "code": own_revision()}
    top, revision = git.ask(file.parent, "rev-parse", "--show-toplevel"), git.ask(file.parent, "rev-parse", "HEAD")
    if top and revision:
        has_file = git.ask(file.parent, "ls-files", "--error-unmatch", file.name) is not None
        return Source(
            repository=_without_credentials(git.ask(file.parent, "remote", "get-url", "origin") or ""),
            revision=revision,
            dirty=git.is_changed(Path(top)) if has_file else True,
            file=file.relative_to(Path(top).resolve()).as_posix(),
            **known,
        )
    for folder, address, commit in _CI:
        checkout = Path(os.environ.get(folder) or file).resolve()
        if checkout in file.parents:
            return Source(
                repository=_without_credentials("/".join(os.environ.get(name, "") for name in address)),
                revision=os.environ.get(commit, ""),
                file=file.relative_to(checkout).as_posix(),
                **known,
            )
    return Source(**known)


def digest_of_experiment(experiment: Experiment) -> str:
    """Return a digest of an experiment, in which keys that have their defaults do not count.

    So the code that submits a run and that of its image agree where one of them has more keys.
    """
    return digest_of(experiment.model_dump(mode="json", exclude_defaults=True))


def store(experiment: Experiment, run: str, source: Source) -> Origin:
    """Write where a run came from beside its records. The calling process has the image of the run's components."""
    origin = Origin(**source.model_dump(), image_revision=own_revision())
    storage.write_json(uri_of(experiment, run, FILE), origin.model_dump(mode="json"))
    return origin


def reference(image: str, identity: str) -> str:
    """Return the name of an image with the digest of what a container has run.

    Args:
        image: its name, with or without a digest.
        identity: the ID that Kubernetes has of it. Of an image from a registry it ends with the registry's digest; of
            one that was loaded into a node, it is the digest of the image's own config.
    """
    found = _DIGEST.search(identity)
    return f"{image.partition('@')[0]}@{found[0]}" if found else image


def store_images(experiment: Experiment, run: str, user: str, name: str, images: Collection[str]) -> None:
    """Write down which images pods have run.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        user: name of the stage's record, or ``COMPONENTS``.
        name: which no other process gives a file of this user.
        images: references.
    """
    storage.write_json(uri_of(experiment, run, f"{IMAGES}/{user}/{name}.json"), sorted(images))


def _without_credentials(address: str) -> str:
    """Return an address as it may be shown: services of CI check out by addresses with a token in them."""
    parts = urlsplit(address)
    if not parts.netloc:
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
