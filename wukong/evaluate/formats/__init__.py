"""How files of evaluation sets are laid out, one layout a file. The sets that use them are in ``../sets/``."""
