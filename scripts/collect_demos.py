"""`vla-collect` from a checkout that is not installed; see `vla.commands.collect`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.commands.collect import main

if __name__ == "__main__":
    sys.exit(main())
