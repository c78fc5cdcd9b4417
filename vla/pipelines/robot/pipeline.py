"""The robot pipeline: demonstrations, SFT, RL, and evaluation on held-out starts.

Every stage writes a dataset, a checkpoint or an entry of results.json. A resumed run skips the
stages that have theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vla.build import check_model
from vla.config.robot import RobotConfig
from vla.data.demonstrations import Demonstrations
from vla.data.observations import Observer
from vla.data.questions import QuestionEncoder
from vla.evaluation.starts import SeedRange, StartManifest
from vla.interrupt import stop_on_interrupt
from vla.pipelines.robot.cotraining import AuxiliaryTask, auxiliary_tasks
from vla.pipelines.robot.cotraining_text import text_cotraining
from vla.pipelines.robot.demonstrations import check_dataset, load_or_collect_demonstrations
from vla.pipelines.robot.evaluation_stages import (
    LanguageEvaluation,
    PolicyEvaluation,
    compare_stage,
    evaluation_stage,
    language_stage,
    plot_stage,
    video_stage,
)
from vla.pipelines.robot.policy import PolicyParts, build_policy
from vla.pipelines.robot.recap import recap_stage
from vla.pipelines.robot.rl import train_robot_rl
from vla.pipelines.robot.sft import num_full_steps, sft_stage
from vla.pipelines.robot.start import (
    SAVED,
    STAGE,
    check_start,
    skip_sft,
    start_policy,
)
from vla.policies.vla_policy import VlaPolicy
from vla.report.robot_report import write_report
from vla.simulator import Simulator
from vla.training.distributed import init_processes
from vla.training.run import Run, save_on_exit, start_run
from vla.training.run_folder import RunFolder, open_run
from vla.training.seed import seed_everything
from vla.training.synchronization import propagate_errors


def run_robot(config: RobotConfig, simulator: Simulator) -> RunFolder:
    """Run all stages of `mode=robot`; the folder of the run.

    Raises:
        Interrupted: the run was stopped; its progress is saved.
        ValueError: a setting, a dataset or a checkpoint does not fit the others.
    """
    train = config.train
    processes = init_processes(train.device)
    seed_everything(train.seed)
    check_model(config)
    check_dataset(config, simulator)
    check_start(config, simulator, start_manifest(config))
    folder = open_run(config, processes)
    with stop_on_interrupt() as stop:
        run = start_run(folder, stop, processes, train)
        run.progress.print_line(f"run {folder.path}")
        with save_on_exit(run, lambda: write_report(folder.path)):
            run_stages(run, config, simulator)
    return folder


def run_stages(run: Run, config: RobotConfig, simulator: Simulator) -> None:
    """Run the stages of a robot run in their order."""
    starts = start_manifest(config)
    if run.processes.is_main:
        starts.save(run.folder.starts)

    demonstrations, parts = load_or_build_policy(run, config, simulator)
    policy = parts.policy
    observer = parts.observer
    encoder = parts.encoder
    language = None if encoder is None else make_language(run, config, simulator, policy, encoder)
    environment = simulator.environment()

    if run.is_finished("sft"):
        load_sft_weights(run, policy)
    elif demonstrations is None:
        skip_sft(run)
    else:
        assert language is not None
        with run.stage("sft"):
            fine_tune(run, config, policy, demonstrations, observer, language)

    evaluation = PolicyEvaluation(policy, environment, observer, starts, config.evaluation)
    if not run.is_finished("evaluation_before"):
        with run.stage("evaluation_before"):
            evaluation_stage(run, "before", evaluation)
    with run.timer("videos"), propagate_errors(run.processes):
        video_stage(run, "before", evaluation, simulator)

    if demonstrations is not None:
        observer = recap_stage(run, config, policy, environment, observer, starts, demonstrations)
    evaluation = replace(evaluation, observer=observer)
    with run.stage("rl"):
        trainer = train_robot_rl(run, config, policy, environment, observer, starts)

    is_evaluated = final_evaluation_stage(run, config, trainer.num_iterations, evaluation)
    if parts.save is not None and run.processes.is_main:
        parts.save(run.folder.path / SAVED)
    learned = is_evaluated and trainer.num_iterations and rl_trains_model(config)
    if learned and language is not None:
        language_stage(run, "after_rl", language)
    compare_stage(run)
    with run.timer("videos"), propagate_errors(run.processes):
        if is_evaluated:
            video_stage(run, "after", evaluation, simulator)
        title = f"{config.sim.label}: {config.algorithm.name}"
        plot_stage(run, trainer.validation_curve, title)
    run.progress.print_line(f"results: {run.folder.results}")


def make_language(
    run: Run,
    config: RobotConfig,
    simulator: Simulator,
    policy: VlaPolicy,
    encoder: QuestionEncoder,
) -> LanguageEvaluation:
    """The evaluation of the language model of our own policy."""
    with run.timer("model"):
        texts = text_cotraining(config, policy.model, encoder.tokenizer, run.processes)
    return LanguageEvaluation(policy.model, encoder, simulator, texts, config)


def load_or_build_policy(
    run: Run, config: RobotConfig, simulator: Simulator
) -> tuple[Demonstrations | None, PolicyParts]:
    """(demonstrations, None where no stage reads them; the policy before SFT)."""
    demonstrations = None
    if config.needs_demonstrations:
        with run.timer("demonstrations"):
            demonstrations = load_or_collect_demonstrations(run, config, simulator)
    with run.timer("model"):
        if config.policy.path is not None:
            return demonstrations, start_policy(run, config, simulator, demonstrations)
        assert demonstrations is not None
        return demonstrations, build_policy(run, config, simulator, demonstrations)


def fine_tune(
    run: Run,
    config: RobotConfig,
    policy: VlaPolicy,
    demonstrations: Demonstrations,
    observer: Observer,
    language: LanguageEvaluation,
) -> None:
    """Supervised fine-tuning, with evaluations of the language model around it.

    The language model is evaluated where SFT or RL trains more than the head.
    """
    trains_model = num_full_steps(config, policy) > 0
    if (trains_model or rl_trains_model(config)) and not run.is_finished("answers_before"):
        language_stage(run, "before", language)
    tasks: list[AuxiliaryTask] = []
    if trains_model:
        tasks = auxiliary_tasks(
            config,
            language.model,
            language.encoder,
            language.simulator,
            language.texts,
            run.processes,
        )
    sft_stage(run, config, policy, demonstrations, observer, tasks)
    if trains_model:
        language_stage(run, "after", language)


def load_sft_weights(run: Run, policy: Any) -> None:
    """Load the policy that SFT of an earlier session ended with, or that it started from."""
    saved = run.load("sft") or run.load(STAGE)
    assert saved is not None
    policy.load_state_dict(saved["policy"])


def rl_trains_model(config: RobotConfig) -> bool:
    """True where RL trains more than the head, so that the model's answers can change."""
    return config.rl.num_iterations > 0 and config.rl.adapt in ("weights", "backbone", "lora")


