"""The version of vstore, as its installation says."""

from importlib.metadata import PackageNotFoundError, version


def vstore_version() -> str:
    try:
        return version("vstore")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+uninstalled"
