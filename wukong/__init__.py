"""Wukong: from a list of Chinese words to an evaluated Chinese vision-language model."""
