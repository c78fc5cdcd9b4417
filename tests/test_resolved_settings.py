"""What settings become where branches cannot be had, where a model is pretrained, where a stage is
off."""

import pytest

from vla.config import ConfigError, load


@pytest.mark.parametrize(
    ("given", "group_size", "starts"),
    [
        (["model=smolvlm"], 8, 16),
        (["model=hub"], 8, 16),
        (["model=smollm2", "algorithm=ppo"], 1, 128),
        (["sim=gym", "rl.group_size=4"], 4, 128),
        (["policy.decoding=autoregressive", "preset=smoke"], 4, 2),
        (["policy=flow", "rl.adapt=weights"], 8, 16),
        (["policy=regression", "rl.adapt=backbone", "rl.num_start_states=10"], 8, 10),
    ],
)
def test_whole_episodes_are_learned_from_where_branches_cannot_be_had(
    given: list[str], group_size: int, starts: int
):
    said: list[str] = []
    rl = load([*given, "rl.num_minibatches=2"], said.append).rl
    assert (rl.num_branches, rl.group_size, rl.num_start_states) == (0, group_size, starts)
    assert len(said) == 1
    assert said[0].startswith("rl.num_branches=0")


def test_what_a_stage_that_is_off_by_name_would_read_is_told():
    said: list[str] = []
    load(
        ["rl.num_iterations=0", "rl.epochs=2", "data.path=demos", "data.num_demonstrations=9"],
        said.append,
    )
    assert said == [
        "rl.epochs=2 has no effect: rl.num_iterations is 0",
        "data.num_demonstrations=9 has no effect: data.path=demos gives the demonstrations",
    ]
    load(["mode=text", "text=sft", "rl.group_size=8"], pytest.fail)  # what would be there anyway


def test_a_loss_on_preferences_chooses_its_mode():
    assert load(["mode=text", "preference=kto"]).text.name == "preference"
    with pytest.raises(ConfigError, match="^preference=kto has no effect: text=rlvr"):
        load(["mode=text", "text=rlvr", "preference=kto"])


def test_limits_that_need_a_validation_are_refused_where_there_is_none():
    short = ["rl.num_iterations=2", "rl.evaluate_every=3"]
    for given in (
        ["rl.patience=2"],
        ["mode=text", "rl.patience=2"],
        ["mode=text", "rl.target_success=0.9"],
    ):
        with pytest.raises(
            ConfigError, match="has no effect: rl.evaluate_every is more than rl.num_iterations"
        ):
            load([*given, *short])
    load(
        ["rl.target_success=0.9", *short], pytest.fail
    )  # reached by what SFT left, RL does not begin


def test_branches_stay_where_they_can_be_had():
    for given in (
        ["policy=token"],
        ["policy=flow", "rl.adapt=backbone"],
        ["policy=fast"],
        ["sim=lift"],
    ):
        assert load(given, pytest.fail).rl.num_branches == 8


def test_what_is_pretrained_is_not_grounded():
    assert [
        load([f"model={name}"]).grounding.num_steps
        for name in ("smolvlm", "paligemma", "qwen2_5_vl", "hub")
    ] == [0] * 4
    assert load(["model=smolvlm", "grounding.num_steps=7"]).grounding.num_steps == 7
