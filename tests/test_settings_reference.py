"""`--help GROUP`: every setting with its range, its default and the comment of the YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vla.cli import read_config
from vla.config import ConfigError, load
from vla.config.reference import group_help
from vla.config.search_path import groups, options


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        read_config("what it does", ["--help", *arguments])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_a_setting_has_its_range_default_and_comment(capsys):
    text = printed(capsys, "rl")
    assert (
        "rl.num_iterations=300\n"
        "    integer, 0 to 100,000,000\n"
        "    iterations of a rollout and its updates; 0: no RL\n"
    ) in text
    assert "rl.critic=shared\n    shared | separate\n" in text
    assert (
        "rl.max_seconds=2400.0\n    number, above 0, at most 100,000,000 or null, seconds" in text
    )


@pytest.mark.parametrize("group", groups())
def test_every_setting_of_a_group_is_there(group):
    text = group_help(group)
    assert all(f"  {option} " in text for option in options(group) if len(options(group)) > 1)
    mode = "text" if group in ("text", "language_model", "preference") else "robot"
    section = getattr(load([f"mode={mode}"]), group, None)
    for name in {} if section is None or isinstance(section, str) else type(section).model_fields:
        assert f"{group}.{name}" in text


def test_an_option_is_shown_with_what_it_builds_on():
    text = group_help("algorithm=dppo")
    assert "algorithm.clip_first_draw=0.1\n" in text
    assert "algorithm.gamma=0.99\n    number, 0 to 1\n    discount of a decision" in text
    assert "rl.learning_rate=0.0001\n" in group_help("rl", ["policy=flow"])
    assert group_help("text.generation", ["text=rlhf"]).count("text.generation.") == 6


def test_a_topic_that_is_none_gets_the_nearest():
    with pytest.raises(ConfigError, match="--help modle: no such group; did you mean mode"):
        group_help("modle")
    with pytest.raises(ConfigError, match="did you mean rl.num_iterations"):
        group_help("rl.num_iteration")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from vla.config.reference import group_help; group_help('rl');"
        "print({'torch', 'numpy', 'mujoco'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    out = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
