"""The error of this launcher."""

from wukong.errors import WukongError


class RayJobError(WukongError):
    """A RayJob could not be made or did not succeed.

    Attributes:
        reason: KubeRay's reason (``AppFailed``, ``DeadlineExceeded``, ...), or the launcher's own.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
