"""The policy of a robot: a vision-language model, an action head, and a critic.

`VlaPolicy` owns perception, freezing, the content of traces, guidance, values, and further draws
from one state. The head (`head.py`) owns the distribution of actions.

Shapes: `B` decisions, `H` control steps a chunk, `A` action dimensions, `L` draws a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.data.advantage_tokens import without_advantage_token
from vla.devices import autocast, to_device
from vla.models.heads import ValueHead
from vla.models.vlm import VisionLanguageModel
from vla.policies.adapter import NoiseAdapter, ResidualAdapter
from vla.policies.head import CountingHead, Draws, Head, HeadInput, unique_consecutive_rows
from vla.types import ActionScores, Decision, Observation, Trace, map_rows

C = TypeVar("C")


def on_device[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """A method of a policy that first moves its tensors to the policy's device, in one copy, and
    computes with the policy's precision."""

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> R:
        policy: Any = args[0]
        model = policy.model
        moved, moved_options = to_device((args[1:], options), model.device)
        with autocast(model.device, model.autocast):
            return method(policy, *moved, **moved_options)

    return call


HEAD = "head."
TRACE_KEYS = {"perceived": "hidden", "prefix": "prefix"}
"""The trace key of each kind of stored computation."""


class VlaPolicy(nn.Module, Generic[C]):
    """A vision-language model (`model`) with an action `head` and a `value_head`.

    With a `guidance` other than 1, predictions are extrapolated from those without the advantage
    label (`HeadInput.guide`), when acting and when scoring. `cached` is the computation that traces
    store; freezing a part sets it. With an `adapter` the draws are the adapter's, and model and
    head stay as they are in RL.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        head: Head[C],
        detach_critic: bool,
        adapter: NoiseAdapter | ResidualAdapter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.value_head = ValueHead(model.width, detach_critic)
        self.adapter = adapter
        self.guidance = 1.0
        self.cached: Literal["nothing", "prefix", "perceived"] = "nothing"

    @property
    def chunk(self) -> int:
        return self.head.chunk

    @property
    def num_draws(self) -> int:
        return self.head.num_draws if self.adapter is None else self.adapter.num_draws

    @property
    def temperature(self) -> float:
        return self.head.temperature if self.adapter is None else 1.0

    @property
    def can_train_head(self) -> bool:
        """True if the head can train on stored outputs of `perceive`."""
        return self.head.cache is not None

    @property
    def can_redraw(self) -> bool:
        """True if traces hold all that `redraw` needs."""
        redraws_alone = self.adapter is not None and self.adapter.redraws_alone
        return redraws_alone or self.cached == self.head.cache

    @on_device
    def perceive(self, observation: Observation, trace: Trace | None = None) -> Tensor:
        """The head's input from the model; parts stored in the trace are not computed again."""
        stored = trace or {}
        if "hidden" in stored:
            return stored["hidden"]
        # Rows of a stored trace often share a state: comparing them costs less than recomputing.
        dedup = "prefix" in stored
        prefix = stored["prefix"] if dedup else self.model.prefix(observation)
        return self.head.perceive(self.model, prefix, observation, dedup)

    def head_input(
        self,
        perceived: Tensor,
        observation: Observation,
        *,
        guided: bool = True,
        rows: Int[Tensor, "B"] | None = None,
        repeats: int = 1,
    ) -> HeadInput[C]:
        """Input of the head's decisions.

        `rows` and `repeats` are those of `HeadInput`. `guided=False` omits the unlabelled context.
        """
        context = self.head.interpret(self.model, perceived, observation)
        unlabelled = None
        # `perceive` masks the label out, so guidance repeats the interpretation alone.
        if guided and self.guidance != 1:
            unlabelled = self.head.interpret(
                self.model, perceived, without_advantage_token(observation)
            )
        return HeadInput(self.model, context, unlabelled, self.guidance, rows, repeats)

    @torch.no_grad()
    @on_device
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Draw a chunk of actions [B, H, A] (physical units) for every row."""
        prefix = self.model.prefix(observation)
        perceived = self.perceive(observation, {"prefix": prefix})
        inputs = self.head_input(perceived, observation)
        stored = {"nothing": {}, "prefix": {"prefix": prefix}, "perceived": {"hidden": perceived}}
        return self._decide(inputs, self._draw(inputs, observation, greedy), stored[self.cached])

    def _draw(self, inputs: HeadInput[C], observation: Observation, greedy: bool) -> Draws:
        if self.adapter is None:
            return self.head.draw(inputs, greedy)
        return self.adapter.draw(self.head, inputs, observation, greedy)

    @torch.no_grad()
    @on_device
    def redraw(self, observation: Observation, trace: Trace, count: int) -> Decision:
        """`count` further decisions for every row, from its trace; those of a row are adjacent."""
        if isinstance(self.adapter, ResidualAdapter):
            draws = self.adapter.draw_again(trace, count)
            return self._decision(draws, self.value_head(draws.summary), {})
        perceived = self.perceive(observation, trace)
        rows = torch.arange(len(perceived), device=perceived.device).repeat_interleave(count)
        if self.head.one_prediction:
            # One context a state; its decisions differ in the draw alone.
            inputs = self.head_input(perceived, observation, rows=rows, repeats=count)
        else:
            again = map_rows(observation, lambda tensor: tensor[rows])
            inputs = self.head_input(perceived[rows], again, repeats=count)
        if self.adapter is not None:
            # Scores of an adapter need no perception: the traces of these draws stay small.
            again = map_rows(observation, lambda tensor: tensor[rows])
            return self._decide(inputs, self._draw(inputs, again, greedy=False), {})
        stored = {key: trace[key][rows] for key in TRACE_KEYS.values() if key in trace}
        return self._decide(inputs, self.head.draw(inputs, greedy=False), stored)

    def _decide(self, inputs: HeadInput[C], draws: Draws, stored: Trace) -> Decision:
        values = inputs.expand_to_decisions(self.value_head(draws.summary))
        return self._decision(draws, values, stored)

    def _decision(self, draws: Draws, values: Float[Tensor, "B"], stored: Trace) -> Decision:
        return Decision(
            action=draws.action,
            trace=draws.trace | dict(stored),
            logprobs=draws.logprobs,
            mask=draws.mask,
            values=values,
            exact=self.adapter is not None or self.head.exact,
        )

    @on_device
    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Log-probabilities [B, L], entropies [B, L] and values [B] of stored draws under the
        present weights."""
        if self.adapter is not None:
            scores = self.adapter.score(trace)
            return ActionScores(scores.logprobs, scores.entropy, self.value_head(scores.summary))
        perceived = self.perceive(observation, trace)
        rows = None
        if self.head.one_prediction:
            # Images are perceived already, and copying them would cost more than the head.
            first, rows = unique_consecutive_rows(perceived, observation)
            perceived = perceived[first]
            observation = map_rows(replace(observation, images={}), lambda tensor: tensor[first])
        inputs = self.head_input(perceived, observation, rows=rows)
        scores = self.head.score(inputs, trace)
        values = inputs.expand_to_decisions(self.value_head(scores.summary))
        return ActionScores(scores.logprobs, scores.entropy, values)

    @on_device
    def imitation_terms(
        self,
        observation: Observation,
        actions: Float[Tensor, "B H A"],
        action_mask: Bool[Tensor, "B H"],
        hidden: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B _"], Bool[Tensor, "B _"]]:
        """Terms of the supervised loss and their mask; `hidden` is a stored output of
        `perceive`."""
        perceived = self.perceive(observation) if hidden is None else hidden
        return self.head.imitation_terms(
            self.model, perceived, observation, actions, action_mask, trains_model=hidden is None
        )

    def count_terms(
        self, actions: Float[Tensor, "B H A"], action_mask: Bool[Tensor, "B H"]
    ) -> Int[Tensor, "B"]:
        """Weight of each row in the masked mean of `imitation_terms`, up to a common factor."""
        if isinstance(self.head, CountingHead):
            return self.head.count_terms(actions, action_mask)
        return action_mask.sum(1)

    @torch.no_grad()
    @on_device
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate of the return from the observed state."""
        inputs = self.head_input(self.perceive(observation), observation, guided=False)
        return self.value_head(self.head.summarize(inputs))

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that only the critic uses."""
        return self.value_head.parameters()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **options: Any) -> Any:  # type: ignore[override]
        """Load weights of this or an earlier version (`rename_weights`)."""
        return super().load_state_dict(rename_weights(self.state_dict(), state_dict), **options)

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `perceive` uses: the model, and the head's queries."""
        yield from self.model.parameters()
        yield from self.head.perception_parameters()

    def freeze_prefix(self) -> None:
        """Freeze the parameters of the prefix; traces store the prefix from now on."""
        for parameter in self.model.prefix_parameters():
            parameter.requires_grad_(False)
        self.cached = "prefix"

    def freeze_model(self) -> None:
        """Freeze the parameters that `perceive` uses; traces store the input of the head.

        Raises:
            ValueError: the head runs the language model for every draw.
        """
        if self.head.cache is None:
            raise ValueError(
                "the head of this policy runs the language model for every draw, so the model "
                "cannot be frozen apart from it: choose rl.adapt=backbone (or, with "
                "policy=token, policy.decoding=parallel)"
            )
        for parameter in self.model_parameters():
            parameter.requires_grad_(False)
        self.cached = self.head.cache

    def freeze_for_adapter(self) -> None:
        """Freeze model and head, which leaves the adapter and the critic; traces store what a
        further draw needs."""
        assert self.adapter is not None
        for part in (self.model, self.head):
            part.requires_grad_(False)  # type: ignore[attr-defined]
        self.cached = "nothing" if self.adapter.redraws_alone else self.head.cache or "nothing"


def rename_weights(names: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of a policy's state dict.

    In checkpoints from before the head was a module of its own, its weights lack the prefix
    `head.`.
    """
    renamed = {}
    for name, tensor in weights.items():
        is_old = name not in names and HEAD + name in names
        renamed[HEAD + name if is_old else name] = tensor
    return renamed
