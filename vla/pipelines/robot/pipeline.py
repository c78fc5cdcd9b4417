"""The main job: demonstrations, supervised fine-tuning, reinforcement learning, and evaluation on
held-out starts.

Every stage leaves something that a resumed run picks up: a dataset, a checkpoint, an entry in
results.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla.build import build_vlm, check_model, make_policy, policy_settings
from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations, undisturbed_chunks
from vla.data.image_fitting import RESIZE, check_resize, describe_rule_mismatch
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.evaluation.starts import SeedRange, StartManifest
from vla.files.arrays import load_weights, read_safetensors, read_tokenizer
from vla.files.reading import validating_file
from vla.files.writing import write_json
from vla.interrupt import stop_on_interrupt
from vla.models.checkpoint import num_parameters
from vla.pipelines.robot.cotraining import auxiliary_tasks
from vla.pipelines.robot.cotraining_text import TextCoTraining, text_cotraining
from vla.pipelines.robot.demonstrations import check_described, load_or_collect_demonstrations
from vla.pipelines.robot.evaluation_stages import (
    answers_stage,
    compare_stage,
    evaluation_stage,
    plot_stage,
    texts_stage,
    video_stage,
)
from vla.pipelines.robot.grounding import Grounding, GroundingSettings
from vla.pipelines.robot.recap import prompting_for_success, recap_stage
from vla.pipelines.robot.rl import train_robot_rl
from vla.pipelines.robot.sft import num_full_steps, supervised_stage
from vla.policies.head import ActionCode
from vla.policies.vla_policy import rename_weights
from vla.policy_spec import REMEDY, read_policy_spec
from vla.report.robot_report import write_report
from vla.sft.protocols import ImitablePolicy
from vla.simulator import Simulator
from vla.training.distributed import broadcast_weights, init_processes
from vla.training.run import Run, save_on_exit, start_run
from vla.training.run_folder import RunFolder, open_run, to_plain
from vla.training.seed import derive_seed, seed_everything
from vla.training.synchronization import broadcast_from_main, propagate_errors


def run_robot(config: RobotConfig, world: Simulator) -> RunFolder:
    """Everything that `mode=robot` does; the folder of the run.

    Raises Interrupted where it was asked to stop; what it has by then is saved.
    """
    train = config.train
    processes = init_processes(train.device, train.precision)
    seed_everything(train.seed)
    check_model(config)
    check_described(config, world)
    folder = open_run(config, processes)
    with stop_on_interrupt() as stop:
        run = start_run(folder, stop, processes, train)
        run.progress.print_line(f"run {folder.path}")
        if torch.cuda.is_available():
            run.progress.print_line(
                "a robot policy trains on the CPU in float32; the GPU of this machine is not used"
            )
        with save_on_exit(run, lambda: write_report(folder.path)):
            _stages(run, config, world)
    return folder


def _stages(run: Run, config: RobotConfig, world: Simulator) -> None:
    starts = start_manifest(config)
    if run.processes.is_main:
        starts.save(run.folder.starts)
    with run.timer("demonstrations"):
        demos = load_or_collect_demonstrations(run, config, world)
    with run.timer("model"):
        policy, observer, encoder = build_policy(run, config, world, demos)
        texts = text_cotraining(config, policy.model, encoder.tokenizer, run.processes)
    words = (config, policy, encoder, world, texts)
    environment = world.environment()
    if not run.is_finished("sft"):
        with run.stage("sft"):
            moves = bool(num_full_steps(config, policy))
            if (moves or rl_moves_model(config)) and not run.is_finished("answers_before"):
                evaluate_answers(run, "before", *words)
            beside = (
                auxiliary_tasks(config, policy, encoder, world, texts, run.processes)
                if moves
                else []
            )
            supervised_stage(run, config, policy, demos, observer, beside)
            if moves:
                evaluate_answers(run, "after", *words)
    else:
        saved = run.load("sft")
        assert saved is not None
        policy.load_state_dict(saved["policy"])
    judge = (config, policy, environment, observer, starts)
    if not run.is_finished("evaluation_before"):
        with run.stage("evaluation_before"):
            evaluation_stage(run, "before", *judge)
    with run.timer("videos"), propagate_errors(run.processes):
        video_stage(run, "before", config, policy, world, observer, starts)
    observer = recap_stage(run, *judge, demos)
    judge = (config, policy, environment, observer, starts)
    with run.stage("rl"):
        trainer = train_robot_rl(run, *judge)
    judged = evaluate_after(run, trainer.num_iterations, *judge)
    if judged and trainer.num_iterations and rl_moves_model(config):
        evaluate_answers(run, "after_rl", *words)
    compare_stage(run)
    with run.timer("videos"), propagate_errors(run.processes):
        if judged:
            video_stage(run, "after", config, policy, world, observer, starts)
        title = f"{config.sim.label}: {config.algorithm.name}"
        plot_stage(run, trainer.validation_curve, title)
    run.progress.print_line(f"results: {run.folder.results}")


def evaluate_answers(
    run: Run,
    name: str,
    config: RobotConfig,
    policy: ImitablePolicy,
    encoder: QuestionEncoder,
    world: Simulator,
    texts: TextCoTraining | None,
) -> None:
    """What training did to the words of the model: answers about scenes, and texts."""
    answers_stage(run, name, config, policy, encoder, world)
    if texts is not None:
        texts_stage(run, name, texts)


def rl_moves_model(config: RobotConfig) -> bool:
    """Whether RL trains more than the head, so that answers in words may change."""
    return config.rl.num_iterations > 0 and config.model.freeze_in_rl != "all"


def evaluate_after(run: Run, num_iterations: int, config: RobotConfig, *judge: Any) -> bool:
    """The evaluation after `num_iterations` of RL, anew where a resumed run has made more of them;
    left out, and said so, where nothing has changed the policy since the one before.
    """
    if config.rl.num_iterations == 0 and config.recap.num_rounds == 0:
        run.finish_stage(
            "evaluation_after",
            {"left_out": "nothing changed the policy after the evaluation before"},
        )
        return False
    known = run.results.get("stages", {}).get("evaluation_after", {"left_out": "not judged yet"})
    if "left_out" in known or known.get("num_iterations", num_iterations) != num_iterations:
        with run.stage("evaluation_after"):
            evaluation_stage(run, "after", config, *judge)
        found = run.results["stages"]["evaluation_after"]
        run.finish_stage("evaluation_after", {**found, "num_iterations": num_iterations})
    return True


def start_manifest(config: RobotConfig) -> StartManifest:
    """Which starts train, choose and judge."""
    evaluation = config.evaluation
    ranges = [
        SeedRange(s.first, s.last)
        for s in (evaluation.train_seeds, evaluation.validation_seeds, evaluation.eval_seeds)
    ]
    return StartManifest(config.sim.start_settings, *ranges, num_starts=evaluation.num_starts)


def build_policy(
    run: Run, config: RobotConfig, world: Simulator, demos: Demonstrations
) -> tuple[ImitablePolicy, Observer, QuestionEncoder]:
    """The policy before SFT, what turns environments' answers into its observations, and the writer
    of questions.

    What a later process needs to load it, beside the settings, stands in `policy.json` and
    `tokenizer/`.
    """
    torch.manual_seed(derive_seed(config.train.seed, "model") % 2**63)
    model, tokenizer = build_vlm(
        config, world.proprio_size, world.scenes().num_plan_numbers, world.texts()
    )
    encoder = QuestionEncoder(tokenizer, model.backbone.vocabulary_size)
    written = run.folder.path / "policy.json"
    known = broadcast_from_main(written.exists(), run.processes)
    if config.model.checkpoint is None:
        model.fit_proprio(torch.from_numpy(demos.columns.proprio[demos.rows]))
        if not run.is_finished("sft") and run.load("sft") is None:
            ground_model(run, config, world, model, encoder)
    if known:
        policy_spec = read_policy_spec(written.parent)
        for camera, (height, width) in demos.picture_sizes.items():
            check_resize(
                policy_spec, height, width, f"camera {camera} of the dataset {demos.folder}"
            )
        code = load_action_code(config.policy, policy_spec, written)
    else:
        training, _ = demos.split(config.data.holdout_fraction, config.train.seed)
        chunks = undisturbed_chunks(training.columns, config.policy.chunk, training.rows)
        kind = policy_settings(config.policy)
        code = kind.fit_code(chunks)
        for note in kind.code_notes(code, chunks[:, 0], demos.action_names):
            run.progress.print_line(f"actions: {note}")
        if run.processes.is_main:
            tokenizer.save_pretrained(run.folder.path / "tokenizer")
            write_json(written, to_plain(describe(code, world, config)))
    policy = make_policy(config, model, code)
    broadcast_weights(policy, run.processes)
    run.results["model"] = {"num_parameters": num_parameters(policy), "num_draws": policy.num_draws}
    return (
        policy,
        make_observer(config, tokenizer, config.policy.instruction_length, policy),
        encoder,
    )


def load_action_code(policy: Any, policy_spec: Mapping[str, Any], path: Path) -> ActionCode:
    """What stands for actions, as the policy spec that was read from `path` says."""
    with validating_file(path, REMEDY):
        code: ActionCode = policy_settings(policy).read_code(policy_spec["actions"])
        names = policy_spec["action_spec"]["names"]
        if len(code.constants) != len(names):
            raise ValueError(
                f"its code of actions has {len(code.constants)} dimensions, its action_spec names {len(names)}"
            )
        return code


def make_observer(
    config: RobotConfig, tokenizer: Any, length: int, policy: ImitablePolicy
) -> Observer:
    """What writes instructions, and pictures into them where `data.sentence` says so."""
    return Observer(tokenizer, length, sentence=config.data.sentence, slots=policy.model.slots)


def describe(code: ActionCode, world: Simulator, config: RobotConfig) -> dict[str, Any]:
    """The policy spec of a policy: what actions and state mean, how pictures become square, what
    stands for actions."""
    return {
        "action_spec": dict(world.action_spec),
        "proprio_names": list(world.proprio_names),
        "cameras": list(config.sim.cameras),
        "image_size": config.sim.image_size,
        "resize": RESIZE,
        "chunk": config.policy.chunk,
        "instruction_length": config.policy.instruction_length,
        "policy": config.policy.name,
        "actions": code.to_dict(),
    }


def ground_model(
    run: Run, config: RobotConfig, world: Simulator, model: Any, encoder: QuestionEncoder
) -> None:
    """Start from nothing: learn to see before learning to act."""
    if config.grounding.num_steps == 0:
        return
    settings = GroundingSettings(**config.grounding.model_dump())
    grounding = Grounding(
        model, encoder, world.scenes(), settings, config.train.seed, run.processes
    )
    saved = run.load("grounding")
    done = 0 if saved is None else saved["done"]
    save_every = max(1, settings.num_steps // 10)
    with run.progress.bar("grounding", settings.num_steps, done) as bar, run.timer("grounding"):
        if saved is None:
            grounding.fill(min(settings.pool_size, 4 * config.sim.num_envs), config.sim.num_envs)
        else:
            grounding.pool.restore(saved["blocks"])

        def on_step(part: str, step: int, metrics: dict[str, float]) -> None:
            nonlocal done
            done += 1
            bar.advance(
                1,
                **{
                    k: metrics[k]
                    for k in ("loss", "answer_accuracy", "sighting_accuracy")
                    if k in metrics
                },
            )
            if step % 20 == 0:
                run.log.write(f"grounding_{part}", step, metrics)
            stop = run.stop.requested
            if stop or run.checkpoint_overdue or done % save_every == 0:
                run.save("grounding", done, {**grounding.state_dict(), "done": done})
            if stop:
                run.check_stop()

        grounding.train(on_step, saved)


def load_policy(
    folder: Path,
    config: RobotConfig,
    world: Simulator,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> tuple[ImitablePolicy, Observer]:
    """The policy that a finished run ended with; `weights` where they were read already.

    Raises ValueError when the folder holds none, or one whose actions mean something else than the
    world's.
    """
    from vla.data.spec_checks import check_action_spec, check_state
    from vla.policy_spec import (
        match_query_count,
        num_plan_numbers,
        proprio_names,
        without_checkpoint,
    )

    written = folder / "policy.json"
    policy_spec = read_policy_spec(folder) if written.exists() else None
    if policy_spec is not None:
        check_action_spec(policy_spec["action_spec"], world.action_spec, f"the policy in {folder}")
    weights = find_weights(folder) if weights is None else weights
    if policy_spec is None or weights is None:
        raise ValueError(f"{folder} holds no policy: finish the run, or give another folder")
    check_state(proprio_names(policy_spec, weights), world.proprio_names, f"the policy in {folder}")
    told = describe_rule_mismatch(policy_spec, str(written))
    if told and world.cameras is None:  # our own simulator draws squares
        logging.getLogger(__name__).warning(told)
    model, _ = build_vlm(
        without_checkpoint(config), world.proprio_size, num_plan_numbers(weights), world.texts()
    )
    match_query_count(model, weights)
    tokenizer = read_tokenizer(folder / "tokenizer", REMEDY)
    policy = make_policy(config, model, load_action_code(config.policy, policy_spec, written))
    load_weights(policy, rename_weights(policy.state_dict(), weights), folder)
    return policy, prompting_for_success(
        policy,
        make_observer(config, tokenizer, policy_spec["instruction_length"], policy),
        config.recap,
    )


def find_weights(folder: Path) -> dict[str, torch.Tensor] | None:
    """What a run ended with, or what was exported from one; None where there is neither."""
    from vla.files.policy_manifest import WEIGHTS, check_export
    from vla.training.checkpoint import last_checkpoint, load_checkpoint

    if (folder / WEIGHTS).exists():
        check_export(folder)
        return read_safetensors(folder / WEIGHTS, REMEDY)
    for stage in ("rl", "recap", "sft"):
        path = last_checkpoint(folder / "checkpoints" / stage)
        if path is not None:
            state = load_checkpoint(path)
            return state.get("best", state["policy"])
    return None
