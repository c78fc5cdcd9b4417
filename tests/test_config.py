"""Settings: composed once, frozen, and refused by name when they are wrong."""

import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vla.cli import read_config, to_yaml
from vla.config import ConfigError, RobotConfig, TextConfig, freeze, load
from vla.config.algorithm import ALGORITHM_SECTIONS
from vla.config.compose import CONFIGS, check_keys, groups, options, setting_paths, suggest_setting
from vla.ranges import nearest_divisor

ROOT = Path(__file__).parents[1]


def test_the_default_is_a_robot_run():
    config = load()
    assert isinstance(config, RobotConfig)
    assert (config.sim.task, config.policy.name, config.algorithm.name) == (
        "pick_place",
        "token",
        "dr_grpo",
    )
    assert config.name == "pick_place-token-dr_grpo"
    assert not config.needs_hub


def test_a_value_and_an_option_replace_the_default():
    config = load(
        [
            "sim=pick_place",
            "algorithm=ppo",
            "rl.num_iterations=7",
            "sim.cameras=[front]",
            "run_dir=runs/x-1",
        ]
    )
    assert (config.algorithm.name, config.rl.num_iterations) == ("ppo", 7)
    assert config.sim.cameras == ("front",)
    assert config.run_dir == "runs/x-1"


def test_text_mode_has_its_own_sections():
    config = load(["mode=text"])
    assert isinstance(config, TextConfig)
    assert not hasattr(config, "sim")


def test_a_reward_can_be_added_and_taken_away():
    assert load(["+sim.reward.push=0.25"]).sim.reward["push"] == 0.25
    assert load(["~sim.reward.lift"]).sim.reward.keys() == load().sim.reward.keys() - {"lift"}
    with pytest.raises(ConfigError, match=r"^sim.reward \(\{\}\)"):
        load([f"~sim.reward.{name}" for name in load().sim.reward])


@pytest.mark.parametrize("group", groups())
def test_every_option_loads(group: str):
    for option in options(group):
        is_text = group in ("text", "language_model", "preference") or (group, option) == (
            "rl",
            "text",
        )
        mode = option if group == "mode" else "text" if is_text else "robot"
        given = [f"mode={mode}"] if group == "mode" else [f"mode={mode}", f"{group}={option}"]
        assert load(given).mode == mode


def test_a_preset_sets_what_the_chosen_option_has():
    assert load(["preset=smoke", "mode=text"]).text.num_problems == 100
    rlhf = load(["preset=smoke", "mode=text", "text=rlhf"])  # has no such number
    assert (rlhf.text.name, rlhf.language_model.name, rlhf.rl.num_iterations) == ("rlhf", "tiny", 2)
    push = load(["preset=smoke", "sim=push", "policy=flow"])  # builds on pick_place
    assert (push.sim.num_envs, push.sim.max_steps, push.policy.name) == (8, 40, "flow")


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        load().rl.num_iterations = 3


def test_a_preset_stands_below_what_is_given():
    smoke = load(["preset=smoke"])
    assert smoke.rl.num_iterations < load().rl.num_iterations
    given = load(["rl.num_iterations=5", "preset=smoke"])
    assert given.rl.num_iterations == 5
    assert given.sft == smoke.sft


def test_saved_settings_read_back_equal():
    config = load(["algorithm=ppo", "preset=smoke"])
    assert freeze(yaml.safe_load(to_yaml(config))) == config


