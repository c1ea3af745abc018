"""``python -m fjx``."""

import sys

from fjx.cli.main import main

sys.exit(main())
