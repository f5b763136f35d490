"""The limit of open files: a chain takes two for each of up to a thousand images, and a VMM sends hundreds more."""

import resource


def raise_descriptor_limit() -> None:
    """As many as the system allows; the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