WRONG = {
    "sim=pick_plce": "sim=pick_plce: no such option; did you mean pick_place?",
    "smi=pick_place": "smi=pick_place: no such setting; did you mean sim?",
    "rl.num_iteration=3": "rl.num_iteration=3: no such setting; did you mean rl.num_iterations?",
    "group_size=4": "group_size=4: no such setting; did you mean rl.group_size?",
    "pick_place": "'pick_place' is no setting: write key=value: sim=pick_place",
    "algorithm.gae_lambda=.9": "algorithm.gae_lambda=.9: no such setting; it belongs to algorithm=ppo",
    "+algorithm.gae_lambda=.9": "algorithm.gae_lambda (0.9): no such setting under algorithm=dr_grpo",
    "algorithm=grpo ~algorithm.scale": "algorithm.scale is missing under algorithm=grpo: every setting needs a value",
    "algorithm=grpo algorithm.reduction=constant": "algorithm.max_length (null) is needed by reduction 'constant'",
    "algorithm=reinforce algorithm.baseline=critic": "algorithm.value_coefficient (null) belongs to algorithm.baseline",
    "algorithm=reinforce rl.epochs=2": "rl.epochs (2) and rl.num_minibatches (1) must be 1 under algorithm=reinforce",
    "algorithm=dapo algorithm.overlong_buffer=9": "algorithm.max_length (null) must be at least algorithm.overlong",
    "algorithm=dapo algorithm.max_length=9": "algorithm.max_length (9) has no meaning while algorithm.over",
    "rl.kl_target=6": "rl.kl_target (6.0) and rl.kl_horizon (null) belong together",
    "rl.kl_target=6 rl.kl_horizon=100": "rl.kl_target (6.0) is about the reference of a KL penalty",
    "rl.reference_refresh_every=5": "rl.reference_refresh_every (5) is about the reference of a KL penalty",
    "rl.reference=copy": "rl.reference (copy) is about a KL penalty, and algorithm.kl_coefficient is 0",
    "algorithm=rloo algorithm.kl_coefficient=.1 rl.reference=rollout": "rl.reference (rollout) has no effect on the rewards",
    "algorithm=grpo algorithm.kl_coefficient=.1 rl.reference=rollout rl.epochs=1 rl.num_minibatches=1": (
        "rl.reference (rollout) has no effect in the"
    ),
    "algorithm=grpo algorithm.kl_coefficient=.1 rl.reference=rollout rl.epochs=2 rl.reference_refresh_every=1": (
        "rl.reference_refresh_every (1) must be null under rl.reference=rollout"
    ),
    "algorithm=grpo algorithm.kl_coefficient=.1 rl.reference=adapter_off": "rl.reference (adapter_off) is for text",
    "rl.critic=separate": "rl.critic (separate) needs an algorithm with a critic, and algorithm=dr_grpo has none",
    "rl.num_branches=1": "rl.num_branches (1) must be at least 2, or 0 for whole episodes",
    "mode=text rl.num_branches=4 rl.max_resamples=0": "rl.num_branches (4) is for robots: set it to 0 in mode=text",
    "mode=text text.max_turns=4": "text.max_turns (4) must be 1 without text.tool: set it to 1, or name a tool",
    "mode=text text.tool=calculator": "text.max_turns (1) leaves no turn after a call of text.tool (calculator)",
    "mode=text text.sampling.top_k=1": "text.sampling.top_k (1) leaves one token to sample, so all samples of a prompt",
    "mode=text text=preference text.generation.sampling.top_k=1": "text.generation.sampling.top_k (1) leaves one token",
    "rl.max_resamples=1": "rl.max_resamples (1) must be 0 with rl.num_branches (8)",
    "rl.num_branches=0 rl.group_size=4 rl.num_minibatches=3": (
        "rl.num_minibatches (3) must divide the trajectories of a rollout, rl.num_start"
    ),
    "algorithm.entropy_coefficient=-1": "algorithm.entropy_coefficient (-1) must be greater than or equal to 0",
    "sim.robot=pandaa": "sim.robot (pandaa): no such choice; did you mean panda?; choose from panda, gantry",
    "model.vision.name=smal": "model.vision.name (smal): no such kind; did you mean small?; choose from small, hub",
    "rl.learning_rate=-1": "rl.learning_rate (-1) must be greater than 0",
    "rl.learning_rate=nan": "rl.learning_rate (nan) must be a finite number",
    "algorithm.clip_low=-0.1": "algorithm.clip_low (-0.1) must be greater than or equal to 0",
    "rl.num_iterations=null": "rl.num_iterations (null) must be a valid integer",
    "sim.cameras=[": "sim.cameras=[: the value cannot be parsed",
    "sim.max_steps=80 policy.chunk=7": "policy.chunk (7) must divide sim.max_steps (80): 8 does",
    "rl.num_branches=0": "rl.group_size (1) must be at least 2 under algorithm=dr_grpo",
    "rl.num_critic_warmup_iterations=2": "rl.num_critic_warmup_iterations (2) needs a critic",
    "sim.image_size=60 model.vision.stem_channels=[8,8,8]": "sim.image_size (60) must be a multiple of the patch",
    "model.backbone.num_heads=5 model.backbone.width=128": "model.backbone.num_heads (5) must divide",
    "policy=flow policy.min_noise=0.5": "policy.min_noise (0.5) must not exceed policy.max_noise (0.16): swap them",
    "policy=diffusion policy.num_steps=3": "policy.num_steps (3) must divide policy.num_train_steps (100): 4 does",
    "policy=flow policy.width=95": "policy.width (95) must be a multiple of 2",
    "policy=regression policy.num_bins=4": "policy.num_bins=4: no such setting; it belongs to policy=token",
    "policy=fast policy.num_tokens=400": "policy.num_tokens (400) must be less than or equal to 256",
    "algorithm=dppo algorithm.ratio_level=decision": "algorithm.ratio_level (decision) has one ratio for all draws",
    "policy.num_bins=5000": "policy.num_bins (5000) action ids do not fit",
    "evaluation.eval_seeds.first=5": "evaluation.eval_seeds (5 to 2999999) overlap evaluation.train_seeds (0 to",
    "evaluation.eval_seeds.last=2000009": "evaluation.num_starts (500) is more than evaluation.eval_seeds holds (10)",
    "evaluation.train_seeds.last=-1": "evaluation.train_seeds.last (-1) must be greater than or equal to 0",
    "evaluation.eval_seeds.last=0": "evaluation.eval_seeds (2000000 to 0) is empty: raise `last` to `first` or above",
    "rl.branch_discount=3": "rl.branch_discount (3) must be less than or equal to 1",
    "rl.branch_fraction=2": "rl.branch_fraction (2) must be less than or equal to 1",
    "rl.ema_decay=1": "rl.ema_decay (1) must be less than 1",
    "rl.learning_rate=true": "rl.learning_rate (true) must be a valid number",
    "rl.group_size=true": "rl.group_size (true) must be a valid integer",
    "sft.head_only=1": "sft.head_only (1) must be a valid boolean",
    "sft.learning_rate=1e300": "sft.learning_rate (1e+300) must be less than or equal to 1",
    "sft.learning_rate=1e-300": "sft.learning_rate (1e-300) is too near to 0 to have an effect",
    "policy.temperature=1e12": "policy.temperature (1000000000000.0) must be less than or equal to 10",
    "data.num_demonstrations=4e13": "data.num_demonstrations (40000000000000.0) must be less than or equal to 100000",
    "sim.num_envs=100000": "sim.num_envs (100000) must be less than or equal to 4096",
    "sim.cameras=[front,front]": "sim.cameras ([front,front]) names front twice",
    "sim.task=[reach,reach]": "sim.task ([reach,reach]) names reach twice",
    "sim.cameras=[]": "sim.cameras ([]) must have at least 1 entries",
    "sim=gym sim.cameras=[a,b]": "sim.cameras ([a,b]) must have at most 1 entries",
    "sim.max_steps=160000481": "sim.max_steps (160000481) must be less than or equal to 100000",
    "rl.num_start_states=1000000007": "rl.num_start_states (1000000007) must be less than or equal to 100000",
    "train.num_threads=100000": "train.num_threads (100000) must be less than or equal to 1024",
    "train.seed=100000000000000000000": "train.seed (100000000000000000000) must be less than or equal to 922337203",
    "evaluation.eval_seeds.last=1000000000000000000000": "evaluation.eval_seeds.last (1000000000000000000000) must be",
    "recap.num_bins=1e9": "recap.num_bins (1000000000.0) must be less than or equal to 10000",
    "rl.warmup_iterations=400": "rl.warmup_iterations (400) is more than rl.num_iterations (300)",
    "algorithm=ppo rl.num_critic_warmup_iterations=301": "rl.num_critic_warmup_iterations (301) is more than rl.num_iterations",
    "run_dir=": "run_dir= is empty (an unset variable of the shell?)",
    "resume=": "resume= is empty",
    "model.checkpoint=''": "model.checkpoint () must not be empty: give a name, or null",
    "model.lora={rank:200,alpha:2}": "model.lora.rank (200) is more than the model's width (128)",
    "model.backbone.vocabulary_size=300": "model.backbone.vocabulary_size (300) cannot hold bytes",
    "train.device=gpu": "train.device (gpu) must be auto, cpu, cuda, cuda:N (a number) or mps",
    "mode=text language_model=hub language_model.engine=vllm language_model.engine_url=localhost:80": "language_model.engine_url (localhost:80) must be an address",
    "sim.reward={reach:0,grasp:0,lift:0,place:0,success:0}": "sim.reward ({",
    "policy.decoding=autoregressive rl.num_branches=8": "rl.num_branches (8) is not possible: policy=token with these",
    "sim=gym rl.num_branches=8": "rl.num_branches (8) is not possible: Reacher-v5 (sim.simulator=gymnasium) cannot restore",
    "mode=text rl.greedy_branching_every=2": "rl.greedy_branching_every (2) is for robots: set it to null in mode=text",
    "mode=text language_model=tiny language_model.width=7": "language_model.width (7) must be a multiple of 2: 8 is",
    "mode=text language_model=tiny language_model.num_heads=3": "language_model.num_heads (3) must divide",
    "policy=flow policy.num_stochastic_steps=5": "policy.num_stochastic_steps (5) is more than policy.num_steps (4)",
    "algorithm=ppo rl.num_branches=0 rl.max_resamples=2": "rl.max_resamples (2) replaces groups of equal rewards",
    "mode=text text=sft rl.group_size=4": "rl.group_size=4 has no effect: text=sft runs no reinforcement learning",
    "mode=text text=sft algorithm=ppo_text": "algorithm=ppo_text has no effect: text=sft runs no",
    "mode=text preference.beta=3": "preference.beta=3 has no effect: text=rlvr has no preference loss",
    "mode=text text=rlhf rl.target_success=.9": "rl.target_success=.9 has no effect: text=rlhf has no verified",
    "rl.num_branches=0 rl.group_size=8 rl.branch_fraction=.3": "rl.branch_fraction=.3 has no effect: rl.num_branches is 0",
    "recap.guidance=3": "recap.guidance=3 has no effect: recap.num_rounds is 0",
    "grounding.num_steps=5": "grounding.num_steps=5 has no effect: model.checkpoint=embedded is pretrained",
    "sft.num_steps=5": "sft.num_steps=5 has no effect: sft.head_only trains the head alone",
    "rl.muon_learning_rate=.1": "rl.muon_learning_rate=.1 has no effect: rl.optimizer is adamw",
    "algorithm=ppo algorithm.gamma=.9": "algorithm.gamma=.9 has no effect: a branch is one decision",
    "policy=flow policy.max_noise=.3": "policy.max_noise=.3 has no effect: policy.exploration is one_step",
    "mode=text text.max_prompt_tokens=1": "text.max_prompt_tokens (1) must be greater than or equal to 16",
    "mode=text text.verifier_timeout_seconds=1e-9": "text.verifier_timeout_seconds (1e-09) must be greater than or",
    "mode=text text.sampling.temperature=1e12": "text.sampling.temperature (1000000000000.0) must be less than",
    "mode=text text.rewards={bleu:1}": "text.rewards={bleu:1}: text.rewards has no bleu yet: add it by "
    "+text.rewards.bleu=1",
    "mode=text ++text.rewards={nope.nope:1}": "text.rewards.nope.nope (1.0): verifier 'nope.nope' is unknown",
    "mode=text text=control text.gold=kind": "text.gold (kind): gold 'kind' is unknown",
    "mode=txt": "mode=txt: no such option; did you mean text?; choose from robot, text",
    "preset=smok": "preset=smok: no such option; did you mean smoke?",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_is_refused_by_name_with_the_remedy(override: str):
    with pytest.raises(ConfigError) as error:
        load(override.split(" "))
    assert str(error.value).startswith(WRONG[override])


@pytest.mark.parametrize("section", [["front"], 5, "front", None, True])
def test_a_section_that_is_none_is_refused_in_a_line(section: object):
    for mode in ("robot", "text"):
        values = yaml.safe_load(to_yaml(load([f"mode={mode}"])))
        for name in values.keys() - {"mode", "run_dir", "resume"}:
            with pytest.raises(ConfigError) as error:
                freeze({**values, name: section})
            assert str(error.value).startswith(f"{name} ("), name
            assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="^the settings"):
        freeze(section)


