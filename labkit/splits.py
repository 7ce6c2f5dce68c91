"""What of one's own rows is held out: whole groups that share a question or an answer, so that nothing is told twice.

A row of the training set that asks a held-out question in other words, or gives its answer, would let the model
remember where it is to understand. Rows are linked by equal texts, however they are cased and punctuated; by answers
only where these have five words at least, for "yes" answers many questions.
"""

from collections.abc import Iterable, Sequence

from labkit.errors import DataError

WORDS = 5  # an answer of fewer links no rows


def linked(keys: Sequence[Iterable[str]]) -> list[int]:
    """The group of each row, numbered by first appearance: rows with a key in common, directly or by others."""
    above = list(range(len(keys)))

    def root(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    first: dict[str, int] = {}
    for place, own in enumerate(keys):
        for key in own:
            above[root(place)] = root(first.setdefault(key, place))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(place), len(numbers)) for place in range(len(keys))]


def hold_out(keys: Sequence[Sequence[str]], *weaker: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """(places to train on, places held out) of rows with these keys.

    Of 800 groups and more every hundredth is held out, of fewer about eight, of few every tenth. Groups of more than a
    tenth of the rows stay in training, or of more than half where all are larger than that. Where nothing can be held
    out so, as where every row gives the same answer, the next of `weaker` keys are taken, and at last each row for
    itself. Raises DataError for one row.
    """
    if len(keys) < 2:
        raise DataError("too few rows to hold one out", got=len(keys), remedy="Give at least two.")
    for some in (keys, *weaker, [[str(place)] for place in range(len(keys))]):
        group = linked(some)
        size = [0] * (max(group) + 1)
        for one in group:
            size[one] += 1
        most = max(1, len(keys) // 10) if min(size) <= max(1, len(keys) // 10) else len(keys) // 2
        small = [one for one, rows in enumerate(size) if rows <= most]
        unseen = set(small[:: min(100, max(10, len(small) // 8))])
        if unseen and len(size) > 1:
            break
    train = [place for place, one in enumerate(group) if one not in unseen]
    return train, [place for place, one in enumerate(group) if one in unseen]
