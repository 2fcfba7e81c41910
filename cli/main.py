"""The platform's commands of ``wukong``, added to those of the library (``wukong.commands``)."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import check, embedded_sets, logs, release, reproduce, submit_command, summary, sweep, takedown
from ray_jobs.launch import evaluate_champion
from wukong.commands import evaluate, panels, promote
from wukong.commands.app import DEMO, SetOption, app
from wukong.commands.app import run_app as main
from wukong.commands.output import JsonOption, echo, print_data, print_json
from wukong.config import documents
from wukong.errors import StackError
from wukong.runtime import environment
from wukong.runtime.language import _

app.info.epilog = _(
    "Begin with `wukong run`: it starts a local object store, MLflow and Ray, and runs the whole workflow. "
    "`wukong COMMAND --help` explains one command, with an example."
)
evaluate.fetched = embedded_sets.fetched
promote.evaluated = evaluate_champion


class Runner(StrEnum):
    """Where the components and Ray of a local run work."""

    PROCESS = "process"
    DOCKER = "docker"


@app.command(rich_help_panel=panels.TRAIN)
def run(
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The experiment, a YAML file; by default configs/demo.yaml, with --data configs/own-data.yaml. With "
            "--data a file without a `name` says what differs from that one.",
        ),
    ] = None,
    overrides: SetOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER_OR_LIST",
            help="Train on pictures of your own: a folder with captions beside them, a CSV of paths or URLs and "
            "captions, or a folder of such CSVs. docs/own-data.md.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print what would be done and what is reused, and stop."),
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; by default experiment and time.")] = None,
    corpus_size: Annotated[
        int | None,
        typer.Option("--corpus-size", min=50, help="Serve a fixed sample of the demo corpus of about this size."),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Fetch again what failed in this experiment's last crawl, and only that."),
    ] = False,
    runner: Annotated[
        Runner,
        typer.Option(
            "--runner",
            help="Where components and Ray run: in processes of this environment, or in containers of the images that "
            "`make images` builds.",
        ),
    ] = Runner.PROCESS,
) -> None:
    """Run the whole workflow on this machine: crawl, filter, validate, pre-train, fine-tune, evaluate, register.

    Starts the embedded stack when it is not running and leaves it running, so that MLflow can be looked at afterwards;
    `wukong down` ends it. Stages whose inputs have not changed since an earlier run are reused. Example:

        wukong run --config configs/demo.yaml --set pretrain.epochs=3

        wukong run --data ~/pictures
    """
    from cli import own_data
    from cli.run import run_local

    if data is None:
        experiment = documents.load(config_file or DEMO, overrides)
    else:
        experiment = own_data.experiment_of(data, config_file, overrides or [])
    run_local(experiment, name, corpus_size, retry_failed, containers=runner is Runner.DOCKER, dry_run=dry_run)


app.command(rich_help_panel=panels.CLUSTER)(submit_command.submit)
app.command(rich_help_panel=panels.CLUSTER)(check.check)
app.command(rich_help_panel=panels.LOOK)(logs.logs)
app.command(rich_help_panel=panels.DATA)(release.release)
app.command(rich_help_panel=panels.DATA)(takedown.takedown)
app.command(rich_help_panel=panels.TRAIN)(sweep.sweep)
app.command(rich_help_panel=panels.TRAIN)(reproduce.reproduce)


@app.command(rich_help_panel=panels.STACK)
def up() -> None:
    """Start the embedded stack on loopback: object store, MLflow, Ray. What runs already is left alone.

    WUKONG_HOME names the folder of its data; by default it is .wukong, here or in a folder above. Example:

        WUKONG_HOME=/data/wukong wukong up
    """
    from infra import stack

    summary.print_stack(stack.status(stack.up(environment.home()).home))


@app.command(rich_help_panel=panels.STACK)
def down() -> None:
    """Stop every process of the embedded stack; its data stays, for the next `wukong up` or `wukong run`."""
    from infra import containers, stack

    home = stack.found()
    stopped = stack.down(home) + containers.down(home)
    said = _("Stopped {stopped} processes of {home}.") if stopped else _("Nothing of {home} was running.")
    echo(said.format(stopped=stopped, home=home))


@app.command(rich_help_panel=panels.STACK)
def status(as_json: JsonOption = False) -> None:
    """Show which services of the embedded stack run, where, and its home folder.

    It finds the stack from any folder: that of WUKONG_HOME, of a folder above, or the last one started. Other homes of
    this machine are listed below it. Example:

        wukong status --json
    """
    from infra import stack
    from infra.stack.services import check_disk

    home = stack.found()
    services = stack.status(home)
    others = {
        str(other): any(running for _, running, _ in stack.status(other)) for other in environment.other_homes(home)
    }
    if as_json:
        described = [{"name": name, "running": running, "address": address} for name, running, address in services]
        listed = [{"home": other, "running": running} for other, running in others.items()]
        print_json({"home": str(home), "services": described, "others": listed})
        return
    summary.print_stack(services)
    echo((_("\nHome  {home}") if home.is_dir() else _("\nHome  {home} (nothing there yet)")).format(home=home))
    for other, running in others.items():
        state = _("running") if running else _("stopped")
        echo(_("Other home  {other} ({state}); WUKONG_HOME={other} uses it").format(other=other, state=state))
    if home.is_dir():
        try:
            check_disk(home)
        except StackError as error:
            echo(f"Disk  {error}", err=True)


@app.command("env", rich_help_panel=panels.STACK)
def show_environment(
    shell: Annotated[
        bool, typer.Option("--shell", help='Print commands for a shell: eval "$(wukong env --shell)".')
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the addresses and credentials of the embedded stack, as variables that S3 clients, MLflow and Ray read.

    Whatever reads s3:// addresses here finds them by itself; these are for other programs. Example:

        eval "$(wukong env --shell)" && aws s3 ls s3://wukong
    """
    from infra import stack

    variables = stack.load(stack.found()).environment()
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        print_data(f"export {name}={shlex.quote(value)}" if shell else f"{name}={value}")


if __name__ == "__main__":
    main()
