"""The world that settings ask for: ours or gymnasium's, both what the stages need."""

import pytest

from vla.config import ConfigError, load
from vla.simulator import make_simulator


def test_one_task_several_and_gymnasium():
    push = load(["sim=push"])
    assert (push.sim.tasks, push.name) == (("push",), "push-token-dr_grpo")
    mixture = load(["sim.task=[reach,lift]"])
    assert (mixture.sim.tasks, mixture.name) == (("reach", "lift"), "reach+lift-token-dr_grpo")
    gym = load(["sim=gym", "sim.id=FetchPickAndPlace-v4"])
    assert gym.name == "FetchPickAndPlace-v4-token-dr_grpo"
    assert (gym.model.checkpoint, gym.grounding.num_steps, gym.data.question_weight) == (
        None,
        0,
        0.0,
    )
    for config in (push, mixture, gym):
        world = make_simulator(config.sim)
        assert all(
            callable(getattr(world, name))
            for name in ("environment", "recorder", "scenes", "expert", "texts")
        )
    assert "push the red cube to the blue square" in make_simulator(push.sim).texts()
    assert gym.sim.instruction in make_simulator(gym.sim).texts()


def test_what_a_world_of_gymnasium_lacks_is_said():
    world = make_simulator(load(["sim=gym", "sim.num_envs=1", "sim.image_size=32"]).sim)
    assert (world.proprio_size, world.environment().action_spec.size) == (10, 2)  # Reacher
    with pytest.raises(
        ValueError, match="sim=gym has no scenes to ask about: set grounding.num_steps=0"
    ):
        world.scenes().scenes([0])
    with pytest.raises(ValueError, match="Reacher-v5\\) has no scripted expert"):
        world.expert(world.environment(), 0, 0.0)
    world.environment().close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sim=gym", "model.checkpoint=embedded"],
            "model.checkpoint \\(embedded\\) was trained on the two cameras",
        ),
        (
            ["sim=gym", "grounding.num_steps=5"],
            "grounding.num_steps needs scenes, and sim.simulator=gymnasium has none",
        ),
        (
            ["sim=gym", "data.question_weight=0.5"],
            "data.question_weight needs scenes, and sim.simulator=gymnasium has none",
        ),
        (
            ["sim.perturbation=lights"],
            "sim.perturbation \\(lights\\): no such choice; did you mean light",
        ),
    ],
)
def test_settings_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides)
