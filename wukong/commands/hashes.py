"""``wukong hashes``: make the fingerprints of an evaluation set or of a folder of pictures."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import JsonOption, echo, print_json
from wukong.errors import ConfigError
from wukong.runtime import environment
from wukong.store import storage


def hashes(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="Name of an evaluation set (docs/evaluation-sets.md), or a folder of pictures."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where the file is written, a path or a URI.")
    ],
    sets: Annotated[
        Path, typer.Option("--sets", metavar="FOLDER", help="The folder that holds a folder for each set.")
    ] = Path("~/evaluation"),
    split: Annotated[str | None, typer.Option(help="The split; by default the one that is measured.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the file of hashes by which others find a set's pictures and captions in their data, without the set.

    Of each picture it has the PDQ hash, also of the picture mirrored and turned, and its quality; of each caption of a
    retrieval set a hash. Neither pictures nor captions can be made from it. Pictures that cannot be read are counted
    and left out. Example:

        wukong hashes imagenet --sets ~/evaluation --output imagenet-val.parquet

    The file is then named in an experiment, by hashes of filter.decontaminate. docs/overlap.md describes it.
    """
    from wukong.curate import hash_files, pdq
    from wukong.evaluate import fingerprints
    from wukong.evaluate import sets as known

    uri = output if "://" in output else storage.from_path(Path(output))
    environment.use_for(uri)
    if name in known.REGISTRY:
        made = fingerprints.of_set(known.read(name, sets.expanduser(), split))
    elif (folder := Path(name).expanduser()).is_dir():
        if split is not None:
            raise ConfigError(f"--split {split}: {name} is a folder of pictures, which has no splits; leave it out")
        made = fingerprints.of_folder(folder)
    else:
        raise ConfigError(
            f"{name} is neither an evaluation set nor a folder: name a folder of pictures, or one of "
            f"{', '.join(known.REGISTRY)}"
        )
    hash_files.write(uri, made)
    poor = int((made.quality < pdq.MIN_QUALITY).sum())
    if as_json:
        counts = {"pictures": len(made.pictures), "unread": made.unread, "poor": poor, "captions": len(made.captions)}
        print_json({"set": made.name, "split": made.split, "digest": made.digest, "file": uri, **counts})
        return
    echo(f"{output}: {len(made.pictures):,} pictures and {len(made.captions):,} captions of {made.name}")
    if made.unread:
        echo(f"{made.unread:,} pictures could not be read and are missing")
    if poor:
        echo(f"{poor:,} pictures have too little in them (PDQ quality below {pdq.MIN_QUALITY}) to be found")
