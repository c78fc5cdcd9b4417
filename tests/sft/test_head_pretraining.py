"""How long the head learns alone."""

import pytest

from vla.config import load
from vla.pipelines.robot.sft import num_head_steps


@pytest.mark.parametrize(
    ("num_frames", "steps"),
    [
        (17_663, 1000),  # 60 passes would be 4140 steps of 256: the steps asked for are fewer
        (2145, 503),  # 60 x 2145 / 256 = 502.7
        (100, 60),  # a batch is all frames there are, a step a pass
    ],
)
def test_few_frames_are_not_learned_by_heart(num_frames, steps):
    assert (
        num_head_steps(load(["sft.head_steps=1000", "sft.max_head_epochs=60"]).sft, num_frames)
        == steps
    )


def test_the_limit_can_be_lifted():
    assert (
        num_head_steps(load(["sft.head_steps=1000", "sft.max_head_epochs=null"]).sft, 100) == 1000
    )
