"""How much of the prompts a call reads."""

import itertools

from doge_export.runtime.scheduling.pieces import PromptBudget


def test_prompts_share_what_a_call_can_bear() -> None:
    budget = PromptBudget()
    assert budget.shared({0: 1000}, decoding=False) == {0: 512}
    assert budget.shared({0: 1000, 1: 10, 2: 20}, decoding=True) == {1: 10, 2: 20, 0: 98}
    budget.took(0, 3, 1, seconds=0.01)
    for _ in range(50):
        budget.took(100, 3, 1, seconds=1.0)
    assert budget.shared({0: 1000}, decoding=True) == {0: 64}
    for _ in range(50):
        budget.took(100, 3, 1, seconds=0.001)
    assert budget.shared({0: 1000, 1: 1000}, decoding=True) == {0: 256, 1: 256}


def test_what_is_slow_with_the_least_too_reads_more() -> None:
    """A busy processor: fewer tokens a call would make fewer a second and nothing else."""
    budget = PromptBudget()
    for _ in range(300):
        (count,) = budget.shared({0: 1000}, decoding=True).values()
        budget.took(count, 3, 1, seconds=0.1 + 0.0001 * count)
    assert budget.shared({0: 1000}, decoding=True)[0] > 400


def test_many_prompts_are_read_a_piece_each_in_turn() -> None:
    budget, left = PromptBudget(), dict.fromkeys(range(20), 90) | {20: 900}
    read: list[int] = []
    while left:
        parts = budget.shared(left, decoding=True)
        assert sum(parts.values()) <= 128
        assert sum(count < min(32, left[row]) for row, count in parts.items()) <= 1  # what is left, for one
        read += parts
        left = {row: count - parts.get(row, 0) for row, count in left.items() if count > parts.get(row, 0)}
    for row in range(21):
        times = [at for at, each in enumerate(read) if each == row]
        for earlier, later in itertools.pairwise(times):
            between = read[earlier + 1 : later]  # nobody has three turns before a row has its next one
            assert all(between.count(other) <= 2 for other in between)
