"""What every test shares: quiet threads, no network, and shapes checked at run time.

The environment is set before any test module can load torch. The import hook makes every annotated function and
dataclass of `vla` check its jaxtyping shapes through beartype; outside the tests the annotations cost nothing.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("vla", "beartype.beartype")
