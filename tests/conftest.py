"""What all tests share: no property test fails because the machine is busy."""

from hypothesis import settings

settings.register_profile("wukong", deadline=None)
settings.load_profile("wukong")
