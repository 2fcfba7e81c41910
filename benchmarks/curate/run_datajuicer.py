"""Times data-juicer's text_length, character_repetition and flagged_words filters on a file of captions, one process.

``bench.py`` runs it in data-juicer's environment. It prints the seconds of the three filters, and of its deduplicator.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def main() -> None:
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.deduplicator.document_deduplicator import DocumentDeduplicator
    from data_juicer.ops.filter.character_repetition_filter import CharacterRepetitionFilter
    from data_juicer.ops.filter.flagged_words_filter import FlaggedWordFilter
    from data_juicer.ops.filter.text_length_filter import TextLengthFilter
    from datasets import Dataset

    file, words, assets = map(Path, sys.argv[1:])
    captions, flagged = (path.read_text(encoding="utf-8").split("\n") for path in (file, words))
    assets.mkdir(exist_ok=True)
    (assets / "flagged_words.json").write_text(json.dumps({"zh": flagged}, ensure_ascii=False), encoding="utf-8")
    filters = [
        TextLengthFilter(min_len=1, max_len=31, num_proc=1),
        CharacterRepetitionFilter(rep_len=2, max_ratio=0.5, num_proc=1),
        FlaggedWordFilter(lang="zh", tokenization=False, max_ratio=0.0, flagged_words_dir=str(assets), num_proc=1),
    ]
    deduplicator = DocumentDeduplicator(num_proc=1)
    for each in (*filters, deduplicator):  # the first use loads files, which is not measured
        each.run(NestedDataset(Dataset.from_dict({"text": captions[:200]})))
    dataset = NestedDataset(Dataset.from_dict({"text": captions}))
    started = time.perf_counter()
    kept = dataset
    for each in filters:
        kept = each.run(kept)
    filtered = time.perf_counter() - started
    started = time.perf_counter()
    deduplicator.run(dataset)
    print(json.dumps({"filters": filtered, "deduplicator": time.perf_counter() - started, "kept": len(kept)}))


if __name__ == "__main__":
    main()
