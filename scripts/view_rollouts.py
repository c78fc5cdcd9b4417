"""Look at the episodes of a run in the browser: cameras, the scene in 3-D, and what the policy
thought at every moment.

python scripts/view_rollouts.py runs/NAME                   # opens the browser
python scripts/view_rollouts.py runs/NAME --live            # follows a run that is still training
python scripts/view_rollouts.py runs/NAME --html page.html  # one file that opens from disk
python scripts/view_rollouts.py runs/NAME --rrd rollouts.rrd
python scripts/view_rollouts.py runs/NAME --dataset FOLDER  # a LeRobotDataset v3 of one episode a start
python scripts/view_rollouts.py runs/NAME --native          # MuJoCo's own viewer, the policy acting live
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.command_line import command


def parse(argv: list[str] | None) -> argparse.Namespace:
    from vla.hosts import port_number

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument(
        "--live", action="store_true", help="wait for a run that only begins; its episodes appear"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page that needs no server"
    )
    parser.add_argument("--rrd", type=Path, metavar="FILE", help="write a recording for Rerun")
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="write a LeRobotDataset v3")
    parser.add_argument("--successes", action="store_true", help="of --dataset: no failures")
    parser.add_argument("--native", action="store_true", help="MuJoCo's viewer; needs a display")
    parser.add_argument(
        "--episodes", type=int, default=24, help="in a file, the newest (default %(default)s)"
    )
    parser.add_argument(
        "--port", type=port_number, default=0, help="of the page (default: a free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare()
    from scripts.viewing import open_library, watch_native, write_html, write_rrd
    from vla.viewer.dataset import write_dataset

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


def serve(library, port: int, browser: bool) -> None:
    import webbrowser

    from vla.viewer.server import make_server

    server = make_server(library, port)
    print(f"{len(library.lines())} episodes at {server.address} (Ctrl-C ends)", flush=True)
    if browser:
        webbrowser.open(server.address)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
