"""Which settings a resumed run may be told anew."""

from pathlib import Path

import pytest

from vla.cli import to_yaml
from vla.config import ConfigError, load

UNFIT = {
    "": [
        "model.lora={rank:4,alpha:8}",
        "model.backbone.width=64",
        "policy.num_bins=16",
        "policy.chunk=8",
        "sim.cameras=[front]",
        "sim.robot=gantry",
        "evaluation.num_starts=4",
        "train.seed=5",
        "rl.ema_decay=null",
        "rl.num_branches=0",
        "data.num_demonstrations=4",
        "rl.optimizer=muon",
        "sft.ema_decay=null",
    ],
    "mode=text": [
        "language_model.lora={rank:4,alpha:8}",
        "text.num_evaluation=8",
        "text.families=[add1]",
        "text.num_samples=2",
        "text.max_new_tokens=40",
    ],
    "mode=text text=preference": [
        "preference.beta=0.5",
        "text.prompts.num_evaluation=8",
        "text.rounds=2",
    ],
}
FIT = ["train.num_threads=2", "train.checkpoint_seconds=5"]
FIT_OF_RL = ["rl.num_iterations=9", "rl.learning_rate=1e-5", "rl.max_seconds=100", "rl.epochs=2"]


@pytest.mark.parametrize("begun", UNFIT)
def test_resume_refuses_what_does_not_fit_the_weights_data_and_judgements_of_the_run(
    tmp_path: Path, begun: str
):
    (tmp_path / "config.yaml").write_text(to_yaml(load([*begun.split(), f"run_dir={tmp_path}"])))
    for setting in UNFIT[begun]:
        name = setting.split("=")[0]
        with pytest.raises(
            ConfigError,
            match=rf"{name}[. (].* does not fit resume={tmp_path}: the files of the run were made with",
        ):
            load([f"resume={tmp_path}", setting])
    for setting in FIT + FIT_OF_RL * ("preference" not in begun):
        assert load([f"resume={tmp_path}", setting])
