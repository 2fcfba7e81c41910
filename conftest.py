"""What all tests share: no property test fails because the machine is busy.

Not in ``tests/``: that folder would come before the packages whose names its folders have.
"""

from hypothesis import settings

settings.register_profile("wukong", deadline=None)
settings.load_profile("wukong")
