"""The query list: one word a line, most frequent first (section 3)."""

from wukong import storage
from wukong.errors import ConfigError


def read_queries(uri: str, limit: int) -> list[str]:
    """Read the first ``limit`` distinct queries of a list.

    Raises:
        ConfigError: the list is not UTF-8, or holds no query.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"crawl.queries: {uri} is not UTF-8 ({error}); convert it, one word a line") from error
    queries = dict.fromkeys(filter(None, (line.strip() for line in text.splitlines())))
    if not queries:
        raise ConfigError(f"crawl.queries: {uri} holds no query; write one word a line, most frequent first")
    return list(queries)[:limit]
