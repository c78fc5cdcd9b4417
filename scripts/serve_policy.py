"""Serve the policy of a run over a websocket: actions for robots and simulators elsewhere, in openpi's client protocol.

    python scripts/serve_policy.py runs/NAME --port 8000
    python scripts/drive_remote.py ws://localhost:8000            # a client: the simulator, driven through it

A client sends {"images": {camera: uint8 [h, w, 3]}, "state": [s], "prompt": text} and gets {"actions": [H, A]}.
Health is at http://HOST:PORT/healthz, numbers at /status.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run or of an exported policy, or user/name on the hub")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--sampled", action="store_true", help="sampled decisions in place of greedy ones")
    parser.add_argument("--max-batch", type=int, default=16, help="requests a call (default %(default)s)")
    parser.add_argument("--wait-ms", type=float, default=3.0, help="a batch waits for company (default %(default)s)")
    parser.add_argument("--max-waiting", type=int, default=64, help="more are refused (default %(default)s)")
    parser.add_argument("--max-clients", type=int, default=64, help="more are refused (default %(default)s)")
    parser.add_argument("--max-message-mb", type=float, default=16.0, help="of a message (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime
    from vla.command_line import fail

    runtime.prepare(offline=not runtime.on_hub(options.run))
    import asyncio

    try:
        server = open_server(options)
        asyncio.run(server.run(options.host, options.port, lambda port: announce(options, port)))
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        return 0
    return 0


def announce(options: argparse.Namespace, port: int) -> None:
    print(f"{options.run} is served at ws://{options.host}:{port} (Ctrl-C ends)", flush=True)


def open_server(options: argparse.Namespace):
    from scripts.world import world_of
    from vla.evaluate.settings import settings_of
    from vla.hub.pretrained import local_folder
    from vla.policies.continuing import can_continue
    from vla.serve.policy import passport_of, serve_rows
    from vla.serve.requests import Expected
    from vla.serve.server import Limits, PolicyServer
    from vla.stages.robot import load_policy

    folder = local_folder(options.run)
    config = settings_of(folder, ["sim.num_envs=1"])
    world = world_of(config.sim)
    policy, observe = load_policy(folder, config, world)
    limits = Limits(
        options.max_clients, options.max_batch, options.max_waiting, round(options.max_message_mb * 2**20),
        options.wait_ms / 1000,
    )  # fmt: skip
    size = len(world.action_spec["names"])
    expected = Expected(tuple(config.sim.cameras), config.sim.image_size, world.proprio_size, size)
    passport = passport_of(folder) | {"real_time_chunking": can_continue(policy)}
    return PolicyServer(serve_rows(policy, observe, not options.sampled), expected, passport, limits)


if __name__ == "__main__":
    sys.exit(main())
