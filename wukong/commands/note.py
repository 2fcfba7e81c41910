"""``wukong note``: write a note and tags on a run."""

from typing import Annotated

import typer

from wukong.commands.output import JsonOption, echo, print_data, print_json
from wukong.commands.runs import STORAGE, StorageOption
from wukong.runtime import environment


def note(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The note; an empty text takes it away. Missing: no change.")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Add a tag, or give it another value.")
    ] = None,
    removed: Annotated[list[str] | None, typer.Option("--remove", metavar="KEY", help="Take a tag away.")] = None,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Write a note and tags on a run, and print what is written on it.

    `wukong runs` shows them, and `wukong runs --tag KEY=VALUE` lists the runs that have a tag. MLflow gets them as tags
    of the run. Example:

        wukong note demo-20261126-072750 "twice the batch" --tag purpose=baseline
    """
    from wukong.runs import listing, notes
    from wukong.tracking import mlflow_runs

    given = notes.parse_tags(tags or [])
    environment.use_for(place)
    run = listing.find(name, place)
    written = notes.read(run.uri)
    if text is not None or given or removed:
        taken = {*(removed or [])}
        if unknown := sorted(taken - written.tags.keys()):
            echo(f"not a tag of {name}: {', '.join(unknown)}", err=True)
        written = notes.write(run.uri, text, given, taken)
        mlflow_runs.tag_run(run.uri.rsplit("/", 3)[1], name, written.text, given, taken)
    if as_json:
        print_json(written.model_dump(mode="json"))
        return
    for line in [written.text, *notes.in_words(written.tags)]:
        if line:
            print_data(line)
