"""Command lines: settings as `key=value`, `--help`, `--cfg job`, errors in one line.

This module imports nothing heavy.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, NoReturn

from vla.command_names import with_command_names
from vla.interrupt import SIGNALS, Interrupted, exit_on_interrupt

if TYPE_CHECKING:
    from vla.config import Config


def command(
    remark: str = "",
    make_parser: Callable[[], argparse.ArgumentParser] | None = None,
    takes_settings: bool = False,
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator of the main function of a command: errors in one line in place of a traceback.

    An error of a setting, a file or the machine gives exit code 2. A signal ends the command at any
    moment; a run that was stopped and has saved ends with the exit code of the signal.

    Args:
        remark: appended to the line that reports a signal.
        make_parser: makes the parser whose flags the shell completes (`vla.completion`).
        takes_settings: the shell completes settings too.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @wraps(main)
        def run(arguments: list[str] | None = None) -> int:
            given = sys.argv[1:] if arguments is None else arguments
            try:
                with exit_on_interrupt(remark):
                    if given[:1] in (["--completion"], ["--complete"]):
                        from vla.completion import complete

                        print(complete(given, make_parser, takes_settings))
                        return 0
                    return main(arguments)
            except Interrupted as stopped:
                return stopped.exit_code
            except (ValueError, OSError, ImportError, FloatingPointError) as error:
                fail(explain_error(error))
            finally:
                if arguments is None:  # a KeyboardInterrupt while Python ends is a traceback
                    for number in SIGNALS:
                        signal.signal(number, signal.SIG_DFL)

        return run

    return decorate


def read_config(description: str, arguments: Sequence[str] | None = None) -> Config:
    """Read the settings of a command line.

    `--help` and `--cfg job` print and exit; a wrong setting exits with status 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    pop_config_folders(given)
    if "--help" in given or "-h" in given:
        print(requested_help(description, given))
        raise SystemExit(0)
    show = pop_cfg_flag(given)
    unknown = [argument for argument in given if argument.startswith("-")]
    if unknown:
        fail(f"{unknown[0]}: no such flag; settings are written key=value, --help shows them")
    from vla.config import ConfigError, load

    try:
        config = load(given, say=lambda line: print(f"note: {line}", file=sys.stderr))
    except ConfigError as error:
        fail(str(error))
    if show:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def pop_config_folders(given: list[str]) -> None:
    """Remove every `--config-dir FOLDER` from the arguments, and search its YAML groups too."""
    from vla.config.search_path import add_folder

    while "--config-dir" in given:
        i = given.index("--config-dir")
        if i + 1 == len(given):
            fail("--config-dir takes a folder with groups of YAML files")
        add_folder(given[i + 1])
        del given[i : i + 2]


def requested_help(description: str, given: Sequence[str]) -> str:
    """Text of `--help` (command and groups) or of `--help GROUP` (every setting of a group)."""
    topics = [word for word in given if word not in ("--help", "-h")]
    if not topics:
        return help_text(description)
    from vla.config.reference import group_help

    return group_help(topics[0], topics[1:])


def pop_cfg_flag(given: list[str]) -> bool:
    """Remove `--cfg job` (or `-c job`) from the arguments; True where it was given."""
    for flag in ("--cfg", "-c"):
        if flag in given:
            i = given.index(flag)
            if given[i + 1 : i + 2] != ["job"]:
                fail(f"{flag} takes one word: {flag} job prints the settings of this run")
            del given[i : i + 2]
            return True
    return False


def fail(message: str) -> NoReturn:
    """Print the message on the error stream and exit with status 2."""
    from vla.files.secrets import mask_secrets

    print(
        "\n".join(f"error: {line}" for line in mask_secrets(message).splitlines()), file=sys.stderr
    )
    raise SystemExit(2)


def explain_error(error: Exception) -> str:
    """The message of an error; path, fault and remedy for an error of the operating system."""
    if (
        not isinstance(error, OSError)
        or error.errno is None
        or error.strerror is None
        or error.filename is None
    ):
        return str(error)
    remedy = REMEDIES.get(error.errno, "check the path, then run again")
    return f"{error.filename}: {error.strerror.lower()}; {remedy}"


WRITABLE = "check the permissions of the folder, or choose another one"
REMEDIES = {
    errno.EACCES: WRITABLE,
    errno.EPERM: WRITABLE,
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOENT: "check the path for a misspelling",
    errno.ENOTDIR: "a part of the path is a file: choose another",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "a file has this name: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your share of the disk",
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n)",
}
"""{errno: remedy} of errors of the operating system."""


def to_yaml(config: Config) -> str:
    """Format the settings as YAML, as saved with every checkpoint; secrets are masked."""
    import yaml

    from vla.files.secrets import mask_nested

    values = mask_nested(config.model_dump(mode="json"))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def help_text(description: str) -> str:
    """Text of `--help`: the command, then every group with its options and their summaries."""
    from vla.config.compose import mode_groups
    from vla.config.search_path import groups, option_files, options

    lines = [
        with_command_names(description.strip()),
        "",
        "Groups (group=option); the option marked * is the default:",
    ]
    defaults = default_options()
    in_order = [
        "mode",
        *dict.fromkeys(g for mode in options("mode") for g in mode_groups(mode)),
        "preset",
    ]
    for group in [*in_order, *(g for g in groups() if g not in in_order)]:
        lines.append(f"\n  {group}")
        for option in options(group):
            first = next(
                s
                for s in option_files(group)[option].read_text().splitlines()
                if "@package" not in s
            )
            mark = "*" if option == defaults.get(group) else " "
            lines.append(f"   {mark} {option:<24}{first.removeprefix('# ')}")
    return "\n".join([*lines, "", *EXAMPLES])


def default_options() -> dict[str, str]:
    """Default option of every group, {group: option}; mode=robot decides for shared groups."""
    from vla.config.compose import option_values

    chosen = {"mode": "robot", "preset": "default"}
    for mode in ("text", "robot"):
        for entry in option_values("mode", mode)["defaults"]:
            chosen |= {key.lstrip("/"): option for key, option in entry.items()}
    return chosen


EXAMPLES = (
    "Any setting of a group can be given too (section.setting=value):",
    "  --help rl                   every setting of a group, with its range and default",
    "  --config-dir FOLDER         further YAML files of groups, FOLDER/GROUP/OPTION.yaml",
    "  --cfg job                   print every setting of this run, with what is given beside it",
    "  rl.num_iterations=10        one setting",
    "  preset=smoke                everything small, to see that it runs",
    "  resume=runs/NAME            continue a run from its last checkpoint",
    "  run_dir=runs/NAME           where to write; by default runs/<time>-<name>",
)
