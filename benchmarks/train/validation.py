"""Measure for how long a validation stops a training: a hold-out of stored features, one worker, one thread."""

import argparse
import sys
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate.data_set import RetrievalData
from wukong.evaluate.protocol import OWN
from wukong.evaluate.published import Caption
from wukong.model.dual import DualEncoder
from wukong.train.validation import Task, Validator

WIDTH, PATCHES = 768, 49


class _None:
    """Images that nobody asks for, because their features are stored."""

    def __len__(self) -> int:
        return 0

    def image(self, i: int) -> Image.Image:
        raise IndexError(i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=3, help="of the text tower of width 768")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer(packaged_vocabulary())
    known = [token for token in tokenizer.vocabulary.split("\n") if len(token) == 1 and "一" <= token <= "龥"]
    captions = [
        "".join(known[(31 * number + 7 * place) % 2000] for place in range(22)) for number in range(arguments.pairs)
    ]
    ids = [str(number) for number in range(arguments.pairs)]
    relevant = [Caption(text, (number,)) for number, text in enumerate(captions)]
    data = RetrievalData("held", "holdout", ids, relevant, False, _None(), "held")
    for similarity in ("global", "token"):
        torch.manual_seed(0)
        text = {"layers": arguments.layers, "heads": 12, "width": 768}
        model = Model.model_validate({"text": text, "embedding": 256, "similarity": similarity})
        dual = DualEncoder(model, tokenizer, feature_width=WIDTH).eval()
        shape = (arguments.pairs, WIDTH) if similarity == "global" else (arguments.pairs, PATCHES, WIDTH)
        validator = Validator([Task(data, OWN, torch.randn(shape).half())], tokenizer)
        began, used = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for start in range(0, arguments.pairs, 256):
                dual.embed_text(tokenizer(captions[start : start + 256]))
        texts = time.process_time() - used
        began, used = time.perf_counter(), time.process_time()
        validator(dual)
        took, used = time.perf_counter() - began, time.process_time() - used
        print(
            f"{similarity}: {arguments.pairs} pairs, {arguments.layers} layers: {took:.1f} s, {used:.1f} of processor; "
            f"the texts alone {texts:.1f} of processor",
            flush=True,
        )


if __name__ == "__main__":
    main()
