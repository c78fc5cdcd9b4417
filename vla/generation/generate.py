"""Batched generation with a key-value cache: common beginnings are computed once, finished rows
leave the batch.

The rows of the cache are the distinct histories. The samples of a prompt share one until their
first different token, and a beginning of all prompts (a system message) is computed once for all.
Log-probabilities are those of the distribution of the draw. The uniform random numbers of the draws
are made beforehand, one a row and position, so a completion does not depend on which other rows
have finished.

Shapes: `B` rows, `N` rows of the cache, `n` prompt tokens, `m` slots of the cache, `s` tokens of a
pass, `L` new tokens, `d` width of the model, `V` vocabulary, `V8` bytes of a support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import Cache

from vla.finite_checks import check_distribution
from vla.generation.activation_cache import ActivationCache
from vla.generation.hf_decoder import hidden_states, make_cache, output_head, uses_full_attention
from vla.generation.sampling import Sampling, draw_from_rows, pack_support, shape_logits
from vla.threads import SINGLE_THREAD, Threads
from vla.types import concatenate_rows, map_rows

_COMPACT_BELOW = 0.9
"""Fraction of unfinished histories below which the finished ones are dropped: copying the cache
costs about a tenth of a pass.
"""


@dataclass(frozen=True)
class Generation:
    """Completions of `L` tokens a row, right-padded.

    `mask` is True for drawn tokens, the stop token included. `values` are the critic's estimates
    before each draw. With filters, `support` holds the tokens that they left (`pack_support`).
    `places` are the slots of prompt and completion tokens in the `ActivationCache`, -1 where none
    is.
    """

    tokens: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    logprobs: Float[Tensor, "B L"]
    values: Float[Tensor, "B L"] | None
    support: UInt8[Tensor, "B L V8"] | None
    places: Int[Tensor, "B nL"] | None = None


@dataclass(frozen=True)
class Prefix:
    """Prompts after a pass: the last hidden states, and the cache with a mask of its real tokens.

    Left-padded. `places` are slots of the activation cache: of the tokens of the last pass or,
    after a prefill, of all tokens.
    """

    hidden: Float[Tensor, "N d"]
    cache: Cache
    mask: Bool[Tensor, "N m"]
    lengths: Int[Tensor, "N"]
    places: Int[Tensor, "N s"] | None = None


def group_rows(
    tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B n"]
) -> tuple[Int[Tensor, "N"], Int[Tensor, "B"]]:
    """First row of each distinct prompt, and the number of the prompt of every row.

    Prompts are numbered in order of first appearance.
    """
    _, inverse = torch.unique(tokens.masked_fill(~mask, -1), dim=0, return_inverse=True)
    rows = torch.arange(len(tokens), device=tokens.device)
    first = torch.full((int(inverse.max()) + 1,), len(tokens), device=tokens.device).scatter_reduce(
        0, inverse, rows, "amin"
    )
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def left_pad(
    tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B n"]
) -> tuple[Int[Tensor, "B m"], Bool[Tensor, "B m"]]:
    """Move right-padding to the left, cut to the longest row, so that all rows end together."""
    longest = int(mask.sum(1).max())
    # A stable sort of the mask moves padding to the front and leaves tokens in order.
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.gather(1, order)[:, -longest:], mask.gather(1, order)[:, -longest:]


def prefill(
    model: nn.Module,
    tokens: Int[Tensor, "N n"],
    mask: Bool[Tensor, "N n"],
    max_new_tokens: int,
    activation_cache: ActivationCache | None = None,
) -> Prefix:
    """Run the model over right-padded prompts; the cache has room for `max_new_tokens` more.

    A common beginning of all prompts is computed in one row, which is then copied.
    """
    common = common_length(tokens, mask) if len(tokens) > 1 and uses_full_attention(model) else 0
    rest, rest_mask = left_pad(tokens[:, common:], mask[:, common:])
    cache = make_cache(model, common + rest.shape[1] + max_new_tokens)
    places = []
    if common:
        beginning = torch.arange(common, device=tokens.device)[None]
        if activation_cache is not None:
            places.append(
                activation_cache.assign_slots(1, common, tokens.device).expand(len(tokens), -1)
            )
        hidden_states(
            model,
            tokens[:1, :common],
            beginning,
            torch.ones_like(beginning, dtype=torch.bool),
            cache,
        )
        cache.batch_select_indices(torch.zeros(len(tokens), dtype=torch.long, device=tokens.device))
    positions = common + (rest_mask.cumsum(1) - 1).clamp(min=0)
    filled = torch.nn.functional.pad(rest_mask, (common, 0), value=True)
    if activation_cache is not None:
        places.append(activation_cache.assign_slots(*rest.shape, tokens.device))
    hidden = hidden_states(model, rest, positions, filled, cache)
    return Prefix(
        hidden[:, -1], cache, filled, mask.sum(1), torch.cat(places, 1) if places else None
    )


def common_length(tokens: Int[Tensor, "N n"], mask: Bool[Tensor, "N n"]) -> int:
    """Length of the common beginning of all prompts; each keeps at least one token of its own."""
    same = ((tokens == tokens[:1]) & mask).all(0).long().cumprod(0)
    return min(int(same.sum()), int(mask.sum(1).min()) - 1)


def select_rows(prefix: Prefix, rows: Int[Tensor, "B"]) -> Prefix:
    """The prefixes `rows`, repeats allowed.

    The cache changes in place: the old prefix must not be used again.
    """
    prefix.cache.batch_select_indices(rows)
    places = None if prefix.places is None else prefix.places[rows]
    return Prefix(
        prefix.hidden[rows], prefix.cache, prefix.mask[rows], prefix.lengths[rows], places
    )


def advance(
    model: nn.Module,
    prefix: Prefix,
    tokens: Int[Tensor, "B"],
    activation_cache: ActivationCache | None = None,
) -> Prefix:
    """Run the model over one more token in every row."""
    mask = torch.nn.functional.pad(prefix.mask, (0, 1), value=True)
    places = (
        None
        if activation_cache is None
        else activation_cache.assign_slots(len(tokens), 1, tokens.device)
    )
    hidden = hidden_states(model, tokens[:, None], prefix.lengths[:, None], mask, prefix.cache)
    return Prefix(hidden[:, -1], prefix.cache, mask, prefix.lengths + 1, places)


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Int[Tensor, "B n"],
    mask: Bool[Tensor, "B n"],
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    greedy: bool = False,
    value_head: Callable[[Tensor], Tensor] | None = None,
    activation_cache: ActivationCache | None = None,
    threads: Threads = SINGLE_THREAD,
) -> Generation:
    """Continue every right-padded prompt until a stop token or `max_new_tokens`.

    Greedy takes the likeliest token; its log-probabilities are still those of the distribution of
    `sampling`. `activation_cache` stores outputs of layers. `threads` share the prompts.
    """
    uniform = torch.rand(len(tokens), max_new_tokens).to(tokens.device)

    def some(rows: Tensor) -> Generation:
        return _generate(
            model,
            tokens[rows],
            mask[rows],
            uniform[rows],
            sampling,
            stop_ids,
            pad_id,
            greedy,
            value_head,
            activation_cache,
        )

    shares = split_into_shares(group_rows(tokens, mask)[1], threads.count)
    drawn = threads.map(some, shares)
    back = torch.cat(shares).argsort()
    return map_rows(concatenate_rows(drawn), lambda tensor: tensor[back])


def split_into_shares(prompt: Int[Tensor, "B"], count: int) -> list[Int[Tensor, "S"]]:
    """Row numbers in at most `count` shares of about equal size; rows of a prompt stay together."""
    ordered, rows = torch.sort(prompt, stable=True)
    starts = torch.cat(
        [
            torch.zeros(1, dtype=torch.long),
            (ordered[1:] != ordered[:-1]).nonzero().flatten().cpu() + 1,
        ]
    )
    even_cuts = torch.arange(1, count) * len(prompt) / count
    cuts = (
        torch.unique(starts[(starts[None] - even_cuts[:, None]).abs().argmin(1)])
        if count > 1
        else starts[:0]
    )
    return list(rows.tensor_split(cuts[cuts > 0].tolist()))


def _generate(
    model: nn.Module,
    tokens: Int[Tensor, "B n"],
    mask: Bool[Tensor, "B n"],
    uniform: Float[Tensor, "B L"],
    sampling: Sampling,
    stop_ids: Sequence[int],
    pad_id: int,
    greedy: bool,
    value_head: Callable[[Tensor], Tensor] | None,
    activation_cache: ActivationCache | None,
) -> Generation:
    max_new_tokens = uniform.shape[1]
    first, history = group_rows(tokens, mask)
    prefix = prefill(model, tokens[first], mask[first], max_new_tokens, activation_cache)
    head = output_head(model)
    stop = torch.tensor(list(stop_ids), device=tokens.device)
    out = empty_generation(
        len(tokens), max_new_tokens, pad_id, tokens.device, value_head is not None
    )
    places = _places_of_prompts(prefix, history, mask, max_new_tokens)
    support: list[Tensor] = []
    # Unfinished rows; `history` is the cache row of each.
    live = torch.arange(len(tokens), device=tokens.device)
    for t in range(max_new_tokens):
        logits = shape_logits(head(prefix.hidden), sampling)
        logprobs = logits.log_softmax(-1)
        check_distribution(logprobs)
        drawn = (
            logits.argmax(-1)[history]
            if greedy
            else draw_from_rows(logprobs.exp(), history, uniform[live, t])
        )
        out.tokens[live, t] = drawn
        out.mask[live, t] = True
        out.logprobs[live, t] = logprobs[history, drawn]
        if out.values is not None and value_head is not None:
            out.values[live, t] = value_head(prefix.hidden)[history]
        if sampling.filters:
            support.append(_scatter_rows(pack_support(logits)[history], live, len(tokens)))
        unfinished = ~torch.isin(drawn, stop)
        live = live[unfinished]
        history = history[unfinished]
        drawn = drawn[unfinished]
        if t + 1 == max_new_tokens or not len(live):
            break
        prefix, history, fed = fork_histories(prefix, history, drawn, logits.shape[1])
        prefix = advance(model, prefix, fed, activation_cache)
        if places is not None and prefix.places is not None:
            places[live, prefix.lengths[history] - 1] = prefix.places[history, 0]
    return Generation(
        out.tokens,
        out.mask,
        out.logprobs,
        out.values,
        _stack_support(support, max_new_tokens),
        places,
    )


def fork_histories(
    prefix: Prefix, history: Int[Tensor, "B"], drawn: Int[Tensor, "B"], vocab_size: int
) -> tuple[Prefix, Int[Tensor, "B"], Int[Tensor, "N"]]:
    """Give every distinct history after a draw a cache row of its own.

    The cache is copied only if histories diverge, or if many have ended.

    Returns:
        The cache rows, the cache row of each row [B], and the next token of each cache row [N].
    """
    count = len(prefix.hidden)
    # One number for each pair of cache row and token; sorted, so pairs of a cache row are adjacent.
    distinct, number = torch.unique(history * vocab_size + drawn, return_inverse=True)
    parents = distinct // vocab_size
    tokens = distinct % vocab_size
    diverged = bool((parents[1:] == parents[:-1]).any())
    if diverged or len(distinct) <= _COMPACT_BELOW * count:
        return select_rows(prefix, parents), number, tokens
    fed = torch.zeros(count, dtype=tokens.dtype, device=tokens.device).index_copy(
        0, parents, tokens
    )
    # Histories that have ended get token 0; no row uses their states any more.
    return prefix, history, fed


def empty_generation(
    rows: int, length: int, pad_id: int, device: torch.device, with_values: bool
) -> Generation:
    """A generation of padding alone, to be filled in."""
    return Generation(
        torch.full((rows, length), pad_id, device=device),
        torch.zeros(rows, length, dtype=torch.bool, device=device),
        torch.zeros(rows, length, device=device),
        torch.zeros(rows, length, device=device) if with_values else None,
        None,
    )


def _places_of_prompts(
    prefix: Prefix, history: Int[Tensor, "B"], mask: Bool[Tensor, "B n"], max_new_tokens: int
) -> Int[Tensor, "B nL"] | None:
    """Activation-cache slots of each row's prompt, then -1 for the new tokens."""
    if prefix.places is None:
        return None
    places = torch.full((len(mask), mask.shape[1] + max_new_tokens), -1, device=mask.device)
    prompts = torch.nn.functional.pad(mask, (0, max_new_tokens))
    return places.masked_scatter_(prompts, prefix.places[history][prefix.mask[history]])


def _scatter_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_copy(0, rows, values)


def _stack_support(support: list[Tensor], length: int) -> Tensor | None:
    if not support:
        return None
    stacked = torch.stack(support, dim=1)
    return torch.nn.functional.pad(stacked, (0, 0, 0, length - stacked.shape[1]))
