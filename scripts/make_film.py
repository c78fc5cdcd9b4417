"""Make a film of a run's policy before and after reinforcement learning, on the first held-out
starts.

python scripts/make_film.py runs/NAME                           # runs/NAME/videos/film.webp
python scripts/make_film.py runs/NAME --output docs/film.webp --starts 4
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.cli import command


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--output", type=Path, help="the film (default: RUN/videos/film.webp)")
    parser.add_argument(
        "--starts", type=int, default=4, help="how many starts, an even number (default 4)"
    )
    parser.add_argument(
        "--pixels", type=int, default=160, help="of a square image (default %(default)s)"
    )
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare()
    from scripts.filming import film_run

    output = options.output or options.run / "videos" / "film.webp"
    size = film_run(options.run, output, options.starts, options.pixels)
    print(f"{output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
