"""Wukong: from a list of Chinese words to an evaluated Chinese vision-language model.

``wukong.load(uri)`` gives a trained model: see ``wukong.model.saved_model``. ``wukong.connect()`` lets this process use
the embedded stack, MLflow's own functions among it: see ``wukong.runtime.environment``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wukong.model.saved_model import load as load
    from wukong.runtime.environment import connect as connect


def __getattr__(name: str) -> Any:
    # Only who loads a model waits for torch.
    if name == "load":
        try:
            from wukong.model.saved_model import load
        except ModuleNotFoundError as error:
            from wukong.errors import ConfigError
            from wukong.runtime import installed

            raise ConfigError(
                f"wukong.load needs {error.name}, which is not installed: run `{installed.command_for('model')}`"
            ) from error
        return load
    if name == "connect":
        from wukong.runtime.environment import connect

        return connect
    raise AttributeError(f"module 'wukong' has no attribute {name!r}")
