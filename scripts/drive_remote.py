"""Drive the simulator through a served policy: the client example, and a test of what a real robot
would feel.

    python scripts/drive_remote.py ws://localhost:8000 --episodes 8 --ahead 4 --real-time

`--ahead N` asks for the next chunk when N actions are left and goes on moving meanwhile; that of a
flow policy goes on from what is being executed (real-time chunking). `--real-time` lets control
steps take the time they take on a robot.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.cli import command


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "address", help="ws://HOST:PORT of scripts/serve_policy.py or of an openpi server"
    )
    parser.add_argument(
        "settings", nargs="*", help="key=value settings of the simulation, e.g. sim.robot=gantry"
    )
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument(
        "--first-seed", type=int, default=2_000_000, help="of the starts (default %(default)s)"
    )
    parser.add_argument(
        "--ahead", type=int, default=0, help="actions left when the next chunk is asked for"
    )
    parser.add_argument(
        "--plain", action="store_true", help="no real-time chunking, where the policy has it"
    )
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument(
        "--token", help="what the server asks for (default: VLA_SERVE_TOKEN of the environment)"
    )
    return parser.parse_intermixed_args(argv)


@command()
def main(argv: list[str] | None = None) -> int:
    drive(parse(argv))
    return 0


def drive(options: argparse.Namespace) -> None:
    from vla.config import load
    from vla.serve.access import find_token
    from vla.serve.client import ChunkPlayer, RemotePolicy
    from vla.simulator import make_simulator
    from vla.statistics import SuccessRate

    policy = RemotePolicy(options.address, token=find_token(options.token))
    seen = policy.policy_spec
    told = [
        f"sim.image_size={seen['image_size']}",
        f"sim.cameras=[{','.join(seen['cameras'])}]",
        "sim.num_envs=1",
    ]
    env = make_simulator(load([*told, *options.settings]).sim).environment()
    policy.check(env.action_spec.to_dict())
    chunks = ChunkPlayer(
        policy.infer, options.ahead, bool(seen.get("real_time_chunking")) and not options.plain
    )
    outcomes = [
        episode(env, chunks, options.first_seed + i, options.real_time)
        for i in range(options.episodes)
    ]
    took = policy.timing.get("infer_ms", float("nan"))
    print(
        f"success {SuccessRate.from_outcomes(outcomes, None)}; {chunks.num_chunks} chunks, the "
        f"last took {took:.0f} ms"
    )
    print(f"{chunks.num_waits} control steps waited for a chunk that was late")
    if chunks.seams:
        jump = 1000 * sum(seam[:3].mean() for seam in chunks.seams) / len(chunks.seams)
        print(
            f"{len(chunks.seams)} new chunks differed from what was planned by {jump:.2f} mm a "
            "control step (mean)"
        )
    policy.close()


def episode(env, chunks, seed: int, real_time: bool) -> bool:
    """One episode; whether it succeeded."""
    chunks.reset()
    seen, begin, ended, steps = env.reset([seed]), time.perf_counter(), False, 0
    while not ended:
        images = {camera: pictures[0] for camera, pictures in seen.images.items()}
        action = chunks.next(
            {"images": images, "state": seen.proprio[0], "prompt": seen.instruction[0]}
        )
        result = env.step(action[None, None])
        seen, ended, steps = (
            result.observation,
            bool(result.terminated[0] or result.truncated[0]),
            steps + 1,
        )
        if real_time:
            time.sleep(max(0.0, begin + steps / env.action_spec.control_hz - time.perf_counter()))
    return bool(result.success[0])


if __name__ == "__main__":
    sys.exit(main())
