"""The old name of a setting answers with the new one."""

from __future__ import annotations

import pytest
import yaml

from vla.config import ConfigError, freeze, load
from vla.config.renamed import RENAMED, new_name, with_new_names


@pytest.fixture
def renamed(monkeypatch):
    """As if these had been called otherwise before."""
    monkeypatch.setitem(RENAMED, "rl.passes", "rl.epochs")
    monkeypatch.setitem(RENAMED, "sft.augment.lumen", "sft.augment.light")
    monkeypatch.setitem(RENAMED, "sft.jitter", "sft.augment")


def test_a_section_stands_for_what_is_in_it(renamed):
    assert new_name("sft.jitter.light") == "sft.augment.light"
    assert new_name("rl.passes") == "rl.epochs"
    assert new_name("rl.epochs") is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.passes=2", "rl.passes=2: this setting is now called rl.epochs"),
        ("sft.augment={lumen: 0.2}", "sft.augment.lumen=0.2: .* now called sft.augment.light"),
    ],
)
def test_an_override_by_the_old_name_is_refused(renamed, override, message):
    with pytest.raises(ConfigError, match=message):
        load([override])


def test_a_file_or_run_with_the_old_name_is_refused(renamed, tmp_path):
    values = load().model_dump(mode="json")
    values["rl"]["passes"] = values["rl"].pop("epochs")
    values["sft"]["jitter"] = values["sft"].pop("augment")
    message = (
        "sft.jitter \\(.*\\): this setting is now called sft.augment\n"
        r"rl.passes \(4\): this setting is now called rl.epochs$"
    )
    with pytest.raises(ConfigError, match=message):
        freeze(values)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        load([f"resume={tmp_path}"])


def test_every_new_name_is_a_setting():
    known = {**load().model_dump(), **load(["mode=text"]).model_dump()}
    for new in RENAMED.values():
        assert new.split(".")[0] in known, new


def test_the_settings_of_a_saved_policy_are_read_under_their_present_names(renamed):
    now = load().model_dump(mode="json")
    old = load().model_dump(mode="json")
    old["rl"]["passes"] = old["rl"].pop("epochs")
    old["sft"]["augment"]["lumen"] = old["sft"]["augment"].pop("light")
    old["sft"]["jitter"] = old["sft"].pop("augment")
    old["sft"]["jitter"]["light"] = old["sft"]["jitter"].pop("lumen")
    old["rl"]["branch_share"] = old["rl"].pop("branch_fraction")
    assert with_new_names(old) == now
    assert "branch_share" in old["rl"], "the given values stay as they are"
