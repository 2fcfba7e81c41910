"""Errors a person can mend: each message says what is wrong, where, and what to do."""


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
