"""The kinds of models of others, which are measured by ``wukong evaluate`` and cannot be trained."""

KINDS = ("cn_clip", "onnx", "open_clip", "transformers", "wukong_release")
"""What stands before the colon of their URIs; ``wukong.evaluate.adapters`` has a file for each."""
