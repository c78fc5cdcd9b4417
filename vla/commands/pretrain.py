"""Teach a tiny vision-language model to see: questions about rendered scenes, answered in words and
location tokens.

vla-pretrain run_dir=runs/vlm                              # from nothing
vla-pretrain run_dir=runs/vlm model.checkpoint=embedded    # go on from the one that ships
vla-train model.checkpoint=runs/vlm                        # use it
"""

import sys

from vla.cli import command, fail, read_config


@command(takes_settings=True)
def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    config = read_config(__doc__ or "", ["model.checkpoint=null", *given])
    from vla import runtime

    runtime.prepare(config.train.num_threads or None, offline=not config.needs_hub)
    if config.mode != "robot":
        fail("mode=text: pretraining is about pictures; leave mode at robot")
    from vla.simulator import make_simulator

    simulator = make_simulator(config.sim)
    from vla.pipelines.robot.pretrain_vlm import run_pretraining

    run_pretraining(config, simulator)
    return 0
