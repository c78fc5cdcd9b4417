"""Export the policy or the language model of a run to a folder, and to the hub.

    vla-export runs/NAME exported/pick_place
    vla-export runs/NAME exported/pick_place --push user/pick_place --private
    vla-export runs/NAME exported/pick_place --merge    # adapters and their base as one model

A run with adapters is exported as adapters and heads that name their base, unless --merge is given.
A text run is exported as a folder of transformers, or of peft with the name of its base.

vla-eval and vla-serve accept the folder of a policy, or `user/name`, in place of a run.
"""

import argparse
from pathlib import Path

from vla.cli import command
from vla.command_names import with_command_names


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=with_command_names(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument(
        "--merge", action="store_true", help="add adapters to the weights of their base"
    )
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload to the hub; needs huggingface-cli login"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    return make_parser().parse_args(argv)


@command(make_parser=make_parser)
def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from vla import runtime

    runtime.prepare(offline=options.push is None)
    from vla.interop.hub.pretrained import push_to_hub, save_pretrained
    from vla.interop.hub.text_model import export_language_model, is_text_run
    from vla.simulator import make_simulator

    if is_text_run(options.run):
        export_language_model(options.run, options.folder, merge=options.merge)
        print(f"{options.folder}: weights and tokenizer, a folder of transformers")
    else:
        save_pretrained(options.run, options.folder, make_simulator, merge=options.merge)
        print(f"{options.folder}: weights, policy spec, tokenizer and model card")
    if options.push:
        print(push_to_hub(options.folder, options.push, options.private))
    return 0
