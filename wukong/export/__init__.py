"""A trained model as the folder that another project's own loader opens, and how equal it is there."""
