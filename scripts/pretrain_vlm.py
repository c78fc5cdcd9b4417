"""Teach a tiny vision-language model to see: questions about rendered scenes, answered in words and
location tokens.

python scripts/pretrain_vlm.py run_dir=runs/vlm                        # from nothing
python scripts/pretrain_vlm.py run_dir=runs/vlm model.checkpoint=embedded    # go on from the one that ships
python scripts/train_vla.py model.checkpoint=runs/vlm                  # use it
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.command_line import command, fail, read_config


@command()
def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    config = read_config(__doc__ or "", ["model.checkpoint=null", *given])
    from vla import runtime

    runtime.prepare(config.train.num_threads or None, offline=not config.needs_hub)
    if config.mode != "robot":
        fail("mode=text: pretraining is about pictures; leave mode at robot")
    from scripts.simulation import Simulation
    from vla.stages.pretrain import run_pretraining

    run_pretraining(config, Simulation(config.sim))
    return 0


if __name__ == "__main__":
    sys.exit(main())
