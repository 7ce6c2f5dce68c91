"""The order in which the rows of a training are learned: known before its first step, from the seed alone."""

import random
from collections.abc import Sequence

POOL = 50  # batches that are sorted by length together


def order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """The places of the rows that `steps` full batches hold, one batch after another: steps x batch_size numbers.

    lengths: one for each row, in any unit. Rows of like length are put into one batch, so that little is padded, and
    the batches of a pool are shuffled, so that no step's loss depends on where in the pool it stands. What is left over
    at the end of an epoch begins the next one: no batch is smaller than the others, and none is learned more often.
    """
    draw, places = random.Random(seed), []
    left_over: list[int] = []
    while len(places) < steps * batch_size:
        epoch = list(range(len(lengths)))
        draw.shuffle(epoch)
        epoch = left_over + epoch
        whole = len(epoch) // batch_size * batch_size
        for start in range(0, whole, POOL * batch_size):
            pool = sorted(epoch[start : min(start + POOL * batch_size, whole)], key=lambda place: lengths[place])
            batches = [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
            draw.shuffle(batches)
            places += [place for batch in batches for place in batch]
        left_over = epoch[whole:]
    return places[: steps * batch_size]
