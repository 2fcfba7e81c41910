"""What the similarity of caption and picture needs; `tests/ray_jobs/test_filter.py` computes it with a model."""

import io
import tarfile

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.rules import similarity
from wukong.store import storage


def test_a_least_similarity_without_a_model_is_refused():
    with pytest.raises(ValidationError, match="without similarity_model nothing is compared"):
        Filter(min_similarity=0.2)


@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_batches_that_are_computed_side_by_side_give_the_same_columns(loaders, tmp_path, monkeypatch):
    class Counting:
        """A model by which the similarity is the red of a picture."""

        def encode_image(self, pictures, batch_size):
            return torch.tensor([[each.getpixel((0, 0))[0] / 255] for each in pictures])

        def encode_text(self, captions):
            return torch.ones(len(captions), 1)

        def similarity(self, image, text):
            return image @ text.T

    def model(_uri, _sha256, device):
        assert device == "cpu"
        return Counting()

    monkeypatch.setattr(similarity, "_model", model)
    monkeypatch.setattr(rules, "_PICTURES", 4)
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(30):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(picture, "PNG")
            entry = tarfile.TarInfo(f"{number:04d}.jpg")
            entry.size = len(picture.getvalue())
            tar.addfile(entry, io.BytesIO(picture.getvalue()))
    settings = Filter(similarity_model="file:///model")
    assert rules.run_a_model(settings) and not rules.run_a_model(Filter())
    captions = {f"{number:04d}": ["红"] for number in range(30) if number % 7}
    found = rules.compute_from_pictures(storage.from_path(tmp_path / "00000.tar"), captions, settings, "cpu", loaders)
    assert found["key"].to_list() == list(captions)
    assert found["similarity"].to_list() == pytest.approx([8 * int(key) / 255 for key in captions])
