"""The query list of the demo corpus: its words, the most frequent first, as in the paper."""

import logging
import re
from collections import Counter

from infra.corpus.catalogue import Corpus
from wukong.config.experiment import Experiment
from wukong.store import storage

_MOST = 4_000
_WORD = re.compile(r"[\u3400-\u9fff]+")


def queries(corpus: Corpus) -> list[str]:
    """Return the Chinese words of titles and keywords, sorted by the number of images that have them.

    Words with the same number are in the order of their characters. A whole keyword counts as a word, and so do the
    words that jieba finds in it, because people search for both. There are as many words as images, and 4,000 at most:
    of a small corpus most words find nothing that those before have not found.
    """
    import jieba

    jieba.setLogLevel(logging.WARNING)
    counts: Counter[str] = Counter()
    for entry in corpus.entries:
        texts = [entry.title, *entry.keywords]
        words = {word for text in texts for word in jieba.cut(text)} | set(entry.keywords)
        counts.update(word for word in words if _WORD.fullmatch(word))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[: min(_MOST, len(corpus.entries))]


def upload_queries(corpus: Corpus, uri: str) -> int:
    """Write the corpus's query list to a URI, one word a line.

    Returns:
        The number of words.

    Raises:
        StorageError: the URI cannot be written.
    """
    words = queries(corpus)
    storage.write_bytes(uri, "".join(f"{word}\n" for word in words).encode())
    return len(words)


def of_sample(experiment: Experiment, corpus: Corpus) -> Experiment:
    """Change an experiment to use a sample of the corpus, with its own query list and address.

    So runs with different samples share neither a query list, which one would overwrite, nor a crawl, which one would
    reuse by mistake.

    Args:
        experiment: the experiment on the whole corpus.
        corpus: the sample. Its name is that of its catalogue, which depends on its content.
    """
    name = corpus.catalogue.stem.removeprefix("catalogue-")
    base, dot, suffix = experiment.crawl.queries.rpartition(".")
    queries = f"{base}-{name}.{suffix}" if dot and "/" not in suffix else f"{experiment.crawl.queries}-{name}"
    changed = {"queries": queries, "endpoint": f"{experiment.crawl.endpoint.rstrip('/')}/{name}"}
    return experiment.model_copy(update={"crawl": experiment.crawl.model_copy(update=changed)})
