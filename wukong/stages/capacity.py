"""What stages run on: this machine, or the pods of an installation."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A machine: bytes of memory, cores, GPUs, and bytes free where an experiment writes."""

    memory: int
    cores: int
    gpus: int
    free: int

    @classmethod
    def here(cls, folder: Path) -> "Machine":
        """Return this machine, with the disk of a folder, which need not exist yet."""
        while not folder.exists():
            folder = folder.parent
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpus = sum(name.name.removeprefix("nvidia").isdigit() for name in Path("/dev").glob("nvidia[0-9]*"))
        return cls(min(memory, _limit_of_group()), os.cpu_count() or 1, gpus, shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class Pods:
    """What the pods of a stage have, for each of its workers.

    Attributes:
        workers: their number.
        cores: of each.
        gpus: of each, where the stage runs a model.
        memory: bytes of each; None if they are not known, like those below.
        shared_memory: bytes of ``/dev/shm``.
        disk: bytes of temporary files.
    """

    workers: int
    cores: int = 1
    gpus: int = 0
    memory: int | None = None
    shared_memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Capacity:
    """What the stages run on.

    Attributes:
        cores: number of cores of a stage that ``pods`` does not name.
        pods: those of the stages.
        head_memory: bytes of the pod in which a stage's driver runs; None if it is not known.
        store: bytes that the object store holds; None if it is not known.
        sized_for: number of URLs that all of this is for; None if it does not say.
        gpus_per_pod: GPUs of a training's pod, or "node" for as many as a node has; None if it is not known.
        prices: the operator's, as ``wukong.stages.prices`` reads them; empty if there are none.
    """

    cores: int
    pods: Mapping[str, Pods] = field(default_factory=dict)
    head_memory: int | None = None
    store: int | None = None
    sized_for: int | None = None
    gpus_per_pod: int | str | None = None
    prices: str = ""

    def of(self, stage: str) -> int:
        """Number of cores of a stage."""
        return max(pods.workers * pods.cores if (pods := self.pods.get(stage)) else self.cores, 1)

    def gpus(self, stage: str) -> int:
        """Number of GPUs of a stage that does not train."""
        return pods.workers * pods.gpus if (pods := self.pods.get(stage)) else 0

    def held_memory(self, stage: str) -> int:
        """Bytes of all pods of a stage with the head's; 0 if they are not known."""
        pods = self.pods.get(stage)
        return pods.workers * (pods.memory or 0) + (self.head_memory or 0) if pods else 0


def _limit_of_group() -> int:
    """Return the bytes that this process's control group may use, as in a container; 2**62 without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return 2**62
