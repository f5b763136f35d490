"""Exit codes of the `vstore` command, in the words of sysexits(3)."""

OK = 0
FAILED = 1
USAGE = 64  # not 2, which `check` keeps for “corrupt”
UNAVAILABLE = 69  # the daemon cannot be reached
NOT_ALLOWED = 77
INTERRUPTED = 130

BY_STATUS = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 421: NOT_ALLOWED}
