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
    LOOK: ("runs", "report", "note", "logs", "models", "show", "diff"),
    EVALUATE: ("evaluate", "align", "compare", "paper", "promote", "rollback"),
    SERVE: ("search", "serve", "model", "index"),
    CLUSTER: ("check", "submit"),
    STACK: ("up", "down", "status", "env"),
}
"""The panels and the commands of each, library's and platform's, in the order in which they are shown."""

COMMANDS = tuple(name for names in ORDER.values() for name in names)
