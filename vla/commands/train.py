"""Train a policy by supervised fine-tuning and reinforcement learning, then evaluate and report.

vla-train sim=pick_place            # a robot in MuJoCo
vla-train mode=text                 # a language model
vla-train preset=smoke              # a small run of about a minute
vla-train resume=runs/NAME          # continue a run
"""

import sys

from vla.cli import command, read_config


@command(takes_settings=True)
def main(arguments: list[str] | None = None) -> int:
    config = read_config(__doc__ or "", arguments)
    from vla import runtime

    runtime.prepare(config.train.num_threads or None, offline=not config.needs_hub)
    if config.mode == "text":
        from vla.pipelines.text.run import run_text

        run_text(config)
        return 0
    from vla.simulator import make_simulator

    simulator = make_simulator(config.sim)  # unknown names are refused before torch loads
    from vla.pipelines.robot.pipeline import run_robot

    run_robot(config, simulator)
    return 0


if __name__ == "__main__":
    sys.exit(main())
