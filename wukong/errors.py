"""Errors a person can mend: each message says what is wrong, where, and what to do."""

import csv
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

OF_PARSERS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # RecursionError among them
    TypeError,
    ValueError,  # UnicodeDecodeError among them
    csv.Error,
    struct.error,
    tarfile.TarError,
    zlib.error,
)
"""What parsers raise for the content of a file, which may be damaged or made to harm."""

_MOST_SAID = 300


class WukongError(Exception):
    """Something the operator can put right; shown as one message, without a traceback.

    What a program wrote about it, such as the end of a log, is a note (``add_note``), which no language changes.

    Attributes:
        exit_status: of a command that ends with it.
    """

    exit_status = 1


class ConfigError(WukongError):
    """The experiment file or an override holds an unknown key or a value that is not allowed."""


class StorageError(WukongError):
    """An object store or folder cannot be reached, read or written."""


class DataError(WukongError):
    """Data handed to a stage is missing, truncated or of the wrong shape."""


class GateError(WukongError):
    """The data did not meet an expectation, so the pipeline stops here."""


class StackError(WukongError):
    """A service of the embedded stack could not be started, found or stopped."""


@contextmanager
def reading(what: str, remedy: str, kind: type[WukongError] = DataError) -> Iterator[None]:
    """Turn whatever a parser raises for a file of somebody else into an error that a person can mend.

    Args:
        what: which file is not what it should be, as in "PATH is no complete IDX file".
        remedy: what to do then.
        kind: of the error.

    Raises:
        WukongError: of the kind.
    """
    try:
        yield
    except WukongError:
        raise
    except OF_PARSERS as error:
        said = (str(error) or type(error).__name__)[:_MOST_SAID]
        raise kind(f"{what}: {said}. {remedy}") from error
