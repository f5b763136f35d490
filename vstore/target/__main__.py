"""`python -m vstore.target`."""

import sys

from vstore.target.beginning import prepare

prepare()

from vstore.target.main import main  # noqa: E402

sys.exit(main())
