"""Exit codes of the `vstore` command, in the words of sysexits(3)."""

OK = 0
FAILED = 1
DIFFER = 1  # of `compare`
CORRUPT = 2  # of `check`, as qemu-img's
LEAKS = 3  # of `check`: no corruptions
UNSUPPORTED = 63  # of `check`: the format has nothing to check
USAGE = 64  # not 2, which `check` keeps for “corrupt”
UNAVAILABLE = 69  # the daemon cannot be reached
TIMED_OUT = 75  # of `job wait`
NOT_ALLOWED = 77
INTERRUPTED = 130

BY_STATUS = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 421: NOT_ALLOWED}
