"""The panels of ``wukong --help``: give one to each command, as ``rich_help_panel``."""

from wukong.runtime.language import message

DATA = message("Data")
TRAIN = message("Train")
EVALUATE = message("Evaluate and choose")
LOOK = message("Look at what was made")
SERVE = message("Use a model")
CLUSTER = message("On a cluster")
STACK = message("The local stack")

ORDER = {
    TRAIN: ("run", "init", "plan", "sweep", "reproduce", "config"),
    DATA: ("release", "takedown", "queries", "weights", "hashes", "gc"),
    LOOK: ("runs", "report", "logs", "models", "show", "diff"),
    EVALUATE: ("evaluate", "align", "compare", "paper", "promote", "rollback"),
    SERVE: ("search", "serve", "model", "index"),
    CLUSTER: ("check", "submit"),
    STACK: ("up", "down", "status", "env"),
}
"""The panels and the commands of each, library's and platform's, in the order in which they are shown."""

_REMOVE = message("`wukong takedown` takes pictures out of data, `wukong gc` deletes what nothing needs any more")
INSTEAD = {
    "export": message("`wukong model export` writes a model, `wukong index export` an index"),
    "remove": _REMOVE,
    "delete": _REMOVE,
    "retry": message("`wukong run` with the same config goes on where a run stopped"),
    "stop": message("Ctrl-C ends a run, `wukong down` the local stack"),
    "list": message("`wukong runs` lists runs, `wukong models` models"),
}
"""What does the work of a command that people look for and that does not exist."""

COMMANDS = tuple(name for names in ORDER.values() for name in names)
