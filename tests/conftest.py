"""What every test shares: quiet threads, no network, and shapes checked at run time.

The environment is set before any test module can load torch. The import hook makes every annotated
function and dataclass of `vla` check its jaxtyping shapes through beartype; outside the tests the
annotations cost nothing.
"""

import os
import sys
from types import ModuleType

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# The hook takes the name of a checker. This one lets an int stand for a float, as every type
# checker does.
checker = ModuleType("vla_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules["vla_checker"] = checker
install_import_hook("vla", "vla_checker.check")
