"""The kinds of models of others, which are measured by ``wukong evaluate`` and cannot be trained."""

KINDS = ("open_clip", "cn_clip", "wukong_release")
"""What stands before the colon of their URIs; ``wukong.evaluate.adapters`` has a file for each."""
