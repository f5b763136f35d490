"""`python -m vstore.worker` is one piece of work."""

import sys

from vstore.worker.main import main

sys.exit(main())
