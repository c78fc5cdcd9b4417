"""Requests share a call of the policy; one that fails fails alone."""

import asyncio

import pytest

from vla.serve.batching import Batcher, Client, ServerBusy


def test_requests_that_arrive_together_share_a_call_and_more_than_may_wait_are_refused():
    sizes = []

    def infer(requests):
        sizes.append(len(requests))
        return [10 * request for request in requests]

    async def scenario():
        batcher = Batcher(infer, max_batch=3, wait_seconds=0.0, max_waiting=4)
        asked = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0)  # now all four wait
        with pytest.raises(ServerBusy, match="4 requests wait already"):
            await batcher.submit(99)
        serving = asyncio.create_task(batcher.run())
        answers = await asyncio.gather(*asked)
        serving.cancel()
        batcher.thread.shutdown()
        return answers, batcher.statistics.to_dict()

    answers, status = asyncio.run(scenario())
    assert [timed.answer for timed in answers] == [0, 10, 20, 30]
    assert [timed.batch_size for timed in answers] == [3, 3, 3, 1]
    assert sizes == [3, 1]
    assert (status["requests"], status["batches"], status["refused"], status["mean_batch"]) == (
        4,
        2,
        1,
        2.0,
    )


class Scenario:
    """A batcher that is asked for numbers; those in `wrong` make the whole call fail."""

    def __init__(self, wrong=()):
        self.calls = []

        def infer(requests):
            self.calls.append(list(requests))
            if any(request in wrong for request in requests):
                raise RuntimeError(f"cannot do {requests}")
            return [10 * request for request in requests]

        self.batcher = Batcher(infer, max_batch=4, wait_seconds=0.0, max_waiting=8)

    async def answers(self, *asked):
        """What is heard by (number, client), all asking at once."""
        waiting = [
            asyncio.create_task(self.batcher.submit(number, client)) for number, client in asked
        ]
        await asyncio.sleep(0)
        serving = asyncio.create_task(self.batcher.run())
        found = await asyncio.gather(*waiting, return_exceptions=True)
        serving.cancel()
        return [one if isinstance(one, Exception) else one.answer for one in found]

    def run(self, *rounds):
        async def whole():
            return [await self.answers(*asked) for asked in rounds]

        found = asyncio.run(whole())
        self.batcher.thread.shutdown()
        return found


def test_the_one_at_fault_fails_alone_and_its_words_reach_nobody_else():
    scenario = Scenario(wrong=(2,))
    ((first, second, third),) = scenario.run([(1, Client()), (2, Client()), (3, Client())])
    assert (first, third) == (10, 30)
    assert str(second) == "cannot do [2]"
    assert scenario.calls == [[1, 2, 3], [1], [2], [3]]
    assert scenario.batcher.statistics.failed == 1


def test_who_failed_shares_no_call_until_it_is_answered():
    scenario, good, bad = Scenario(wrong=(2,)), Client(), Client()
    scenario.run(
        [(1, good), (2, bad)], [(1, good), (2, bad), (1, good)], [(5, bad)], [(1, good), (3, bad)]
    )
    # After the first round 2 is asked alone; once its client has had an answer it shares again.
    assert scenario.calls == [[1, 2], [1], [2], [1, 1], [2], [5], [1, 3]]


def test_an_answer_that_is_an_exception_is_its_own_requests():
    batcher = Batcher(lambda requests: [ValueError("no"), *requests[1:]], 4, 0.0, 8)

    async def scenario():
        asked = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
        serving = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*asked, return_exceptions=True)
        serving.cancel()
        return found

    first, *others = asyncio.run(scenario())
    batcher.thread.shutdown()
    assert str(first) == "no"
    assert [one.answer for one in others] == [1, 2]


def test_too_few_answers_are_an_error_and_the_next_batch_is_served():
    replies = iter([[], [7]])
    batcher = Batcher(lambda requests: next(replies), 4, 0.0, 8)

    async def scenario():
        serving = asyncio.create_task(batcher.run())
        with pytest.raises(RuntimeError, match="0 answers to 1 requests"):
            await batcher.submit(1)
        answer = await batcher.submit(2)
        serving.cancel()
        return answer.answer

    assert asyncio.run(scenario()) == 7
    batcher.thread.shutdown()


def test_requests_of_clients_that_left_take_no_place_and_are_not_computed():
    scenario, gone = Scenario(), Client(has_left=True)
    (found,) = scenario.run([*((i, gone) for i in range(8)), (9, Client())])
    assert found[-1] == 90
    assert all(isinstance(one, ServerBusy) for one in found[:-1])
    assert scenario.calls == [[9]]


def test_giving_up_answers_everybody():
    async def scenario():
        batcher = Batcher(lambda requests: requests, 4, 0.0, 8)
        asked = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0)
        batcher.reject_pending()
        with pytest.raises(ServerBusy, match="the server stopped"):
            await asked
        await batcher.wait_until_idle()
        batcher.thread.shutdown()

    asyncio.run(scenario())
