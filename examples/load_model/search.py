"""Load a saved model and rank images by a caption: ``search.py MODEL CAPTION IMAGE [IMAGE ...]``.

MODEL is a folder, a URI such as ``s3://wukong/demo/finetune/KEY/model``, or a registered model such as
``models:/demo@champion``.
"""

import sys

import wukong


def main(arguments: list[str]) -> int:
    """Print the images, the most similar one to the caption first, with their similarities."""
    if len(arguments) < 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    place, caption, *images = arguments
    model = wukong.load(place)
    similarity = model.similarity(model.encode_image(images), model.encode_text(caption), side="text")
    for score, image in sorted(zip(similarity[:, 0].tolist(), images, strict=True), reverse=True):
        sys.stdout.write(f"{score:.3f}  {image}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
