"""Control codes (Decision Transformer, Chen 2021; Quark, Lu 2022): samples are labelled by quality.

The model learns its samples behind their codes. The evaluation conditions on the best code.
"""

from __future__ import annotations

from dataclasses import replace

from vla.config.text import Control, TextConfig
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.control_codes import (
    LabelledCompletion,
    evaluate_control_codes,
    fit_control_codes,
    make_guided_engine,
    reward_levels,
    with_control_code,
)
from vla.text.open_ended_run import OpenEndedRun
from vla.training.run import Run


def run_control(config: TextConfig, run: Run) -> dict[str, object]:
    """Sample, label by quantile, train, and report the gold reward under every code.

    Raises:
        ValueError: all samples have the same gold reward.
    """
    settings = config.text
    assert isinstance(settings, Control)
    open_ended = OpenEndedRun.start(
        config, run, settings.generation, settings.prompts, settings.gold
    )
    num_levels = settings.levels
    chats = [
        with_control_code(open_ended.parts.chat, level, num_levels)
        for level in range(1, num_levels + 1)
    ]
    open_ended.prompts = open_ended.prompts.keep_usable(
        chats[-1], settings.generation.max_prompt_tokens, open_ended.reader
    )
    open_ended.reader.report_lines(run.progress.print_line)
    before = open_ended.evaluate("before")
    drawn = open_ended.sample_answers(
        "samples", open_ended.prompts.train, settings.samples_per_prompt
    )
    answers = [completion for group in drawn for completion in group]
    rewards = [open_ended.gold(answer.prompt, answer.text) for answer in answers]
    if len(set(rewards)) < 2:
        raise ValueError(
            "all samples have the same gold reward: raise text.generation.sampling.temperature"
        )
    samples = [
        LabelledCompletion(
            [chat.prompt(open_ended.prompts.messages_for(answer.prompt)) for chat in chats],
            answer.ids,
            level - 1,
        )
        for answer, level in zip(answers, reward_levels(rewards, num_levels), strict=True)
    ]
    training = example_settings(settings.fit, len(samples), "text.fit")
    with TrainingStage(run, "fit", training.num_steps) as stage:
        fit_control_codes(
            open_ended.training_policy,
            samples,
            settings.discrimination,
            settings.beta,
            training,
            run.seed("fit"),
            stage,
        )
    results = evaluate_control_codes(open_ended, chats, 1.0)
    if settings.guidance != 1:
        open_ended.sampling_policy.engine = make_guided_engine(open_ended, chats, settings.guidance)
        results |= evaluate_control_codes(open_ended, chats, settings.guidance)
    open_ended.parts = replace(open_ended.parts, chat=chats[-1])
    return open_ended.finish("Control codes: before, and conditioned on the best", before, results)
