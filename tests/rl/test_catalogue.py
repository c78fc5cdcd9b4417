"""What is refused, by name, before anything heavy loads."""

import pytest

from tests.rl.toys import SETTINGS
from vla.rl import validation as checks
from vla.rl.algorithm_factory import algorithm_type, check_run, make_algorithm
from vla.rl.loop import LoopSettings
from vla.rl.update import UpdateSettings

nan = float("nan")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("grpo", {"clip_low": -0.1}, "clip_low.*-0.1"),
        ("grpo", {"clip_high": nan}, "clip_high.*nan"),
        ("grpo", {"gae_lambda": 0.95}, "grpo.gae_lambda is not a setting"),
        ("grpo", {"clip_hihg": 0.2}, "did you mean clip_high"),
        ("grpo", {"reduction": "constant"}, "max_length"),
        ("grpo", {"max_length": 5}, "max_length.*sequence"),
        ("grpo", {"kl_coefficient": -0.1}, "kl_coefficient"),
        ("grpo", {"dual_clip": 0.9}, "dual_clip"),
        ("ppo", {"gamma": 1.5}, "gamma"),
        ("ppo", {"gae_lambda": -0.5}, "gae_lambda"),
        ("ppo", {"value_coefficient": 0.0}, "value_coefficient"),
        ("ppo", {"value_clip": 0.0}, "value_clip"),
        ("dapo", {"overlong_buffer": 10, "max_length": 5}, "max_length.*overlong_buffer"),
        ("dapo", {"max_length": 5}, "max_length"),
        ("dr_grpo", {"max_length": 0}, "max_length"),
        ("reinforce", {"baseline": "critic"}, "value_coefficient"),
    ],
)
def test_bad_settings_are_refused_by_name(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, **{**SETTINGS[name], **settings})


def test_unknown_and_unfinished_algorithms_are_refused():
    with pytest.raises(ValueError, match="did you mean grpo"):
        algorithm_type("grppo")
    with pytest.raises(ValueError, match="ppo.clip_low is missing"):
        make_algorithm("ppo")


@pytest.mark.parametrize(
    ("name", "settings", "update", "run", "message"),
    [
        ("grpo", {}, (1, 1, 8), {"group_size": 1}, "group_size.*1"),
        ("ppo", {}, (1, 1, 8), {"has_critic": False}, "critic"),
        ("grpo", {"kl_coefficient": 0.1}, (1, 1, 8), {}, "kl_coefficient.*reference"),
        ("grpo", {}, (1, 3, 8), {"num_rows": 64}, "num_minibatches.*3.*64"),
        ("reinforce", {}, (2, 1, 8), {}, "epochs.*REINFORCE"),
    ],
)
def test_runs_that_cannot_work_are_refused(name, settings, update, run, message):
    algorithm = make_algorithm(name, **{**SETTINGS[name], **settings})
    given = {"group_size": 8, "has_critic": True, "has_reference": False, **run}
    with pytest.raises(ValueError, match=message):
        check_run(algorithm, UpdateSettings(*update), **given)


def test_a_good_run_passes():
    check_run(
        make_algorithm("grpo", **SETTINGS["grpo"]),
        UpdateSettings(2, 4, 8),
        group_size=8,
        has_critic=False,
        has_reference=False,
        num_rows=64,
    )


def test_a_choice_that_is_none_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="scale.*'variance'.*std, none"):
        checks.check_one_of("scale", "variance", ("std", "none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs.*0"),
        ({"num_minibatches": 0}, "num_minibatches"),
        ({"micro_batch_rows": -1}, "micro_batch_rows"),
        ({"max_grad_norm": 0.0}, "max_grad_norm.*null"),
        ({"target_kl": -1.0}, "target_kl"),
        ({"importance_cap": 0.0}, "importance_cap"),
    ],
)
def test_bad_update_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        UpdateSettings(**{"epochs": 1, "num_minibatches": 1, "micro_batch_rows": 8, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": -1}, "num_iterations"),
        ({"reference_refresh_every": 0}, "reference_refresh_every"),
        ({"kl_target": 6.0}, "kl_target.*kl_horizon"),
        ({"kl_target": 0.0, "kl_horizon": 10.0}, "kl_target"),
    ],
)
def test_bad_loop_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        LoopSettings(**{"num_iterations": 1, **settings})
