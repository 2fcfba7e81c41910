"""The panels of ``wukong --help``, in its order: give one to each command, as ``rich_help_panel``."""

DATA = "Data"
TRAIN = "Train"
EVALUATE = "Evaluate and choose"
LOOK = "Look at what was made"
SERVE = "Use a model"
CLUSTER = "On a cluster"
STACK = "The local stack"

ORDER = (TRAIN, DATA, LOOK, EVALUATE, SERVE, CLUSTER, STACK)
"""Typer shows a panel where its first command stands, so ``cli.main`` sorts the commands by this."""