@pytest.mark.parametrize("number", [2 * 499_979, 99_991 * 9_973])
def test_the_nearest_divisor_is_found_at_once(number: int):
    assert number % nearest_divisor(7, number) == 0
    assert nearest_divisor(7, 80) == 8
    assert nearest_divisor(3, 4) == 4  # the larger of two that are equally near


def test_a_group_of_another_mode_is_refused():
    with pytest.raises(
        ConfigError,
        match="^sim=pick_place: mode=text has no group 'sim'; it belongs to mode=robot$",
    ):
        load(["mode=text", "sim=pick_place"])


def test_every_conflict_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        load(["policy.chunk=7", "rl.num_branches=0"])
    assert [line.split(" ")[0] for line in str(error.value).splitlines()] == [
        "rl.group_size",
        "policy.chunk",
    ]


def test_suggestions_prefer_the_same_last_name():
    # `seed` is spelled more like `need` than like `train.seed`.
    assert suggest_setting("seed", ["need", "train.seed"]) == "; did you mean train.seed?"
    assert suggest_setting("zzz", ["need"]) == "; --cfg job prints all settings"


def test_paths_name_sections_and_settings():
    assert setting_paths({"a": {"b": 1, "c": {}}}) == {"a", "a.b", "a.c"}
    with pytest.raises(ConfigError, match="^a.d=1: no such setting"):
        check_keys({"a.d": "1"}, {"a": {"b": 1}})


