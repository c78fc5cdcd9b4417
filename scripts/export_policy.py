"""A run's policy as a folder of its own, with a model card; and to the hub, if you say so.

    python scripts/export_policy.py runs/NAME exported/pick_place
    python scripts/export_policy.py runs/NAME exported/pick_place --push user/pick_place --private

scripts/evaluate.py and scripts/serve_policy.py take such a folder, or `user/name`, where they take
a run.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vla.command_line import command


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument(
        "--push", metavar="USER/NAME", help="put it on the hub; needs huggingface-cli login"
    )
    parser.add_argument("--private", action="store_true", help="a repository that only you see")
    return parser.parse_args(argv)


@command()
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare(offline=options.push is None)
    from scripts.world import world_of
    from vla.hub.pretrained import push_to_hub, save_pretrained

    save_pretrained(options.run, options.folder, world_of)
    print(f"{options.folder}: weights, passport, tokenizer and model card")
    if options.push:
        print(push_to_hub(options.folder, options.push, options.private))
    return 0


if __name__ == "__main__":
    sys.exit(main())
