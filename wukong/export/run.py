"""Export a model to a target: refuse what it cannot hold, write beside the folder, check, and put it in its place."""

from dataclasses import asdict, replace
from pathlib import Path

from wukong.errors import ConfigError
from wukong.export.folder import whole
from wukong.export.target import Check, Options, Target
from wukong.export.targets import REGISTRY
from wukong.model.saved_model import EXPORT_RECORD, SavedModel
from wukong.runtime import installed
from wukong.store import storage

FORMAT = 1


def export(saved: SavedModel, target: str, folder: Path, options: Options | None = None) -> list[Check]:
    """Write a model as the folder that another project's loader opens.

    The files are written into a folder beside ``folder``, which takes its place only when all of them are written and
    compared. So a folder is a whole export or is not there. An earlier export in ``folder`` is replaced.

    Args:
        saved: the model, with its image tower, on the CPU.
        target: a name of ``wukong.export.targets``.
        folder: where the files are written; its parents are created.
        options: what is asked besides.

    Returns:
        What was compared, and with what result.

    Raises:
        ConfigError: there is no such target, a package that it needs is not installed, it cannot hold this model, or
            ``folder`` holds files of something else.
        DataError: the exported model is not equal to the model.
    """
    if target not in REGISTRY:
        raise ConfigError(f"--to: there is no target {target!r}; allowed are {', '.join(REGISTRY)}")
    if saved.model.image is None:
        raise ValueError("this model holds no image tower: load it with wukong.load")
    chosen, asked = REGISTRY[target], replace(options or Options(), folder=folder.resolve(), targets=REGISTRY)
    chosen.refuse_missing()
    if why := chosen.refuse(saved, asked):
        raise ConfigError(f"{target} cannot hold this model: {why}")
    with whole(folder, EXPORT_RECORD) as written:
        checks = chosen.write(saved, written, asked)
        _record(written, chosen, checks)
    return checks


def _record(folder: Path, target: Target, checks: list[Check]) -> None:
    record = {
        "format": FORMAT,
        "target": target.name,
        "wukong": installed.version(),
        "checks": [asdict(check) for check in checks],
    }
    storage.write_json(storage.from_path(folder / EXPORT_RECORD), record)
