"""A causal language model as a policy: one decision is a completion, one draw is a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.data.prefix_tree import PackedRows, pack_completions
from vla.finite_checks import check_finite
from vla.generation.activation_cache import ActivationCache
from vla.generation.beam import beam_search
from vla.generation.engine import Engine
from vla.generation.generate import Generation, generate, prefill
from vla.generation.hf_decoder import (
    check_model,
    disable_dropout,
    enable_tree_attention,
    evaluation_mode,
    hidden_states,
    output_head,
    plain_model,
    uses_full_attention,
)
from vla.generation.logprobs import token_logprobs
from vla.generation.sampling import Sampling
from vla.threads import SINGLE_THREAD, Threads
from vla.types import ActionScores, Decision, Observation, Trace, map_rows

NUM_CHECKED_ROWS = 4
"""Rows of another engine's draws whose log-probabilities are compared with the model's."""
MAX_ENGINE_GAP = 0.1
"""Mean difference of log-probabilities in nats a token, several times that of bfloat16."""


class TextPolicy(nn.Module):
    """Any causal LM of transformers (or peft around one) under the `Policy` protocol.

    `observation.tokens` is the prompt. The action is the completion, token ids [B, max_new_tokens],
    right-padded with `pad_id`. A completion without a stop token is cut after `max_new_tokens`: the
    limit is part of the task.

    Args:
        value_head: Add a critic on the model's hidden states, one value a draw, zero at the start.
            Values are None without it.
        share_prompts: Score rows with a common beginning as a tree of tokens, each distinct
            beginning once (exact, several times faster). Off for models with sliding windows.
        tree_attention: Compute attention along the paths of one tree, where the model allows it.
            Otherwise trees are bounded by `max_row_tokens`, because their mask is square.
        max_logits_bytes: Bound on float32 logits in memory at a time.
        autocast: Type of matrix products (bfloat16); weights keep theirs. None: that of the
            weights.
        engine: Draws tokens in place of `generate`.
        num_beams: Beams of greedy decoding; 1 takes the likeliest token each time.
        threads: Threads that draw, and may score, at once.

    Raises:
        ValueError: `max_new_tokens` below 1, no stop token, or logits that are not
            head(hidden states).
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        value_head: bool = False,
        share_prompts: bool = True,
        tree_attention: bool = True,
        max_row_tokens: int = 256,
        max_logits_bytes: int = 2**29,
        autocast: torch.dtype | None = None,
        engine: Engine | None = None,
        num_beams: int = 1,
        threads: Threads = SINGLE_THREAD,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) must be at least 1")
        if not stop_ids:
            raise ValueError(
                "stop_ids is empty, so no completion could end: give at least the end-of-turn "
                "token's id"
            )
        disable_dropout(model)
        check_model(model)
        self.model = model
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.share_prompts = share_prompts and uses_full_attention(model)
        self.tree_attention = tree_attention and self.share_prompts and enable_tree_attention(model)
        self.max_row_tokens = max_row_tokens
        self.max_logits_bytes = max_logits_bytes
        self.autocast = autocast
        self.engine = engine
        self.num_beams = num_beams
        self.threads = threads
        self.activation_cache: ActivationCache | None = None
        self.value_head: nn.Linear | None = None
        if value_head:
            self.value_head = nn.Linear(plain_model(model).config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(next(model.parameters()).device)

    @contextmanager
    def reuse_activations(self, max_bytes: int) -> Iterator[None]:
        """Within the block, `score` reuses activations of `act` until a weight changes.

        At most `max_bytes` are stored. Nothing is stored where the reuse would not be exact: with
        adapters, autocast, another engine or gradient checkpointing.
        """
        is_exact = (
            plain_model(self.model) is self.model and self.autocast is None and self.engine is None
        )
        checkpoints = any(
            getattr(part, "gradient_checkpointing", False) for part in self.model.modules()
        )
        if is_exact and self.share_prompts and not checkpoints:
            self.activation_cache = ActivationCache(self.model, max_bytes)
        try:
            yield
        finally:
            self.activation_cache = None

    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Complete every prompt. `action` and `trace["tokens"]` are the same token ids;
        `trace["mask"]` is the mask."""
        if greedy and self.num_beams > 1:
            return self._act_by_beams(observation)
        if self.engine is not None:
            return self._act_by(self.engine, observation, greedy)
        cache = None if greedy else self.activation_cache
        with (
            self._precision(),
            evaluation_mode(self.model),
            nullcontext() if cache is None else cache.record(),
        ):
            drawn = generate(
                self.model,
                observation.tokens,
                observation.token_mask,
                self.sampling,
                self.max_new_tokens,
                self.stop_ids,
                self.pad_id,
                greedy,
                None if self.value_head is None else self._values,
                cache,
                self.threads,
            )
        trace = {"tokens": drawn.tokens, "mask": drawn.mask}
        if drawn.support is not None:
            trace["support"] = drawn.support
        if drawn.places is not None:
            trace["places"] = drawn.places
        return Decision(drawn.tokens, trace, drawn.logprobs, drawn.mask, drawn.values)

    @torch.no_grad()
    def _act_by(self, engine: Engine, observation: Observation, greedy: bool) -> Decision:
        """Completions of another engine; the critic's values take a pass of the model."""
        drawn = engine(
            observation.tokens,
            observation.token_mask,
            self.sampling,
            self.max_new_tokens,
            self.stop_ids,
            self.pad_id,
            greedy,
        )
        check_finite("log-probabilities", drawn.logprobs)
        trace = {"tokens": drawn.tokens, "mask": drawn.mask}
        if not greedy:
            self._check_engine(observation, drawn)
        values = None if self.value_head is None else self.score(observation, trace).values
        return Decision(drawn.tokens, trace, drawn.logprobs, drawn.mask, values)

    def _check_engine(self, observation: Observation, drawn: Generation) -> None:
        """Compare the engine's log-probabilities with the model's on a few rows.

        Raises:
            ValueError: they differ by more than rounding.
        """
        rows = slice(NUM_CHECKED_ROWS)
        mask = drawn.mask[rows]
        trace = {"tokens": drawn.tokens[rows], "mask": mask}
        own = self.score(map_rows(observation, lambda part: part[rows]), trace).logprobs
        gap = float((own - drawn.logprobs[rows]).abs().sum() / mask.sum())
        if gap > MAX_ENGINE_GAP:
            raise ValueError(
                f"the log-probabilities of language_model.engine differ from the model's by "
                f"{gap:.3g} nats a token (rounding: below {MAX_ENGINE_GAP:g}). vllm must run with "
                "--logprobs-mode processed_logprobs, sglang without "
                "SGLANG_RETURN_ORIGINAL_LOGPROB, both without quantization; or the server holds "
                "another model"
            )

    @torch.no_grad()
    def _act_by_beams(self, observation: Observation) -> Decision:
        """The best hypothesis of every prompt."""
        limit = self.max_new_tokens
        with self._precision(), evaluation_mode(self.model):
            ranked = beam_search(
                self.model,
                observation.tokens,
                observation.token_mask,
                self.num_beams,
                limit,
                self.stop_ids,
            )
        best = [list(hypotheses[0].tokens) for hypotheses in ranked]
        tokens = torch.tensor(
            [ids + [self.pad_id] * (limit - len(ids)) for ids in best],
            device=observation.tokens.device,
        )
        sizes = torch.tensor([len(ids) for ids in best], device=tokens.device)
        trace = {
            "tokens": tokens,
            "mask": torch.arange(limit, device=tokens.device) < sizes[:, None],
        }
        scores = self.score(observation, trace)
        check_finite("log-probabilities", scores.logprobs)
        return Decision(tokens, trace, scores.logprobs, trace["mask"], scores.values)

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Log-probability, entropy and value of every draw in one pass; 0 where nothing was
        drawn."""
        mask = trace["mask"]
        with self._precision():
            hidden, slots = self._hidden_before_draws(observation, trace)
            logprobs, entropy = token_logprobs(
                output_head(self.model),
                hidden,
                slots,
                trace["tokens"][mask],
                self.sampling.temperature,
                trace["support"][mask] if "support" in trace else None,
                self.max_logits_bytes,
            )
        values = None if self.value_head is None else _spread(self._values(hidden[slots]), mask)
        return ActionScores(_spread(logprobs, mask), _spread(entropy, mask), values)

    @torch.no_grad()
    def value(self, observation: Observation) -> Float[Tensor, "B"]:
        """The critic's estimate before the first draw."""
        with self._precision(), evaluation_mode(self.model):
            prompts = prefill(
                self.model, observation.tokens, observation.token_mask, max_new_tokens=0
            )
        return self._values(prompts.hidden)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """The value head, which only the critic uses."""
        if self.value_head is not None:
            yield from self.value_head.parameters()

    def _hidden_before_draws(self, observation: Observation, trace: Trace) -> tuple[Tensor, Tensor]:
        """Hidden states [N, d], and for each draw the number of its hidden state [K].

        Draws are in the order of the mask's True entries.
        """
        rows = pack_completions(
            observation.tokens,
            observation.token_mask,
            trace["tokens"],
            trace["mask"],
            self.share_prompts,
            self.max_row_tokens,
            trace.get("places"),
            self.tree_attention,
        )
        with self._replayed(rows):
            hidden = hidden_states(self.model, rows.tokens, rows.positions, rows.attention)
        return hidden.flatten(0, 1), rows.slots

    def _replayed(self, rows: PackedRows) -> AbstractContextManager[None]:
        """A context that replays stored activations, if all that the rows need are stored."""
        if (
            self.activation_cache is None
            or rows.source is None
            or not self.activation_cache.covers(rows.source)
        ):
            return nullcontext()
        return self.activation_cache.replay(rows.source)

    def _values(self, hidden: Tensor) -> Tensor:
        assert self.value_head is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)

    def _precision(self) -> torch.autocast:
        device = next(self.parameters()).device.type
        return torch.autocast(device, self.autocast, enabled=self.autocast is not None)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values [K] at the True entries of `mask` [B, L], 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        mask, values
    )
