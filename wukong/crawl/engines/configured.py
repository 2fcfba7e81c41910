"""The search engine that an experiment names."""

from wukong.config import Crawl
from wukong.crawl.engines import Engine
from wukong.crawl.engines.baidu import Baidu
from wukong.crawl.engines.searxng import SearXNG
from wukong.errors import ConfigError


def open_engine(config: Crawl) -> Engine:
    """Return the configured search engine.

    Raises:
        ConfigError: ``crawl.engine`` is a list, which is not searched.
    """
    if config.engine == "baidu":
        return Baidu(config.endpoint)
    if config.engine == "searxng":
        return SearXNG(config.endpoint)
    raise ConfigError(f"crawl.engine {config.engine!r} is a list, not a search engine")
