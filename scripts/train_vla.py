"""`vla-train` from a checkout that is not installed; see `vla.commands.train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
