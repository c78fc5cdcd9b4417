"""Serve the policy of a run over a websocket: actions for robots and simulators elsewhere, in
openpi's client protocol.

    python scripts/serve_policy.py runs/NAME --port 8000
    python scripts/drive_remote.py ws://localhost:8000            # a client: the simulator, driven through it
    VLA_SERVE_TOKEN=... python scripts/serve_policy.py runs/NAME --host 0.0.0.0 --tls-certificate C.pem --tls-key K.pem

A client sends {"images": {camera: uint8 [h, w, 3]}, "state": [s], "prompt": text} and gets
{"actions": [H, A]}. Health is at http://HOST:PORT/healthz, numbers at /status. After Ctrl-C or
SIGTERM requests in flight are answered, new ones refused; the exit code is 0, or 1 where
--drain-seconds did not suffice. What is promised: docs/security.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.command_line import command


def parse(argv: list[str] | None) -> argparse.Namespace:
    from vla.serve.options import add_access_flags, add_limit_flags

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", help="the folder of a run or of an exported policy, or user/name on the hub"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="sampled decisions in place of greedy ones"
    )
    add_access_flags(parser)
    add_limit_flags(parser)
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare(offline=not runtime.on_hub(options.run))
    from vla.serve.lifetime import serve_until_signal

    return serve_until_signal(open_server(options), options.host, options.port, options.run)


def open_server(options: argparse.Namespace):
    """The policy of a run behind a server that does not listen yet."""
    from vla.serve.options import read_access, read_limits

    access = read_access(options)  # before anything loads
    read_limits(options, 0)
    from scripts.world import world_of
    from vla.evaluate.settings import settings_of
    from vla.hub.pretrained import local_folder
    from vla.policies.continuing import can_continue
    from vla.serve.policy import expected_of, passport_of, serve_rows
    from vla.serve.server import PolicyServer
    from vla.stages.robot import load_policy

    folder = local_folder(options.run)
    config = settings_of(folder, ["sim.num_envs=1"])
    world = world_of(config.sim)
    policy, observer = load_policy(folder, config, world)
    expected = expected_of(config, world, observer)
    limits = read_limits(options, expected.num_bytes)
    passport = passport_of(folder) | {"real_time_chunking": can_continue(policy)}
    return PolicyServer(
        serve_rows(policy, observer, not options.sampled), expected, passport, limits, access
    )


if __name__ == "__main__":
    sys.exit(main())
