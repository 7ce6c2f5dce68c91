"""The order of rows: full batches, rows of like length together, none learned more often than another."""

from collections import Counter

import pytest

from labkit.order import order


@pytest.mark.parametrize(("rows", "batch_size", "steps"), [(36, 8, 12), (9, 4, 6), (3, 8, 5), (1, 2, 3), (500, 4, 600)])
def test_full_batches_and_equal_shares(rows, batch_size, steps):
    lengths = [(7 * n) % 31 for n in range(rows)]
    found = order(lengths, batch_size, steps, seed=0)
    counts = Counter(found)
    assert len(found) == steps * batch_size and set(found) <= set(range(rows))
    assert max(counts.values()) - min(counts[n] for n in range(rows)) <= 1
    assert found == order(lengths, batch_size, steps, seed=0)
    assert rows < 3 or found != order(lengths, batch_size, steps, seed=1)


def test_fewer_steps_are_the_beginning_of_more():
    """A run that is stopped, or of fewer steps, has learned what a longer one begins with."""
    lengths = list(range(100))
    assert order(lengths, 8, 30, seed=3)[: 8 * 7] == order(lengths, 8, 7, seed=3)


def test_rows_of_like_length_share_a_batch_and_batches_come_in_any_order():
    lengths = [n % 100 for n in range(1600)]
    found = order(lengths, 8, 200, seed=0)
    batches = [[lengths[place] for place in found[start : start + 8]] for start in range(0, 1600, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / 200 < 5  # of 100 where rows are put together at random
    firsts = [max(batch) for batch in batches[:50]]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
