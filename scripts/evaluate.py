"""`vla-eval` from a checkout that is not installed; see `vla.commands.evaluate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
