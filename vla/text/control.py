"""Control codes: the model learns its own samples behind a label of how good they are, and is then asked for the best.

Reward-conditioned fine-tuning as in Decision Transformer (Chen 2021), CTRL (Keskar 2019) and Quark (Lu 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vla.config.text import Control, TextConfig
from vla.data.chat import ChatFormat
from vla.text.open_judging import Mean, OpenJudged
from vla.text.open_run import OpenRun, Steps
from vla.text.supervised import Example, fit_examples
from vla.text.topics import Said, say
from vla.train.progress import Progress
from vla.train.run_folder import RunFolder


def code(level: int, num_levels: int) -> str:
    """The label of a level, 1 the worst."""
    return f"quality: {level} of {num_levels}"


def coded(chat: ChatFormat, level: int, num_levels: int) -> ChatFormat:
    """A chat format that puts the label into the system message."""
    label = code(level, num_levels)
    return replace(chat, system=f"{chat.system} {label}" if chat.system else label)


def levels_of(rewards: Sequence[float], num_levels: int) -> list[int]:
    """The quantile (1 worst ... num_levels best) that each reward falls into; equal rewards share a level."""
    inner = np.quantile(rewards, np.arange(1, num_levels) / num_levels)
    return (np.searchsorted(inner, rewards, side="left") + 1).tolist()


def run_control(config: TextConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Sample, label by quantile, learn, and report the gold reward under every label."""
    settings = config.text
    assert isinstance(settings, Control)
    run = OpenRun.start(config, settings.generation, settings.prompts, settings.gold, folder, progress)
    before, count = run.judge("before"), settings.levels
    torch.manual_seed(run.seed("samples"))
    answers = [said for group in run.say(run.prompts.train, settings.samples_per_prompt) for said in group]
    rewards = [run.gold(said.prompt, said.text) for said in answers]
    if len(set(rewards)) < 2:
        raise ValueError("all samples have the same gold reward: raise text.generation.sampling.temperature")
    plain = run.parts.chat
    examples = [
        Example(_prompt(coded(plain, level, count), said), said.ids)
        for said, level in zip(answers, levels_of(rewards, count), strict=True)
    ]
    with Steps(run, "fit", settings.fit.num_steps) as on_step:
        fit_examples(run.learner, examples, run.fit_settings(settings.fit), run.seed("fit"), on_step)
    by_code = {}
    for level in range(1, count + 1):
        chat, width = coded(plain, level, count), settings.generation.max_prompt_tokens
        said = say(run.speaker, chat, run.prompts.evaluation, 1, width, greedy=True)
        by_code[code(level, count)] = Mean.of(OpenJudged.of(said, run.gold).gold)
        progress.say(f"asked for {code(level, count)}: gold reward {by_code[code(level, count)]}")
    run.parts = replace(run.parts, chat=coded(plain, count, count))
    return run.finish("Control codes: before, and asked for the best", before, {"gold reward by code": by_code})


def _prompt(chat: ChatFormat, said: Said) -> list[int]:
    return chat.prompt([{"role": "user", "content": said.prompt}])
