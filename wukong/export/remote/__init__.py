"""Files of code that an exported folder brings with it, because the project that opens it has no class for the model.

They are copied as they are: they import nothing of this project.
"""