def final_evaluation_stage(
    run: Run, config: RobotConfig, num_iterations: int, evaluation: PolicyEvaluation
) -> bool:
    """Evaluate the policy after `num_iterations` of RL; True where there is such an evaluation.

    A resumed run with more iterations evaluates again. Without RL and RECAP the policy is that of
    the evaluation before, and the stage only says so in results.json.
    """
    if config.rl.num_iterations == 0 and config.recap.num_rounds == 0:
        run.finish_stage(
            "evaluation_after",
            {"left_out": "nothing changed the policy after the evaluation before"},
        )
        return False
    stages = run.results.get("stages", {})
    previous = stages.get("evaluation_after", {"left_out": "not evaluated yet"})
    # Results of versions before `num_iterations` count as those of the present policy.
    if "left_out" in previous or previous.get("num_iterations", num_iterations) != num_iterations:
        with run.stage("evaluation_after"):
            evaluation_stage(run, "after", evaluation)
        result = run.results["stages"]["evaluation_after"]
        run.finish_stage("evaluation_after", {**result, "num_iterations": num_iterations})
    return True


def start_manifest(config: RobotConfig) -> StartManifest:
    """The starts for training, validation and evaluation that the settings describe.

    Raises:
        ValueError: ranges of seeds overlap, or hold too few seeds.
    """
    settings = config.evaluation
    return StartManifest(
        config.sim.start_settings,
        train=SeedRange(settings.train_seeds.first, settings.train_seeds.last),
        validation=SeedRange(settings.validation_seeds.first, settings.validation_seeds.last),
        evaluation=SeedRange(settings.eval_seeds.first, settings.eval_seeds.last),
        num_starts=settings.num_starts,
    )
