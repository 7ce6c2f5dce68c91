"""Tickets: notes about broken things, to be turned into a fixed form: the example of a task of one's own."""

import random
from itertools import product

KNOWN = "lamp clock chair window mirror kettle radio drawer carpet fan bell hose".split()
NEW = "table door bottle ladder basket camera".split()  # things that no training row names
PLACES = "kitchen garden office cellar hall garage attic library".split()
STATES = "broken missing dirty loose wet burnt cracked noisy".split()
FORMS = """The {0} in the {1} is {2}.
In the {1} the {0} is {2}.
I found that the {0} is {2}. It is in the {1}.
Please come to the {1}: a {2} {0}.
Somebody told me of a {2} {0} in the {1}.
{2} {0}, {1}.""".splitlines()


def ticket(thing: str, place: str, state: str, form: str) -> dict:
    prompt = form.format(thing, place, state)
    answer = f"item: {thing}; place: {place}; state: {state}"
    return {"prompt": f"Ticket: {prompt}", "answer": answer, "kind": "known" if thing in KNOWN else "new"}


def build(seed: int = 0) -> tuple[list[dict], list[dict]]:
    """(400 rows to learn from, 120 to test on): no combination of facts in both, half of the test on new things."""
    rng = random.Random(seed)
    known, new = (list(product(things, PLACES, STATES)) for things in (KNOWN, NEW))
    rng.shuffle(known)
    test = known[:60] + rng.sample(new, 60)
    return tuple([ticket(*facts, rng.choice(FORMS)) for facts in drawn] for drawn in (known[60:460], test))
