"""`python -m vstore.target`."""

import sys

from vstore.target.main import main

sys.exit(main())