def test_resume_takes_the_settings_of_the_run(tmp_path: Path):
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text(
        to_yaml(load(["algorithm=ppo", "rl.num_iterations=3", f"run_dir={run}"]))
    )
    config = load(
        [f"resume={run}", "rl.num_iterations=9", "rl.max_seconds=null", "train.num_threads=2"]
    )
    assert (config.algorithm.name, config.rl.num_iterations, config.train.num_threads) == (
        "ppo",
        9,
        2,
    )
    assert (config.resume, config.run_dir) == (str(run), str(run))


def test_resume_refuses_another_kind_a_wrong_key_and_a_folder_that_is_no_run(tmp_path: Path):
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load()))
    with pytest.raises(ConfigError, match="^algorithm=ppo cannot change under resume"):
        load([f"resume={run}", "algorithm=ppo"])
    with pytest.raises(ConfigError, match="did you mean rl.epochs"):
        load([f"resume={run}", "rl.epoch=2"])
    with pytest.raises(ConfigError, match=f"did you mean {run}"):
        load([f"resume={tmp_path / 'frist'}"])


def test_an_algorithm_has_the_settings_of_its_dataclass():
    from vla.rl.algorithm_factory import algorithm_type

    for name, settings in ALGORITHM_SECTIONS.items():
        assert {"name", *(field.name for field in fields(algorithm_type(name)))} == set(
            settings.model_fields
        ), name


