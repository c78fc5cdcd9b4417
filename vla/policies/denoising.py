"""Policies that turn noise into a chunk of actions: flow matching (pi0) and diffusion, by an action
expert.

How the steps of the denoising chain become draws that the core can learn from is `exploration`:

    one_step       one step of the chain, chosen at random for each decision, is a draw (L = 1), the others move without
                   noise (pi_RL, Chen et al. 2025: as good as all of them, and twice as fast)
    all_steps      every step is a draw (L = K'): Flow-SDE, and DPPO for diffusion
    learned_noise  every step is a draw whose spread the expert says (L = K'): Flow-Noise
    matching       nothing of the chain is a draw; the flow-matching loss of the action, on noise and times that the
                   trace keeps, stands for its log-probability (L = 1): FPO (McAllister et al. 2025), a surrogate

The first three are exact: the log-probability of the Gaussian steps that the trace holds. Only the
last `drawn_steps` of the chain may be draws (DPPO's K'): where an observation leaves little doubt,
what was drawn early is gone at the end, and a draw without consequence is noise in a gradient. The
prefix and the language model are computed once a decision, however many steps there are.

Shapes: `H` control steps a chunk, `A` action dimensions, `a` of them active, `K` denoising steps,
`K'` of them that may be draws, `L` draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.actions.fast import FastCode
from vla.actions.normalize import ActionNormalizer
from vla.actions.process import Process, gaussian_entropy, gaussian_logprob
from vla.data.labels import without_label
from vla.finite import check_finite
from vla.models.action_expert import ActionExpert, Context, context_of, read_by, see, see_once
from vla.models.heads import ValueHead
from vla.models.readout import Readout
from vla.models.vlm import VisionLanguageModel
from vla.policies.fast import writer_of, written_scores
from vla.types import Decision, Observation, Scores, Trace, map_rows

Exploration = Literal["one_step", "all_steps", "learned_noise", "matching"]
SURROGATE_LIMIT = 3.0
"""How far a surrogate log-probability may move in an update (FPO)."""


@dataclass(frozen=True)
class DenoisingSettings:
    """`samples` noise draws a frame in supervised training, and of a surrogate. With `insulate` the
    expert's gradient does not reach the language model, which learns actions from the cross-entropy
    of compressed tokens instead, by `token_weight` (knowledge insulation, Driess et al. 2025).
    Learned noise lies between `min_noise` and `max_noise`.
    """

    chunk: int
    width: int
    intermediate: int
    exploration: Exploration
    drawn_steps: int
    samples: int
    insulate: bool
    detach_critic: bool
    min_noise: float = 0.1
    max_noise: float = 0.1
    token_weight: float = 0.0


class DenoisingPolicy(nn.Module):
    """A vision-language model and an action expert. After `freeze_prefix` a trace carries the
    prefix.

    `code` is that of the tokens which teach the model under `token_weight`. With `guidance` other
    than 1, predictions go that many times as far as the label of the instruction leads (Ho and
    Salimans 2022).
    """

    temperature = 1.0
    can_probe = True

    def __init__(
        self,
        model: VisionLanguageModel,
        process: Process,
        normalizer: ActionNormalizer,
        settings: DenoisingSettings,
        code: FastCode | None = None,
    ):
        super().__init__()
        if settings.min_noise > settings.max_noise:
            raise ValueError(
                f"policy.min_noise ({settings.min_noise}) must not exceed policy.max_noise ({settings.max_noise})"
            )
        if not 1 <= settings.drawn_steps <= process.num_steps:
            raise ValueError(
                f"policy.drawn_steps ({settings.drawn_steps}) must lie between 1 and policy.num_steps "
                f"({process.num_steps}): so many of the last steps may be draws"
            )
        self.model, self.process, self.normalizer, self.settings = (
            model,
            process,
            normalizer,
            settings,
        )
        self.chunk = settings.chunk
        self.cached_prefix = False
        self.guidance = 1.0
        assert code is not None or settings.token_weight == 0, "the loss of tokens needs their code"
        self.code, self.writer = (
            code,
            None if settings.token_weight == 0 else writer_of(model, code),
        )
        self.readout = Readout(model, settings.chunk)
        self.expert = ActionExpert(
            model, settings.chunk, normalizer.num_active, settings.width, settings.intermediate
        )
        self.value_head = ValueHead(model.width, settings.detach_critic)
        self.register_buffer("times", process.times, persistent=False)

    @property
    def num_draws(self) -> int:
        return (
            1
            if self.settings.exploration in ("one_step", "matching")
            else self.settings.drawn_steps
        )

    @property
    def _first_drawn(self) -> int:
        """The first step of the chain that may be a draw."""
        return self.process.num_steps - self.settings.drawn_steps

    def perceive(
        self, observation: Observation, trace: Trace | None = None
    ) -> Float[Tensor, "B T D"]:
        """What the language model has seen, its keys and values in it; from the prefix where a
        trace carries that."""
        if trace is not None and "prefix" in trace:
            return see_once(self.model, self.readout, trace["prefix"], observation)
        return see(self.model, self.readout, self.model.prefix(observation), observation)

    def _context(self, seen: Float[Tensor, "B T D"], observation: Observation) -> Context:
        return context_of(self.model, self.readout, seen, observation, self.settings.insulate)

    def _guided(
        self, observation: Observation, trace: Trace | None = None, count: int = 1
    ) -> Context:
        """The context to act and to score in, every row `count` times; with guidance, that without
        the label in it."""

        def found(shown: Observation) -> Context:
            seen = self.perceive(shown, trace).repeat_interleave(count, 0)
            return self._context(
                seen, map_rows(shown, lambda tensor: tensor.repeat_interleave(count, 0))
            )

        if self.guidance == 1:
            return found(observation)
        return replace(found(observation), plain=found(without_label(observation)))

    def _values(self, context: Context) -> Float[Tensor, "B"]:
        return self.value_head(context.states.mean(1))

    def _predict(
        self, state: Float[Tensor, "B S H a"], time: Float[Tensor, "B S"], context: Context
    ) -> tuple[Float[Tensor, "B S H a"], Float[Tensor, "B S H a"]]:
        """What the network says, and the standard deviation of learned noise (on a scale of its
        logarithm)."""
        prediction, share = self.expert(state, time, context)
        if context.plain is not None:
            plain, _ = self.expert(state, time, context.plain)
            prediction = plain + self.guidance * (prediction - plain)
        low, high = self.settings.min_noise, self.settings.max_noise
        return prediction, low * (high / low) ** share

    def _transition(
        self,
        step: int,
        state: Float[Tensor, "*rows H a"],
        prediction: Float[Tensor, "*rows H a"],
        spread: Float[Tensor, "*rows H a"],
    ) -> tuple[Float[Tensor, "*rows H a"], Float[Tensor, "*rows H a"] | float]:
        if self.settings.exploration == "learned_noise":
            return self.process.move(step, state, prediction), spread
        return self.process.transition(step, state, prediction)

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row; greedy: from no noise,
        without noise."""
        prefix = self.model.prefix(observation)
        start = torch.zeros(
            len(prefix), self.chunk, self.normalizer.num_active, device=prefix.device
        )
        if not greedy:
            start = torch.randn_like(start)
        return self._decided(self._guided(observation, {"prefix": prefix}), prefix, start, greedy)

    def _decided(
        self,
        context: Context,
        prefix: Float[Tensor, "B P d"],
        start: Float[Tensor, "B H a"],
        greedy: bool,
    ) -> Decision:
        if self.settings.exploration == "matching":
            final, trace, logprobs = self._match(start, context)
        else:
            final, trace, logprobs = self._denoise(start, context, greedy)
        check_finite("actions", final)
        return Decision(
            action=self.normalizer.decode(final),
            trace=trace | ({"prefix": prefix} if self.cached_prefix else {}),
            logprobs=logprobs,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
            values=self._values(context),
            exact=self.settings.exploration != "matching",
        )

    @property
    def can_redraw(self) -> bool:
        return self.cached_prefix

    @torch.no_grad()
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` more decisions for every row, from the prefix in its trace; those of a row stand
        together.

        Those of a row start from the same noise: it is no draw of the policy, and where it differs,
        so does what is compared.
        """
        prefix = trace["prefix"]
        start = torch.randn(
            len(prefix), self.chunk, self.normalizer.num_active, device=prefix.device
        )
        start, prefix = start.repeat_interleave(count, 0), prefix.repeat_interleave(count, 0)
        return self._decided(self._guided(observation, trace, count), prefix, start, greedy=False)

    def _chosen_steps(self, rows: int, device: torch.device) -> Int[Tensor, "B L"]:
        """Which steps of the chain are draws."""
        if self.settings.exploration == "one_step":
            return torch.randint(
                self._first_drawn, self.process.num_steps, (rows, 1), device=device
            )
        return torch.arange(self._first_drawn, self.process.num_steps, device=device).expand(
            rows, -1
        )

    def _denoise(
        self, state: Float[Tensor, "B H a"], context: Context, greedy: bool
    ) -> tuple[Float[Tensor, "B H a"], dict[str, Tensor], Float[Tensor, "B L"]]:
        """Walk the chain: its end, the steps that are draws with the states around them, and their
        log-probs."""
        rows = torch.arange(len(state), device=state.device)[:, None]
        steps = self._chosen_steps(len(rows), rows.device)
        if greedy and self.num_draws == 1:
            steps = torch.full_like(rows, self._first_drawn)
        states, logprobs = [state], []
        for k, time in enumerate(self.times):
            prediction, spread = (
                part[:, 0]
                for part in self._predict(state[:, None], time.expand(len(state), 1), context)
            )
            mean, std = self._transition(k, state, prediction, spread)
            moved = self.process.move(k, state, prediction)
            if not greedy:
                drawn = (steps == k).any(1)[:, None, None]
                moved = torch.where(drawn, mean + std * torch.randn_like(mean), moved)
            logprobs.append(gaussian_logprob(moved, mean, std))
            state = moved
            states.append(state)
        chain = torch.stack(states, dim=1)
        trace = {"step": steps, "before": chain[rows, steps], "after": chain[rows, steps + 1]}
        return state, trace, torch.stack(logprobs, dim=1)[rows, steps]

    def _match(
        self, state: Float[Tensor, "B H a"], context: Context
    ) -> tuple[Float[Tensor, "B H a"], dict[str, Tensor], Float[Tensor, "B 1"]]:
        """Walk the chain without noise, and keep the noise and times of the surrogate."""
        for k, time in enumerate(self.times):
            prediction, _ = self._predict(state[:, None], time.expand(len(state), 1), context)
            state = self.process.move(k, state, prediction[:, 0])
        shape = (len(state), self.settings.samples)
        trace = {
            "action": state,
            "noise": torch.randn(*shape, *state.shape[1:], device=state.device),
            "time": self.process.draw_times(shape, state.device),
        }
        trace["surrogate"] = self._surrogate(trace, context)
        return state, trace, trace["surrogate"]

    def _surrogate(self, trace: Trace, context: Context) -> Float[Tensor, "B 1"]:
        """Minus the loss of matching, summed over a chunk's numbers, a mean over the kept noise and
        times."""
        noised, target = self.process.corrupt(
            trace["action"][:, None], trace["noise"], trace["time"]
        )
        prediction, _ = self._predict(noised, trace["time"], context)
        return -(prediction - target).square().sum((-1, -2)).mean(1, keepdim=True)

    def score(self, observation: Observation, trace: Trace) -> Scores:
        """Log-probabilities [B, L] of stored draws, and values [B], under the present weights.

        There is an entropy only where the policy can change it: with learned noise.
        """
        context = self._guided(observation, trace)
        values = self._values(context)
        if self.settings.exploration == "matching":
            change = self._surrogate(trace, context) - trace["surrogate"]
            return Scores(
                trace["surrogate"] + change.clamp(-SURROGATE_LIMIT, SURROGATE_LIMIT), None, values
            )
        steps, before, after = trace["step"], trace["before"], trace["after"]
        prediction, spread = self._predict(before, self.times[steps], context)
        logprobs = torch.zeros_like(self.times[steps])
        for k in range(self._first_drawn, self.process.num_steps):
            mean, std = self._transition(k, before, prediction, spread)
            logprobs = torch.where(steps == k, gaussian_logprob(after, mean, std), logprobs)
        learned = self.settings.exploration == "learned_noise"
        return Scores(logprobs, gaussian_entropy(spread) if learned else None, values)

    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Float[Tensor, "B T D"] | None = None,
    ) -> tuple[Float[Tensor, "B H"], Bool[Tensor, "B H"]]:
        """Squared error of what the expert predicts, a mean over noise draws and values, for every
        control step.

        Several draws of noise share one pass of the language model, which costs more than all of
        them; `hidden` where `perceive` has run.
        """
        seen = self.perceive(observation) if hidden is None else hidden
        context = self._context(seen, observation)
        clean = self.normalizer.encode(actions)[:, None]
        shape = (len(actions), self.settings.samples)
        noise = torch.randn(*shape, *clean.shape[2:], device=clean.device)
        time = self.process.draw_times(shape, clean.device)
        noised, target = self.process.corrupt(clean, noise, time)
        prediction, _ = self._predict(noised, time, context)
        terms = (prediction - target).square().mean((1, 3))
        if self.writer is None or hidden is not None:
            return terms, action_mask
        return terms + self.settings.token_weight * self._token_loss(
            seen, observation, actions, action_mask
        ), action_mask

    def _token_loss(
        self,
        seen: Float[Tensor, "B T D"],
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
    ) -> Float[Tensor, "B 1"]:
        """Cross-entropy of a chunk's compressed tokens, a mean over them, whose gradient does reach
        the model; 0 where not all of the chunk is to be imitated.
        """
        assert self.writer is not None
        assert self.code is not None
        ids, there = self.code.encode(actions)
        read = read_by(self.model, self.readout, seen, observation)
        logprobs, _ = written_scores(self.writer, self.model, read, ids, there, 1.0)
        return -(logprobs.sum(1) / there.sum(1) * action_mask.all(1))[:, None]

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from here."""
        return self._values(self._context(self.perceive(observation), observation))

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def freeze_prefix(self) -> None:
        """Stop training what the prefix depends on; traces carry the prefix from now on."""
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True

    def freeze_model(self) -> None:
        """Stop training all but the expert and its readers. Traces carry the prefix: keys and
        values would take ten times as much.
        """
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached_prefix = True

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """What `perceive` depends on."""
        yield from self.model.parameters()
        yield self.readout.queries
