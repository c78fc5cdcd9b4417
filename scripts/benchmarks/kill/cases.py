"""The runs of the kill benchmark: every mode at a size of seconds, saved often enough to make
progress."""

import json
from pathlib import Path

SAVED = [
    "train.checkpoint_every=2",
    "train.checkpoint_seconds=1",
    "train.tensorboard=false",
    "train.num_threads=1",
]
ROBOT = [
    "preset=smoke",
    "sim.robot=gantry",
    "sim.num_envs=4",
    "sim.image_size=32",
    "sim.num_threads=1",
    "sim.reward.reach=0.5",
    "model.checkpoint=null",
    "model.vision.width=16",
    "model.vision.depth=1",
    "model.vision.num_heads=2",
    "model.vision.stem_channels=[8,16,16]",
    "model.backbone.width=32",
    "model.backbone.depth=2",
    "model.backbone.num_heads=2",
    "model.backbone.intermediate=32",
    "data.num_demonstrations=3",
    "data.expert_perturbation_probability=0.0",
    "data.num_question_scenes=8",
    "data.question_batch_size=4",
    "data.questions_per_scene=2",
    "grounding.num_steps=12",
    "grounding.batch_size=4",
    "grounding.pool_size=16",
    "grounding.num_new_scenes_per_step=1",
    "grounding.max_seconds=null",
    "sft.head_steps=5",
    "sft.head_only=false",
    "sft.num_steps=8",
    "sft.batch_size=8",
    "sft.evaluate_every=4",
    "sft.log_every=1",
    "sft.max_seconds=null",
    "rl.num_iterations=4",
    "rl.max_seconds=null",
    "rl.num_start_states=2",
    "rl.group_size=2",
    "rl.evaluate_every=2",
    "evaluation.num_starts=4",
    "evaluation.num_validation_starts=2",
    "evaluation.num_videos=1",
    "train.seed=3",
]
TEXT = [
    "mode=text",
    "language_model=tiny",
    "language_model.vocabulary_size=288",
    "language_model.width=32",
    "language_model.depth=1",
]
RL = [
    "rl.num_iterations=6",
    "rl.num_start_states=4",
    "rl.group_size=4",
    "rl.micro_batch_rows=8",
    "rl.learning_rate=1e-2",
    "rl.max_seconds=null",
]
OPEN = [
    "text.generation.max_prompt_tokens=100",
    "text.generation.max_new_tokens=24",
    "text.prompts.num_evaluation=8",
    "text.gold=benchmarks.kill.cases:num_letters",
]
FIT = [
    "text.fit.num_steps=30",
    "text.fit.learning_rate=1e-2",
    "text.fit.batch_size=8",
    "text.fit.micro_batch_size=8",
]
CASES = {
    "robot": [
        *ROBOT,
        "policy.num_bins=16",
        "algorithm=ppo",
        "algorithm.kl_coefficient=0.05",
        "rl.schedule=cosine",
        "rl.warmup_iterations=1",
        "rl.num_critic_warmup_iterations=1",
        "rl.greedy_branching_every=2",
        "sft.optimizer=muon",
    ],
    "flow": [*ROBOT, "policy=flow", "algorithm=grpo"],
    "recap": [*ROBOT, "policy=flow", "recap.num_rounds=2", "rl.num_iterations=0"],
    "rlvr": [
        *TEXT,
        "text=rlvr",
        *RL,
        "algorithm=ppo",
        "algorithm.entropy_coefficient=0.1",
        "algorithm.kl_coefficient=0.1",
        "rl.kl_target=6",
        "rl.kl_horizon=100",
        "rl.max_resamples=2",
        "text.curriculum_threshold=0.5",
        "text.families=[add1,mul1]",
        "text.num_problems=100",
        "text.num_evaluation=16",
        "text.num_validation=4",
        "text.max_prompt_tokens=160",
        "text.max_new_tokens=40",
        "text.format_sft_steps=8",
        "text.num_samples=2",
    ],
    "sft": [
        *TEXT,
        "text=sft",
        "text.sources=[add1]",
        "text.row_tokens=200",
        *FIT,
        "text.fit.num_steps=60",
    ],
    "preference": [*TEXT, "text=preference", "text.rounds=2", *OPEN, *FIT],
    "rejection": [
        *TEXT,
        "text=rejection",
        *FIT,
        "text.families=[add1]",
        "text.num_problems=100",
        "text.num_evaluation=16",
        "text.rounds=2",
        "text.problems_per_round=16",
        "text.samples_per_prompt=2",
        "text.generation.max_prompt_tokens=160",
        "text.generation.max_new_tokens=24",
        "+text.rewards.finished=1.0",
        "text.min_reward=0.0",
    ],
    "constitution": [
        *TEXT,
        "text=constitution",
        *OPEN,
        *FIT,
        "text.rounds=1",
        "text.sft.num_steps=20",
        "text.sft.micro_batch_size=8",
        "text.generation.max_new_tokens=60",
        "text.generation.sampling.temperature=2.0",
    ],
    "control": [*TEXT, "text=control", *OPEN, *FIT, "text.levels=2"],
    "rlhf": [
        *TEXT,
        "text=rlhf",
        *RL,
        *OPEN,
        "algorithm=ppo",
        "text.demonstrations=8",
        "text.sft.num_steps=20",
        "text.reward_model.num_steps=20",
        "text.truncation_reward=null",
        "text.sft.micro_batch_size=8",
    ],
}


def case_settings(name: str, out: Path) -> list[str]:
    """The settings of a case; writes its prompts where it needs some."""
    settings = [*CASES[name], *SAVED]
    if "text.gold=benchmarks.kill.cases:num_letters" not in settings:
        return settings
    prompts = out / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(60)))
    return [*settings, f"text.prompts.path={prompts}"]


def num_letters(prompt: str, text: str) -> float:
    """A gold reward that differs between the answers of a random model: their number of letters."""
    return sum(map(str.isalpha, text)) / 10
