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
    evaluate_control_codes,
    fit_control_codes,
    make_guided_engine,
    reward_levels,
    with_control_code,
)
from vla.text.open_ended_run import OpenEndedRun
from vla.training.run import Run


def run_control(config: TextConfig, run: Run) -> dict[str, Any]:
    """Sample, label by quantile, learn, and report the gold reward under every label."""
    settings = config.text
    assert isinstance(settings, Control)
    mode = OpenEndedRun.start(config, run, settings.generation, settings.prompts, settings.gold)
    num_levels = settings.levels
    chats = [
        with_control_code(mode.parts.chat, level, num_levels) for level in range(1, num_levels + 1)
    ]
    mode.prompts = mode.prompts.keep_usable(
        chats[-1], settings.generation.max_prompt_tokens, mode.reader
    )
    mode.reader.report_lines(run.progress.print_line)
    before = mode.evaluate("before")
    drawn = mode.sample_answers("samples", mode.prompts.train, settings.samples_per_prompt)
    answers = [said for group in drawn for said in group]
    rewards = [mode.gold(said.prompt, said.text) for said in answers]
    if len(set(rewards)) < 2:
        raise ValueError(
            "all samples have the same gold reward: raise text.generation.sampling.temperature"
        )
    samples = [
        LabelledCompletion(
            [chat.prompt(mode.prompts.messages_for(said.prompt)) for chat in chats],
            said.ids,
            level - 1,
        )
        for said, level in zip(answers, reward_levels(rewards, num_levels), strict=True)
    ]
    training = example_settings(settings.fit, len(samples), "text.fit")
    with TrainingStage(run, "fit", training.num_steps) as stage:
        fit_control_codes(
            mode.training_policy,
            samples,
            settings.discrimination,
            settings.beta,
            training,
            run.seed("fit"),
            stage,
        )
    results = evaluate_control_codes(mode, chats, 1.0)
    if settings.guidance != 1:
        mode.sampling_policy.engine = make_guided_engine(mode, chats, settings.guidance)
        results |= evaluate_control_codes(mode, chats, settings.guidance)
    mode.parts = replace(mode.parts, chat=chats[-1])
    return mode.finish("Control codes: before, and asked for the best", before, results)
