"""What a script sets before torch loads."""

import importlib
import os
import subprocess
import sys

import pytest

from vla import runtime


def test_settings_come_before_torch_or_not_at_all():
    import torch

    assert torch
    with pytest.raises(RuntimeError, match="must run before torch is imported"):
        runtime.prepare()


def prepared(arguments: str, **environment: str) -> dict[str, str]:
    """What the environment is after `prepare(arguments)` in a fresh process."""
    names = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
    code = f"import os; from vla import runtime; runtime.prepare({arguments}); print([os.environ.get(n) for n in {names}])"
    kept = {name: value for name, value in os.environ.items() if name not in names}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, check=True
    )
    values = run.stdout.decode().strip().strip("[]").replace("'", "").split(", ")
    return dict(zip(names, values, strict=True))


def test_threads_do_not_spin_and_no_hub_is_asked():
    found = prepared("num_threads=2")
    assert found == {
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def test_what_the_user_set_stays():
    found = prepared("offline=False", GOMP_SPINCOUNT="7", OMP_NUM_THREADS="3")
    assert (found["GOMP_SPINCOUNT"], found["OMP_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == (
        "7",
        "3",
        "None",
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_the_allocator_takes_the_settings():
    assert runtime.keep_freed_memory()


def test_a_name_is_the_hubs_only_where_nothing_here_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    asked = {
        name: runtime.is_hub_name(name)
        for name in ("user/name", "runs/a", "runs/b", "a", "a/b/c", "/runs/a")
    }
    assert [name for name, found in asked.items() if found] == [
        "user/name"
    ]  # runs/b is a run that is not there


@pytest.mark.parametrize("script", ["evaluate", "serve_policy"])
def test_commands_ask_the_hub_for_what_only_it_can_hold(script, tmp_path, monkeypatch):
    told = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "prepare", lambda *_, offline=True: told.update(offline=offline))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = importlib.import_module(f"scripts.{script}")
    for name, offline in (("user/name", False), ("name", True)):
        with pytest.raises(SystemExit):
            command.main([name])
        assert told["offline"] == offline
