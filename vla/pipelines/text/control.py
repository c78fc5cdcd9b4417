"""Control codes (Decision Transformer, Chen 2021; Quark, Lu 2022): sample, label by quality, learn,
and ask for the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vla.config.text import Control, TextConfig
from vla.sft.examples import example_settings
from vla.sft.stage import TrainingStage
from vla.text.control_codes import (
    LabelledCompletion,
    answer_with_guidance,
    evaluate_steering,
    fit_codes,
    reward_levels,
    with_level_label,
)
from vla.text.open_ended_run import OpenMode
from vla.training.run import Run


def run_control(config: TextConfig, run: Run) -> dict[str, Any]:
    """Sample, label by quantile, learn, and report the gold reward under every label."""
    settings = config.text
    assert isinstance(settings, Control)
    mode = OpenMode.start(config, run, settings.generation, settings.prompts, settings.gold)
    num_levels = settings.levels
    chats = [
        with_level_label(mode.parts.chat, level, num_levels) for level in range(1, num_levels + 1)
    ]
    mode.prompts = mode.prompts.fitting(
        chats[-1], settings.generation.max_prompt_tokens, mode.reader
    )
    mode.reader.report_lines(run.progress.say)
    before = mode.evaluate("before")
    drawn = mode.answers("samples", mode.prompts.train, settings.samples_per_prompt)
    answers = [said for group in drawn for said in group]
    rewards = [mode.gold(said.prompt, said.text) for said in answers]
    if len(set(rewards)) < 2:
        raise ValueError(
            "all samples have the same gold reward: raise text.generation.sampling.temperature"
        )
    samples = [
        LabelledCompletion(
            [chat.prompt(mode.prompts.asked(said.prompt)) for chat in chats], said.ids, level - 1
        )
        for said, level in zip(answers, reward_levels(rewards, num_levels), strict=True)
    ]
    training = example_settings(settings.fit, len(samples), "text.fit")
    with TrainingStage(run, "fit", training.num_steps) as stage:
        fit_codes(
            mode.learner,
            samples,
            settings.discrimination,
            settings.beta,
            training,
            run.seed("fit"),
            stage,
        )
    results = evaluate_steering(mode, chats, 1.0)
    if settings.guidance != 1:
        mode.speaker.engine = answer_with_guidance(mode, chats, settings.guidance)
        results |= evaluate_steering(mode, chats, settings.guidance)
    mode.parts = replace(mode.parts, chat=chats[-1])
    return mode.finish("Control codes: before, and asked for the best", before, results)
