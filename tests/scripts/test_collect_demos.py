"""The command makes a dataset from the real simulator and expert, and says what is wrong in one
line."""

import importlib.util
from pathlib import Path

import pytest

from vla.data.demonstrations import open_demonstrations

SCRIPT = Path(__file__).parents[2] / "scripts" / "collect_demos.py"


def load():
    spec = importlib.util.spec_from_file_location("collect_demos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_demonstrations(tmp_path, capsys):
    output = tmp_path / "demos"
    command = [
        "--num",
        "2",
        "--robot",
        "gantry",
        "--image-size",
        "32",
        "--num-envs",
        "2",
        "--output",
        str(output),
    ]
    main = load().main
    assert main(command) == 0
    assert "2 episodes" in capsys.readouterr().out
    demos = open_demonstrations(output)
    assert (demos.num_episodes, demos.robot, demos.cameras) == (2, "gantry", ("front", "wrist"))
    assert demos.action_spec["control_hz"] == demos.fps == 20
    assert demos.columns.success.all()
    assert demos.instructions[0].startswith("put the ")
    assert demos.frames["front"].std() > 5  # something was drawn

    for wrong, said in ((command, "exists already"), ([*command, "--robot", "hexapod"], "hexapod")):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert said in capsys.readouterr().err
