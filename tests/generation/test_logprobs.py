import math

import torch

from vla.generation.logprobs import chosen_logprobs, token_logprobs
from vla.generation.sampling import Sampling, pack_support, shape_logits


def test_by_hand():
    # p = [.5, .25, .25]: log .25 = -1.3863, H = .5 ln 2 + 2 (.25 ln 4) = 1.0397
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0
    logprobs, entropy = chosen_logprobs(logits, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(logprobs, torch.tensor([math.log(0.25)]))
    torch.testing.assert_close(entropy, torch.tensor([1.5 * math.log(2)]))


def test_gradient_is_that_of_autograd_with_and_without_removed_tokens():
    torch.manual_seed(0)
    for top_k in (0, 3):
        logits = (
            shape_logits(torch.randn(5, 7, dtype=torch.double), Sampling(top_k=top_k))
            .double()
            .requires_grad_()
        )
        rows = torch.tensor(
            [0, 1, 2, 3, 4, 2, 2]
        )  # three draws from row 2, two of them the same token
        targets = logits.detach().topk(2).indices[rows, torch.tensor([0, 0, 0, 0, 0, 1, 1])]
        weights, of_entropy = torch.randn(7, dtype=torch.double), torch.randn(5, dtype=torch.double)
        logprobs, entropy = chosen_logprobs(logits, rows, targets)
        (grad,) = torch.autograd.grad(
            (weights * logprobs).sum() + (of_entropy * entropy).sum(), logits
        )
        every = logits.log_softmax(-1)
        finite = every.masked_fill(every == -math.inf, 0.0)
        naive = (weights * every[rows, targets]).sum() - (
            of_entropy * (every.exp() * finite).sum(-1)
        ).sum()
        (expected,) = torch.autograd.grad(naive, logits)
        torch.testing.assert_close(grad, expected.nan_to_num(0.0))
        (grad,) = torch.autograd.grad(chosen_logprobs(logits, rows, targets)[0] @ weights, logits)
        (expected,) = torch.autograd.grad(logits.log_softmax(-1)[rows, targets] @ weights, logits)
        torch.testing.assert_close(grad, expected.nan_to_num(0.0))


def test_chunks_change_neither_values_nor_gradients():
    torch.manual_seed(1)
    head, hidden, targets = torch.nn.Linear(6, 11), torch.randn(23, 6), torch.randint(11, (23,))
    slots = torch.arange(23) % 20  # three draws share a slot with another
    support = pack_support(shape_logits(head(hidden[slots]), Sampling(temperature=0.7, top_k=11)))
    results = []
    cases = [(size, kept) for kept in (support, None) for size in (2**20, 4 * 11 * 5, 1)]
    for max_bytes, kept in cases:  # one chunk, chunks of 5 rows, chunks of 1 row
        rows = hidden.clone().requires_grad_()
        head.zero_grad()
        logprobs, entropy = token_logprobs(head, rows, slots, targets, 0.7, kept, max_bytes)
        (logprobs.sum() + entropy.square().sum()).backward()
        results.append(
            (
                logprobs.detach(),
                entropy.detach(),
                rows.grad,
                head.weight.grad.clone(),
                head.bias.grad.clone(),
            )
        )
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_temperature_and_support_are_those_of_the_draw():
    torch.manual_seed(2)
    head, hidden = torch.nn.Linear(6, 20), torch.randn(9, 6)
    sampling = Sampling(temperature=1.7, top_k=6, top_p=0.8)
    shaped = shape_logits(head(hidden), sampling)
    targets = shaped.argmax(-1)
    logprobs, _ = token_logprobs(
        head, hidden, torch.arange(9), targets, sampling.temperature, pack_support(shaped)
    )
    torch.testing.assert_close(logprobs, shaped.log_softmax(-1).gather(1, targets[:, None])[:, 0])
