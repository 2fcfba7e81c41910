"""The panels of ``wukong --help``: give one to each command, as ``rich_help_panel``."""

DATA = "Data"
TRAIN = "Train"
EVALUATE = "Evaluate and choose"
LOOK = "Look at what was made"
SERVE = "Use a model"
CLUSTER = "On a cluster"
STACK = "The local stack"

ORDER = {
    TRAIN: ("run", "init", "plan", "sweep", "reproduce", "config"),
    DATA: ("release", "takedown", "queries", "weights", "gc"),
    LOOK: ("runs", "report", "note", "logs", "models", "show", "diff"),
    EVALUATE: ("evaluate", "align", "compare", "paper", "promote", "rollback"),
    SERVE: ("search", "serve", "model"),
    CLUSTER: ("check", "submit"),
    STACK: ("up", "down", "status", "env"),
}
"""The panels and the commands of each, library's and platform's, in the order in which they are shown."""

COMMANDS = tuple(name for names in ORDER.values() for name in names)
