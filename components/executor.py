"""KFP's executor, which runs a component's function in its container, without its lines in the log.

``python -m components.executor`` takes the arguments of ``kfp.dsl.executor_main``. That logs all of its input as JSON
before it calls the function, some seventy lines in KFP's page above the first line of the stage.
"""

import logging
import sys

from kfp.dsl.executor_main import executor_main

from wukong.runtime import logs


def main() -> None:
    """Run the component."""
    logs.start(sys.stdout)
    # A filter of a logger sees what is logged with that logger itself. The executor uses the root logger, we do not.
    logging.getLogger().addFilter(lambda record: record.levelno > logging.INFO)
    executor_main()


if __name__ == "__main__":
    main()
