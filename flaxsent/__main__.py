"""`python -m flaxsent`: the command line."""

import sys

from flaxsent.cli import main

sys.exit(main())
