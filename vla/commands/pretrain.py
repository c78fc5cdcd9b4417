"""Pretrain a tiny vision-language model on questions about rendered scenes.

Answers are words and location tokens.

vla-pretrain run_dir=runs/vlm                              # from random weights
vla-pretrain run_dir=runs/vlm model.checkpoint=embedded    # continue from the embedded model
vla-train model.checkpoint=runs/vlm                        # use it
"""

import sys

from vla.cli import command, fail, read_config


@command(takes_settings=True)
def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    config = read_config(__doc__ or "", ["model.checkpoint=null", *given])
    from vla import runtime
    from vla.config import RobotConfig

    runtime.prepare(config.train.num_threads or None, offline=not config.needs_hub)
    if not isinstance(config, RobotConfig):
        fail("mode=text: vla-pretrain trains a vision-language model; use mode=robot")
    from vla.simulator import make_simulator

    simulator = make_simulator(config.sim)
    from vla.pipelines.robot.pretrain_vlm import run_pretraining

    run_pretraining(config, simulator)
    return 0