@pytest.mark.parametrize("option", options("algorithm"))
def test_every_option_makes_its_algorithm(option: str):
    from vla.rl.algorithm_factory import make_algorithm

    settings = load([f"algorithm={option}"]).algorithm
    algorithm = make_algorithm(**settings.model_dump())
    assert settings.name in option  # a variant has a name of its own: ppo_text, dppo
    for trait in ("needs_groups", "needs_values", "needs_reference", "kl_placement", "uses_ratio"):
        assert getattr(algorithm, trait) == getattr(settings.traits, trait)
    assert (
        load(["mode=text", f"algorithm={option}"]).algorithm == settings
    )  # the same object for words as for robots


@pytest.mark.parametrize(
    ("section", "dataclasses"), [("rl", ("update.UpdateSettings", "loop.LoopSettings"))]
)
def test_the_loop_finds_its_settings_in_the_yaml(section: str, dataclasses: tuple[str, ...]):
    for path in dataclasses:
        module, name = path.split(".")
        wanted = fields(getattr(importlib.import_module(f"vla.rl.{module}"), name))
        assert {field.name for field in wanted} <= set(
            type(getattr(load(), section)).model_fields
        ), path


def test_the_yaml_holds_every_value_and_the_types_hold_none():
    config = load()
    for section in (config, *(getattr(config, name) for name in type(config).model_fields)):
        if hasattr(type(section), "model_fields"):
            assert [
                name
                for name, field in type(section).model_fields.items()
                if not field.is_required()
            ] == []


def test_the_command_line_prints_the_resolved_settings(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        read_config("what it does", ["--cfg", "job", "rl.num_iterations=4"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["rl"]["num_iterations"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--fo"],
            "error: --fo: no such flag; settings are written key=value, --help shows them\n",
        ),
        (["--cfg"], "error: --cfg takes one word: --cfg job prints the settings of this run\n"),
        (["rl.epochs=0"], "error: rl.epochs (0) must be greater than or equal to 1\n"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as stop:
        read_config("what it does", arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == message


def test_help_names_every_group_and_option(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        read_config("what it does", ["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert printed.startswith("what it does")
    assert "* pick_place " in printed
    assert "* dr_grpo " in printed
    assert [
        name for group in groups() for name in [group, *options(group)] if name not in printed
    ] == []


def test_every_option_begins_with_a_line_that_says_what_it_is():
    for path in CONFIGS.glob("*/*.yaml"):
        first = next(line for line in path.read_text().splitlines() if "@package" not in line)
        assert first.startswith("# "), path


def test_settings_are_checked_before_anything_heavy_loads():
    code = "import sys, vla.config; vla.config.load(); print({'torch', 'numpy', 'mujoco'} & set(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "set()"
