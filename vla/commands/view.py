"""Show the episodes of a run in the browser: cameras, the 3-D scene, and the policy's outputs.

vla-view runs/NAME                   # opens the browser
vla-view runs/NAME --live            # follows a run during training
vla-view runs/NAME --html page.html  # a page in one file
vla-view runs/NAME --rrd rollouts.rrd
vla-view runs/NAME --dataset FOLDER  # a LeRobotDataset v3, an episode for each start
vla-view runs/NAME --native          # MuJoCo's own viewer, the policy acting live
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vla.cli import command
from vla.command_names import with_command_names

if TYPE_CHECKING:
    from vla.viewer.library import EpisodeLibrary


def make_parser() -> argparse.ArgumentParser:
    from vla.network_hosts import parse_port

    parser = argparse.ArgumentParser(
        description=with_command_names(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument(
        "--live",
        action="store_true",
        help="wait for a run to begin, and add its episodes as they appear",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page that needs no server"
    )
    parser.add_argument("--rrd", type=Path, metavar="FILE", help="write a recording for Rerun")
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="write a LeRobotDataset v3")
    parser.add_argument(
        "--successes", action="store_true", help="for --dataset: successful episodes only"
    )
    parser.add_argument("--native", action="store_true", help="MuJoCo's viewer; needs a display")
    parser.add_argument(
        "--episodes", type=int, default=24, help="newest episodes in a file (default %(default)s)"
    )
    parser.add_argument(
        "--port", type=parse_port, default=0, help="port of the page (default: a free one)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, open no browser"
    )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    return make_parser().parse_args(argv)


@command(make_parser=make_parser)
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare()
    from vla.viewer.dataset import write_dataset
    from vla.viewer.episodes import open_library, watch_native, write_html, write_rrd

    try:
        library = open_library(options.run, wait=options.live)
        if options.native:
            watch_native(options.run)
        elif options.dataset:
            write_dataset(library, options.dataset, options.episodes, options.successes)
        elif options.html or options.rrd:
            if options.html:
                write_html(library, options.html, options.episodes)
            if options.rrd:
                write_rrd(library, options.rrd, options.episodes)
        else:
            serve(library, options.port, not options.no_browser)
    except KeyboardInterrupt:
        return 0
    return 0


def serve(library: "EpisodeLibrary", port: int, browser: bool) -> None:
    """Serve the page of a run's episodes until Ctrl-C."""
    import webbrowser

    from vla.viewer.server import make_server

    server = make_server(library, port)
    print(f"{len(library.summaries())} episodes at {server.address} (Ctrl-C ends)", flush=True)
    if browser:
        webbrowser.open(server.address)
    server.serve_forever()
