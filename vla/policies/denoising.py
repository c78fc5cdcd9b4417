"""Action heads that turn noise into a chunk of actions by an action expert: flow matching (pi0) and
diffusion.

`exploration` chooses the steps of the denoising chain that are draws to learn from:

    one_step       one random step a decision is a draw (L = 1), the others add no noise
                   (pi_RL, Chen et al. 2025: as good as all of them, and twice as fast)
    all_steps      every step is a draw (L = K'): Flow-SDE, and DPPO for diffusion
    learned_noise  every step is a draw with a standard deviation of the expert (L = K'): Flow-Noise
    matching       no step is a draw (L = 1); minus the flow-matching loss of the action, on noise
                   and times from the trace, replaces its log-probability: FPO (McAllister et al.
                   2025), a surrogate

The first three are exact: the log-probability of the Gaussian steps in the trace. Only the last
`num_stochastic_steps` of the chain may be draws (DPPO's K'). Later steps remove most of the effect
of an early draw, and a draw without effect is noise in a gradient. The prefix and the language
model are computed once a decision, for any number of steps.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `a` of them active, `K`
denoising steps, `K'` of them that may be draws, `L` draws, `S` samples, `T` tokens and `D` numbers
of a packed prefix cache, `d` width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.action_statistics import MAX_NORMALIZED, describe_widened_scales
from vla.actions.fast import FastCode, fit_fast, max_normalized_value
from vla.actions.generative_process import GenerativeProcess, gaussian_entropy, gaussian_logprob
from vla.actions.normalize import ActionNormalizer, fit_normalizer
from vla.finite_checks import check_finite
from vla.models.action_expert import (
    ActionExpert,
    ExpertContext,
    build_prefix_cache,
    make_expert_context,
    unpack_prefix_cache,
)
from vla.models.plan_head import ActionReadout
from vla.models.vlm import VisionLanguageModel
from vla.policies.fast import make_fast_decoder, score_tokens
from vla.policies.head import Draws, DrawScores, HeadInput
from vla.policies.traits import Cache
from vla.types import Observation, Trace

Exploration = Literal["one_step", "all_steps", "learned_noise", "matching"]
SURROGATE_LIMIT = 3.0
"""The largest change of a surrogate log-probability in an update, in nats (FPO)."""


@dataclass(frozen=True)
class DenoisingSettings:
    """Settings that flow matching and diffusion share.

    `samples` is the number of noise draws a frame, in supervised training and in a surrogate. With
    `stop_gradient_to_vlm` the expert's gradient does not reach the language model; it learns
    actions from the cross-entropy of FAST tokens instead, weighted by `token_weight` (knowledge
    insulation, Driess et al. 2025). `min_noise` and `max_noise` bound the standard deviation of
    learned noise, on the normalised scale.
    """

    chunk: int
    width: int
    intermediate: int
    exploration: Exploration
    num_stochastic_steps: int
    samples: int
    stop_gradient_to_vlm: bool
    min_noise: float = 0.1
    max_noise: float = 0.1
    token_weight: float = 0.0


class DenoisingHead(nn.Module):
    """An action expert that attends to the language model's keys and values.

    `code` holds the FAST tokens of the auxiliary loss under `token_weight`.

    Raises:
        ValueError: the bounds of noise are swapped, or more steps are draws than there are.
    """

    cache: Cache | None = "prefix"  # keys and values would take ten times as much
    one_prediction = False
    temperature = 1.0

    def __init__(
        self,
        model: VisionLanguageModel,
        process: GenerativeProcess,
        normalizer: ActionNormalizer,
        settings: DenoisingSettings,
        code: FastCode | None = None,
    ):
        super().__init__()
        if settings.min_noise > settings.max_noise:
            raise ValueError(
                f"policy.min_noise ({settings.min_noise}) must not exceed policy.max_noise "
                f"({settings.max_noise}): swap them"
            )
        if not 1 <= settings.num_stochastic_steps <= process.num_steps:
            raise ValueError(
                f"policy.num_stochastic_steps ({settings.num_stochastic_steps}) must lie between "
                f"1 and policy.num_steps ({process.num_steps}): it counts the last steps that may "
                "be draws"
            )
        self.process = process
        self.normalizer = normalizer
        self.settings = settings
        assert code is not None or settings.token_weight == 0, "the loss of tokens needs their code"
        self.code = code
        needs_writer = code is not None and settings.token_weight != 0
        self.writer = make_fast_decoder(model, code) if needs_writer else None
        self.readout = ActionReadout(model, settings.chunk)
        self.expert = ActionExpert(
            model, settings.chunk, normalizer.num_active, settings.width, settings.intermediate
        )
        self.register_buffer("times", process.times, persistent=False)

    @property
    def chunk(self) -> int:
        return self.settings.chunk

    @property
    def exact(self) -> bool:
        return self.settings.exploration != "matching"

    @property
    def num_draws(self) -> int:
        single = self.settings.exploration in ("one_step", "matching")
        return 1 if single else self.settings.num_stochastic_steps

    @property
    def _first_drawn(self) -> int:
        """Number of the first step of the chain that may be a draw."""
        return self.process.num_steps - self.settings.num_stochastic_steps

    def perceive(
        self,
        model: VisionLanguageModel,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        dedup: bool,
    ) -> Float[Tensor, "B T D"]:
        """The packed prefix cache: states of the queries, keys and values of all layers."""
        return build_prefix_cache(model, self.readout, prefix, observation, dedup=dedup)

    def interpret(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B T D"],
        observation: Observation,
    ) -> ExpertContext:
        return make_expert_context(
            model, self.readout, perceived, observation, self.settings.stop_gradient_to_vlm
        )

    def summarize(self, inputs: HeadInput[ExpertContext]) -> Float[Tensor, "B d"]:
        return inputs.context.states.mean(1)

    def predict(
        self,
        inputs: HeadInput[ExpertContext],
        state: Float[Tensor, "B S H a"],
        time: Float[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B S H a"], Float[Tensor, "B S H a"]]:
        """The expert's prediction (with guidance), and the standard deviation of learned noise.

        The logarithm of the latter lies linearly between its bounds; it takes no guidance.
        """
        labelled, fraction = self.expert(state, time, inputs.context)
        prediction = inputs.guide(
            labelled, lambda unlabelled: self.expert(state, time, unlabelled)[0]
        )
        low = self.settings.min_noise
        high = self.settings.max_noise
        return prediction, low * (high / low) ** fraction

    def _transition(
        self,
        step: int,
        state: Float[Tensor, "*rows H a"],
        prediction: Float[Tensor, "*rows H a"],
        spread: Float[Tensor, "*rows H a"],
    ) -> tuple[Float[Tensor, "*rows H a"], Float[Tensor, "*rows H a"] | float]:
        """Mean and standard deviation of the next state when the step is a draw."""
        if self.settings.exploration == "learned_noise":
            return self.process.move(step, state, prediction), spread
        return self.process.transition(step, state, prediction)

    def draw(self, inputs: HeadInput[ExpertContext], greedy: bool) -> Draws:
        """New decisions. Greedy: from zeros in place of noise, and without noise on the way."""
        start = self._start(inputs, greedy)
        if self.settings.exploration == "matching":
            final, trace, logprobs = self._match(start, inputs)
        else:
            final, trace, logprobs = self._denoise(start, inputs, greedy)
        check_finite("actions", final)
        return Draws(
            action=self.normalizer.decode(final),
            trace=trace,
            logprobs=logprobs,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            summary=self.summarize(inputs),
        )

    def _start(self, inputs: HeadInput[ExpertContext], greedy: bool) -> Float[Tensor, "B H a"]:
        """Noise at the start of the chain, the same for all decisions of a state.

        It is no draw of the policy. If it differed, decisions of a state would differ by more than
        their draws, and their comparison would credit the draws with it.
        """
        states = inputs.context.states
        shape = (len(states) // inputs.repeats, self.chunk, self.normalizer.num_active)
        if greedy:
            noise = torch.zeros(shape, device=states.device)
        else:
            noise = torch.randn(shape, device=states.device)
        return noise.repeat_interleave(inputs.repeats, 0)

    def _chosen_steps(self, rows: int, device: torch.device) -> Int[Tensor, "B L"]:
        """Numbers of the steps of the chain that are draws."""
        first = self._first_drawn
        last = self.process.num_steps
        if self.settings.exploration == "one_step":
            return torch.randint(first, last, (rows, 1), device=device)
        return torch.arange(first, last, device=device).expand(rows, -1)

    def _denoise(
        self, state: Float[Tensor, "B H a"], inputs: HeadInput[ExpertContext], greedy: bool
    ) -> tuple[Float[Tensor, "B H a"], dict[str, Tensor], Float[Tensor, "B L"]]:
        """Run the chain with noise in the steps that are draws.

        Returns its end, a trace (drawn steps, and the states before and after them), and the
        log-probabilities of the draws.
        """
        rows = torch.arange(len(state), device=state.device)[:, None]
        steps = self._chosen_steps(len(rows), rows.device)
        if greedy and self.num_draws == 1:
            steps = torch.full_like(rows, self._first_drawn)
        states = [state]
        logprobs = []
        for k, time in enumerate(self.times):
            prediction, spread = (
                part[:, 0]
                for part in self.predict(inputs, state[:, None], time.expand(len(state), 1))
            )
            mean, std = self._transition(k, state, prediction, spread)
            moved = self.process.move(k, state, prediction)
            if not greedy:
                # Every row draws noise in every step, used or not: `one_step` differs by row.
                drawn = (steps == k).any(1)[:, None, None]
                moved = torch.where(drawn, mean + std * torch.randn_like(mean), moved)
            # Of a step that is no draw this number has no meaning; it is dropped below.
            logprobs.append(gaussian_logprob(moved, mean, std))
            state = moved
            states.append(state)
        chain = torch.stack(states, dim=1)
        trace = {"step": steps, "before": chain[rows, steps], "after": chain[rows, steps + 1]}
        return state, trace, torch.stack(logprobs, dim=1)[rows, steps]

    def denoise(
        self, state: Float[Tensor, "B H a"], inputs: HeadInput[ExpertContext]
    ) -> Float[Tensor, "B H a"]:
        """The end of the chain from `state`, without further noise; on the normalised scale."""
        for k, time in enumerate(self.times):
            prediction, _ = self.predict(inputs, state[:, None], time.expand(len(state), 1))
            state = self.process.move(k, state, prediction[:, 0])
        return state

    def _match(
        self, state: Float[Tensor, "B H a"], inputs: HeadInput[ExpertContext]
    ) -> tuple[Float[Tensor, "B H a"], dict[str, Tensor], Float[Tensor, "B 1"]]:
        """Run the chain without noise; the trace holds noise and times of the surrogate."""
        state = self.denoise(state, inputs)
        shape = (len(state), self.settings.samples)
        trace = {
            "action": state,
            "noise": torch.randn(*shape, *state.shape[1:], device=state.device),
            "time": self.process.draw_times(shape, state.device),
        }
        trace["surrogate"] = self._surrogate(trace, inputs)
        return state, trace, trace["surrogate"]

    def _surrogate(self, trace: Trace, inputs: HeadInput[ExpertContext]) -> Float[Tensor, "B 1"]:
        """Minus the flow-matching loss, summed over a chunk's numbers, a mean over the trace's
        noise and times."""
        noised, target = self.process.corrupt(
            trace["action"][:, None], trace["noise"], trace["time"]
        )
        prediction, _ = self.predict(inputs, noised, trace["time"])
        return -(prediction - target).square().sum((-1, -2)).mean(1, keepdim=True)

    def score(self, inputs: HeadInput[ExpertContext], trace: Trace) -> DrawScores:
        """Scores of stored draws; an entropy only with learned noise, else no weight changes it."""
        summary = self.summarize(inputs)
        if self.settings.exploration == "matching":
            # An unbounded change of the surrogate would make an importance ratio of any size.
            change = self._surrogate(trace, inputs) - trace["surrogate"]
            limited = change.clamp(-SURROGATE_LIMIT, SURROGATE_LIMIT)
            return DrawScores(trace["surrogate"] + limited, None, summary)
        steps = trace["step"]
        before = trace["before"]
        after = trace["after"]
        prediction, spread = self.predict(inputs, before, self.times[steps])
        logprobs = torch.zeros_like(self.times[steps])
        # A transition takes its step as a constant, so every draw gets the transitions of all
        # steps, and `where` picks its own.
        for k in range(self._first_drawn, self.process.num_steps):
            mean, std = self._transition(k, before, prediction, spread)
            logprobs = torch.where(steps == k, gaussian_logprob(after, mean, std), logprobs)
        learned = self.settings.exploration == "learned_noise"
        return DrawScores(logprobs, gaussian_entropy(spread) if learned else None, summary)

    def imitation_terms(
        self,
        model: VisionLanguageModel,
        perceived: Float[Tensor, "B T D"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        trains_model: bool,
    ) -> tuple[Float[Tensor, "B H"], Bool[Tensor, "B H"]]:
        """Squared error of the expert's prediction for every control step, a mean over noise draws
        and action dimensions.

        All noise draws share one pass of the language model, which costs more than all of them.
        """
        inputs = HeadInput(model, self.interpret(model, perceived, observation))
        clean = self.normalizer.encode(actions)[:, None]
        shape = (len(actions), self.settings.samples)
        noise = torch.randn(*shape, *clean.shape[2:], device=clean.device)
        time = self.process.draw_times(shape, clean.device)
        noised, target = self.process.corrupt(clean, noise, time)
        prediction, _ = self.predict(inputs, noised, time)
        terms = (prediction - target).square().mean((1, 3))
        if self.writer is None or not trains_model:
            return terms, action_mask
        # This loss trains the language model, so its gradient passes whatever the expert's does.
        prefix = unpack_prefix_cache(model, self.readout, perceived, observation)
        ids, mask = self.code.encode(actions)
        logprobs, _ = score_tokens(self.writer, model, prefix, ids, mask, 1.0)
        # A token encodes all control steps: a chunk counts only if all its actions do.
        tokens = -(logprobs.sum(1) / mask.sum(1) * action_mask.all(1))[:, None]
        return terms + self.settings.token_weight * tokens, action_mask

    def perception_parameters(self) -> Iterator[nn.Parameter]:
        yield self.readout.queries

    def chain(self, trace: Trace) -> Float[Tensor, "B K H A"] | None:
        """States of the chain around the steps that were draws, as actions; None without draws."""
        if "before" not in trace:
            return None
        states = torch.cat([trace["before"], trace["after"][:, -1:]], dim=1)
        return self.normalizer.decode(states).float()


def fit_denoising_code(
    chunks: np.ndarray, token_weight: float, num_tokens: int, token_scale: float
) -> ActionNormalizer | FastCode:
    """A normaliser; with `token_weight`, a FAST code that contains one."""
    if token_weight:
        return fit_fast(chunks, num_tokens, token_scale)
    return fit_normalizer(chunks[:, 0])


def read_denoising_code(
    values: Mapping[str, Any], token_weight: float
) -> ActionNormalizer | FastCode:
    """The code of `fit_denoising_code`, from its `to_dict`."""
    kind = FastCode if token_weight else ActionNormalizer
    return kind.from_dict(dict(values))


def denoising_code_notes(
    code: ActionNormalizer | FastCode, num_tokens: int, frames: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Sentences about dimensions with a widened scale."""
    if isinstance(code, FastCode):
        return describe_widened_scales(
            frames, names, max_normalized_value(num_tokens, code.scale, code.chunk)
        )
    return describe_widened_scales(frames, names, MAX_NORMALIZED)


def make_denoising_head(
    model: VisionLanguageModel,
    process: GenerativeProcess,
    settings: DenoisingSettings,
    code: ActionNormalizer | FastCode,
) -> DenoisingHead:
    """The head of a process, with the FAST decoder where the code has tokens."""
    if isinstance(code, FastCode):
        return DenoisingHead(model, process, code.normalizer, settings, code)
    return DenoisingHead(model, process, code, settings)
