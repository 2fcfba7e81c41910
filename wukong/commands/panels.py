"""The panels of ``wukong --help``: give one to each command, as ``rich_help_panel``."""

from wukong.runtime.language import _

DATA = _("Data")
TRAIN = _("Train")
EVALUATE = _("Evaluate and choose")
LOOK = _("Look at what was made")
SERVE = _("Use a model")
CLUSTER = _("On a cluster")
STACK = _("The local stack")

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

_REMOVE = "`wukong takedown` takes pictures out of data, `wukong gc` deletes what nothing needs any more"
INSTEAD = {
    "export": "`wukong model export` writes a model, `wukong index export` an index",
    "remove": _REMOVE,
    "delete": _REMOVE,
    "retry": "`wukong run` with the same config goes on where a run stopped",
    "stop": "Ctrl-C ends a run, `wukong down` the local stack",
    "list": "`wukong runs` lists runs, `wukong models` models",
}
"""What does the work of a command that people look for and that does not exist."""

COMMANDS = tuple(name for names in ORDER.values() for name in names)
