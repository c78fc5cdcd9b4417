"""Train a policy: demonstrations, supervised fine-tuning, reinforcement learning, evaluation on
held-out starts, report.

python scripts/train_vla.py sim=pick_place            # a robot in MuJoCo
python scripts/train_vla.py mode=text                 # a language model, by the same core
python scripts/train_vla.py preset=smoke              # everything small, in about a minute
python scripts/train_vla.py resume=runs/NAME          # go on with a run
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.command_line import command, read_config


@command()
def main(arguments: list[str] | None = None) -> int:
    config = read_config(__doc__ or "", arguments)
    from vla import runtime

    runtime.prepare(config.train.num_threads or None, offline=not config.needs_hub)
    if config.mode == "text":
        from vla.text.run import run_text

        run_text(config)
    else:
        from scripts.world import world_of
        from vla.stages.robot import run_robot

        run_robot(config, world_of(config.sim))
    return 0


if __name__ == "__main__":
    sys.exit(main())
