"""What an answer is that no initiator should ever get: raised, not asserted, so that `python -O` keeps it."""


class RuleBroken(AssertionError):  # noqa: N818  (the name says what is wrong)
    """A finding: the device model broke a rule."""


def require(holds: object, rule: str) -> None:
    """RuleBroken unless it holds."""
    if not holds:
        raise RuleBroken(rule)
