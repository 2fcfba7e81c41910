"""The words the demo corpus is crawled by: its most frequent words first, as the paper ranks its query list."""

import logging
import re
from collections import Counter

from infra.corpus.catalogue import Corpus
from wukong import storage
from wukong.config import Experiment

_WORD = re.compile(r"[\u3400-\u9fff]+")


def queries(corpus: Corpus, limit: int = 4_000) -> list[str]:
    """Chinese words of titles and keywords, by how many pictures have them; ties in the order of their characters.

    A whole keyword counts as a word beside the words jieba finds in it, as people search for both.
    """
    import jieba

    jieba.setLogLevel(logging.WARNING)
    counts: Counter[str] = Counter()
    for entry in corpus.entries:
        texts = [entry.title, *entry.keywords]
        words = {word for text in texts for word in jieba.cut(text)} | set(entry.keywords)
        counts.update(word for word in words if _WORD.fullmatch(word))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[:limit]


def upload_queries(corpus: Corpus, uri: str, limit: int = 4_000) -> int:
    """Write the corpus's query list, one word a line, to a URI, and give its number of words.

    Raises:
        StorageError: the URI cannot be written.
    """
    words = queries(corpus, limit)
    storage.write_bytes(uri, "".join(f"{word}\n" for word in words).encode())
    return len(words)


def of_sample(experiment: Experiment, corpus: Corpus) -> Experiment:
    """The experiment with a sample of the corpus in place of the whole: its own query list and its own address.

    Runs with different samples have nothing in common then: neither the list, which one would write over the other's,
    nor a crawl that one would take for its own.

    Args:
        experiment: of the whole corpus.
        corpus: the sample. Its name is that of its catalogue, which says what is in it.
    """
    name = corpus.catalogue.stem.removeprefix("catalogue-")
    base, dot, suffix = experiment.crawl.queries.rpartition(".")
    queries = f"{base}-{name}.{suffix}" if dot and "/" not in suffix else f"{experiment.crawl.queries}-{name}"
    changed = {"queries": queries, "endpoint": f"{experiment.crawl.endpoint.rstrip('/')}/{name}"}
    return experiment.model_copy(update={"crawl": experiment.crawl.model_copy(update=changed)})
