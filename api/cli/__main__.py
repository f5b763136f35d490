"""`python -m api.cli` is the `vstore` command."""

import sys

from api.cli import main

sys.exit(main())
