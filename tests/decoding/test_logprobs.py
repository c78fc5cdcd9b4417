import math

import torch

from vla.decoding.logprobs import chosen_logprobs, token_logprobs
from vla.decoding.sampling import Sampling, pack_support, shape_logits


def test_by_hand():
    # p = [.5, .25, .25]: log .25 = -1.3863, H = .5 ln 2 + 2 (.25 ln 4) = 1.0397
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0
    logprobs, entropy = chosen_logprobs(logits, torch.tensor([1]))
    torch.testing.assert_close(logprobs, torch.tensor([math.log(0.25)]))
    torch.testing.assert_close(entropy, torch.tensor([1.5 * math.log(2)]))


def test_gradient_is_that_of_autograd_with_and_without_removed_tokens():
    torch.manual_seed(0)
    for top_k in (0, 3):
        logits = shape_logits(torch.randn(5, 7, dtype=torch.double), Sampling(top_k=top_k)).double().requires_grad_()
        targets = logits.detach().argmax(-1)
        weights = torch.randn(2, 5, dtype=torch.double)
        logprobs, entropy = chosen_logprobs(logits, targets)
        (grad,) = torch.autograd.grad((weights[0] * logprobs + weights[1] * entropy).sum(), logits)
        every = logits.log_softmax(-1)
        finite = every.masked_fill(every == -math.inf, 0.0)
        naive = weights[0] * every.gather(1, targets[:, None])[:, 0] - weights[1] * (every.exp() * finite).sum(-1)
        (expected,) = torch.autograd.grad(naive.sum(), logits)
        torch.testing.assert_close(grad, expected.nan_to_num(0.0))


def test_chunks_change_neither_values_nor_gradients():
    torch.manual_seed(1)
    head, hidden, targets = torch.nn.Linear(6, 11), torch.randn(23, 6), torch.randint(11, (23,))
    support = pack_support(shape_logits(head(hidden), Sampling(temperature=0.7, top_k=11)))
    results = []
    for max_bytes in (2**20, 4 * 11 * 5, 1):  # one chunk, chunks of 5 rows, chunks of 1 row
        rows = hidden.clone().requires_grad_()
        head.zero_grad()
        logprobs, entropy = token_logprobs(head, rows, targets, 0.7, support, max_bytes)
        (logprobs.sum() + entropy.square().sum()).backward()
        results.append(
            (logprobs.detach(), entropy.detach(), rows.grad, head.weight.grad.clone(), head.bias.grad.clone())
        )
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_temperature_and_support_are_those_of_the_draw():
    torch.manual_seed(2)
    head, hidden = torch.nn.Linear(6, 20), torch.randn(9, 6)
    sampling = Sampling(temperature=1.7, top_k=6, top_p=0.8)
    shaped = shape_logits(head(hidden), sampling)
    targets = shaped.argmax(-1)
    logprobs, _ = token_logprobs(head, hidden, targets, sampling.temperature, pack_support(shaped))
    torch.testing.assert_close(logprobs, shaped.log_softmax(-1).gather(1, targets[:, None])[:, 0])
