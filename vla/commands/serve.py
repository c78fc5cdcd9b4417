"""Serve the policy of a run over a websocket, in the client protocol of openpi.

    vla-serve runs/NAME --port 8000
    python scripts/drive_remote.py ws://localhost:8000            # a client in the simulator
    VLA_SERVE_TOKEN=... vla-serve runs/NAME --host 0.0.0.0 --tls-certificate C.pem --tls-key K.pem

A client sends {"images": {camera: uint8 [h, w, 3]}, "state": [s], "prompt": text} and gets
{"actions": [H, A]}. Health is at http://HOST:PORT/healthz, numbers at /status. After Ctrl-C or
SIGTERM the server answers requests in flight and refuses new ones. The exit code is 0, or 1 where
--drain-seconds was too short. docs/reference/security.md lists the guarantees.
"""

import argparse
from typing import TYPE_CHECKING

from vla.cli import command
from vla.command_names import with_command_names

if TYPE_CHECKING:
    from vla.serve.server import PolicyServer


def make_parser() -> argparse.ArgumentParser:
    from vla.serve.options import add_access_flags, add_limit_flags

    parser = argparse.ArgumentParser(
        description=with_command_names(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", help="the folder of a run or of an exported policy, or user/name on the hub"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="sampled decisions in place of greedy ones"
    )
    add_access_flags(parser)
    add_limit_flags(parser)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    return make_parser().parse_args(argv)


@command(make_parser=make_parser)
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare(offline=not runtime.is_hub_name(options.run))
    from vla.serve.server_process import serve_until_signal

    return serve_until_signal(open_server(options), options.host, options.port, options.run)


def open_server(options: argparse.Namespace) -> "PolicyServer":
    """Load the policy of a run into a server that does not listen yet."""
    from vla.serve.options import read_access, read_limits

    access = read_access(options)  # refuse wrong flags before torch loads
    read_limits(options, 0)
    from vla.evaluation.checkpoint_settings import checkpoint_settings
    from vla.interop.hub.pretrained import local_folder
    from vla.pipelines.robot.policy import load_policy
    from vla.policies.real_time_chunking import can_continue
    from vla.serve.policy_service import make_act, observation_spec, server_metadata
    from vla.serve.server import PolicyServer
    from vla.simulator import make_simulator

    folder = local_folder(options.run)
    config = checkpoint_settings(folder, ["sim.num_envs=1"])
    simulator = make_simulator(config.sim)
    policy, observer = load_policy(folder, config, simulator)
    spec = observation_spec(config, simulator, observer)
    limits = read_limits(options, spec.num_bytes)
    policy_spec = server_metadata(folder) | {"real_time_chunking": can_continue(policy)}
    return PolicyServer(
        make_act(policy, observer, not options.sampled), spec, policy_spec, limits, access
    )
