"""Shell completion of the console commands: groups, options, settings and flags.

    eval "$(vla-train --completion bash)"          # zsh: the same with zsh
    vla-train --completion fish | source

The printed script calls the command: `vla-train --complete WORD` prints the completions of WORD.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from vla.command_names import COMMANDS

SCRIPTS = {
    "bash": """_vla_complete() {
    local word="${COMP_LINE:0:COMP_POINT}"
    word="${word##*[[:space:]]}"
    local before="${word%"${COMP_WORDS[COMP_CWORD]}"}"
    [[ "${COMP_WORDS[COMP_CWORD]}" == "=" ]] && before="$word"
    local found
    mapfile -t found < <("$1" --complete "$word" 2>/dev/null)
    COMPREPLY=("${found[@]#"$before"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    [[ ${#COMPREPLY[@]} -gt 0 ]] && compopt +o default
    return 0
}
complete -o default -F _vla_complete COMMANDS""",
    "zsh": """_vla_complete() {
    local -a found
    found=("${(@f)$("$words[1]" --complete "$words[CURRENT]" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -U -S '' -- $found; else _files; fi
}
autoload -Uz compinit && compinit -u
compdef _vla_complete COMMANDS""",
    "fish": """for command in COMMANDS
    complete -c $command -a '(eval (commandline -po)[1] --complete (commandline -ct) 2>/dev/null)'
end""",
}


def complete(
    given: Sequence[str],
    make_parser: Callable[[], argparse.ArgumentParser] | None,
    takes_settings: bool,
) -> str:
    """Output of `--completion SHELL` (a script) or `--complete WORD` (one candidate a line).

    Raises:
        ValueError: there is no script for the shell.
    """
    flag = given[0]
    word = given[1] if len(given) > 1 else ""
    if flag == "--completion":
        if word not in SCRIPTS:
            raise ValueError(f"--completion {word}: choose from {', '.join(SCRIPTS)}")
        return SCRIPTS[word].replace("COMMANDS", " ".join(COMMANDS))
    known = ["--help", *flag_candidates(make_parser)] if word.startswith("-") else []
    if takes_settings and not word.startswith("-"):
        known = setting_candidates(word)
    return "\n".join(sorted(name for name in known if name.startswith(word)))


def flag_candidates(make_parser: Callable[[], argparse.ArgumentParser] | None) -> list[str]:
    """Flags of the parser; the flags of every settings command where there is no parser."""
    if make_parser is None:
        return ["--cfg", "--completion", "--config-dir"]
    actions = make_parser()._actions
    return [flag for action in actions for flag in action.option_strings if flag.startswith("--")]


def setting_candidates(word: str) -> list[str]:
    """`group=option` after `group=`, settings after `section.`, otherwise group names."""
    from vla.config.compose import groups, option_paths, options

    group, equals, _ = word.partition("=")
    if equals:
        return [f"{group}={option}" for option in options(group)] if group in groups() else []
    section = word.partition(".")[0]
    if "." in word and section in groups():
        paths = {path for option in options(section) for path in option_paths(section, option)}
        return [f"{section}.{path}=" for path in paths if path != "defaults"]
    return [f"{name}=" for name in (*groups(), "run_dir", "resume")]
