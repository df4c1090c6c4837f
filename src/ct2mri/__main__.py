"""Run the command as `python -m ct2mri`."""

import sys

from ct2mri.cli import main

sys.exit(main())
