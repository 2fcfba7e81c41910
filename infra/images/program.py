"""Run the programs that know images, and those that sign them."""

import os
import subprocess

from wukong.errors import StackError
from wukong.runtime.language import message

_BY_GO = {"cosign": "github.com/sigstore/cosign/v3/cmd/cosign", "syft": "github.com/anchore/syft/cmd/syft"}


def run(*command: str) -> str:
    """Run a program to its end, and return what it prints.

    Raises:
        StackError: it is not installed, or refuses; the message is its own.
    """
    name = command[0]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=os.environ | {"SYFT_CHECK_FOR_APP_UPDATE": "false", "NO_COLOR": "1"},  # it would ask its makers
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        how = message(f"; with Go: go install {_BY_GO[name]}@latest") if name in _BY_GO else ""
        raise StackError(f"the program {name!r} is not installed{how}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("Error: ")), done.stderr.strip())
        raise StackError(f"{name} {command[1]} of {command[-1]}: {said.removeprefix('Error: ')[:500]}")
    return done.stdout
