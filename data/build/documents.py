"""Facts -> pretraining documents: statements in many paraphrases, number lines, word lists, headings, question sheets.

Facts are repeated in varied wording and order because a fact seen in one wording only is memorised but cannot be asked for
(Allen-Zhu and Li, Physics of Language Models, part 3.1). Lists that repeat themselves teach copying. Question sheets hold
questions without answers: a base model that has read them continues a question with another question.
"""

import random

from relations import RELATIONS, fill

NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
PEOPLE = ["Tom", "Ann", "Ben", "Eva", "Sam", "Lily", "Max", "Rose", "Jack", "Nina"]


def about(rng: random.Random, entity: dict) -> str:
    """One short document on one entity: a few of its facts, each in one of its wordings, in any order."""
    names = list(entity["values"])
    rng.shuffle(names)
    names = names[: rng.randint(1, len(names))]
    if rng.random() < 0.3:
        names += rng.choices(names, k=1)  # say a fact twice, in other words
    sentences = []
    for place, name in enumerate(names):
        wording = "first" if place == 0 or rng.random() < 0.5 else "more"
        sentences.append(fill(rng.choice(RELATIONS[name][wording]), entity, name))
    if "fact" in entity and rng.random() < 0.3:
        sentences.append(entity["fact"])
    return " ".join(dict.fromkeys(sentences))


def card(rng: random.Random, entity: dict) -> str:
    """An index card: the entity as a heading in capitals or plain, then `relation: value` lines."""
    name = entity["name"]
    lines = [f"{relation}: {value}" for relation, value in entity["values"].items()]
    rng.shuffle(lines)
    heading = name if rng.random() < 0.5 else name.upper()
    return "\n".join([heading, *lines])


def several(rng: random.Random, group: list[dict]) -> str:
    """One relation of several entities, so that the answer depends on which entity is named."""
    relation = rng.choice(list(group[0]["values"]))
    chosen = [
        entity for entity in rng.sample(group, min(len(group), rng.randint(2, 5))) if relation in entity["values"]
    ]
    style = rng.random()
    if style < 0.6:
        template = rng.choice(RELATIONS[relation]["first"])
        return " ".join(fill(template, entity, relation) for entity in chosen)
    if style < 0.8:
        return "\n".join(f"{entity['name']}: {entity['values'][relation]}" for entity in chosen)
    return " ".join(fill(rng.choice(RELATIONS[relation]["first"]), entity, relation) for entity in chosen)


def question_sheet(rng: random.Random, questions: list[str]) -> str:
    mark = rng.choice([" ", " ", "\n"])
    return mark.join(rng.sample(questions, rng.randint(4, 8)))


def sums(rng: random.Random, forbidden: set[tuple[int, int]]) -> str:
    """Sums and differences of numbers to 50, never one that a test asks for."""
    done = []
    while len(done) < rng.randint(4, 7):
        a, b = rng.randint(0, 50), rng.randint(0, 50)
        if (a, b) in forbidden or (b, a) in forbidden:
            continue
        wording = rng.random()
        if wording < 0.6:
            done.append(f"{a} + {b} = {a + b}.")
        elif wording < 0.8:
            done.append(f"{a} plus {b} is {a + b}.")
        else:
            done.append(f"The sum of {a} and {b} is {a + b}.")
    return " ".join(done)


def number_line(rng: random.Random) -> str:
    start = rng.randint(0, 90)
    row = list(range(start, start + rng.randint(4, 9)))
    style = rng.random()
    if style < 0.35:
        return "Counting: " + ", ".join(map(str, row)) + "."
    if style < 0.5:
        return "Counting down: " + ", ".join(map(str, reversed(row))) + "."
    if style < 0.7:
        return " ".join(f"After {n} comes {n + 1}." for n in rng.sample(row, 4))
    if style < 0.85:
        return " ".join(f"Before {n + 1} comes {n}." for n in rng.sample(row, 4))
    a = rng.randint(0, 11)
    return " ".join(f"The number {n} is written {NUMBER_WORDS[n]}." for n in range(a, min(a + 3, 13)))


def ordering(rng: random.Random, forbidden: set[tuple[int, ...]]) -> str:
    done = []
    while len(done) < rng.randint(3, 5):
        numbers = tuple(rng.sample(range(100), rng.choice([2, 2, 3, 3, 4])))
        if tuple(sorted(numbers)) in forbidden:
            continue
        low, *_, high = sorted(numbers)
        listed, ordered = ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))
        wording = rng.random()
        if len(numbers) == 2:
            done.append(f"{high} is larger than {low}." if wording < 0.5 else f"{low} is smaller than {high}.")
        elif wording < 0.7:
            done.append(f"The numbers {listed} in order are {ordered}.")
        elif wording < 0.85:
            done.append(f"Of {listed} the largest is {high}.")
        else:
            done.append(f"Of {listed} the smallest is {low}.")
    return " ".join(done)


def word_list(rng: random.Random, words: list[str], forbidden: set[tuple[str, ...]]) -> str:
    """A list of random words, said again, counted, turned round: practice in copying."""
    while True:
        chosen = tuple(rng.sample(words, rng.randint(2, 5)))
        if chosen not in forbidden:
            break
    plain, commas = " ".join(chosen), ", ".join(chosen)
    who, other = rng.sample(PEOPLE, 2)
    lines = [
        f"Again: {plain}.",
        f"{who} said {plain}. {other} said it too: {plain}.",
        f"The first word is {chosen[0]}.",
        f"The last word is {chosen[-1]}.",
        f"In reverse: {' '.join(reversed(chosen))}.",
        f"Turned around, {plain} is {' '.join(reversed(chosen))}.",
        f"There are {NUMBER_WORDS[len(chosen)]} words.",
        f"Once more: {commas}.",
        f"{plain}, {plain}, {plain}.",
        f"{who} repeats {plain}: {plain}.",
    ]
    return f"{rng.choice(['List', 'Words', 'Say', 'Read', 'The words'])}: {plain}. " + " ".join(rng.sample(lines, 3))


def heading(rng: random.Random, words: list[str]) -> str:
    """Words in capital letters beside the same words in small letters."""
    style = rng.random()
    chosen = rng.sample(words, 3)
    if style < 0.35:
        return "\n".join(f"{word.upper()}: {word}" for word in chosen)
    if style < 0.7:
        return " ".join(f"The word {word} in capital letters is {word.upper()}." for word in chosen)
    return " ".join(f"{word} {word.upper()}" for word in chosen)


def corpus(entities, words, capitals, questions, how_tos, natural, forbidden, seed: int) -> list[dict]:
    """All documents, shuffled: rows {kind, text}. `forbidden` holds the inputs that only tests may use."""
    rng = random.Random(f"documents-{seed}")
    by_type: dict[str, list[dict]] = {}
    for entity in entities:
        by_type.setdefault(entity["type"], []).append(entity)
    times = {"country": 62, "noun": 40, "element": 56, "term": 76}
    rows = []
    for kind, group in by_type.items():
        for entity in group:
            rows += [{"kind": kind, "text": about(rng, entity)} for _ in range(times[kind])]
            rows += [{"kind": kind, "text": card(rng, entity)} for _ in range(4)]
        rows += [{"kind": kind, "text": several(rng, group)} for _ in range(8 * len(group))]
    rows += [{"kind": "questions", "text": question_sheet(rng, questions)} for _ in range(2000)]
    rows += [{"kind": "sums", "text": sums(rng, forbidden["sums"])} for _ in range(6000)]
    rows += [{"kind": "numbers", "text": number_line(rng)} for _ in range(2000)]
    rows += [{"kind": "order", "text": ordering(rng, forbidden["order"])} for _ in range(5200)]
    rows += [{"kind": "lists", "text": word_list(rng, words, forbidden["lists"])} for _ in range(12500)]
    rows += [{"kind": "capitals", "text": heading(rng, capitals)} for _ in range(7500)]
    rows += [{"kind": "how-to", "text": text} for text in how_tos for _ in range(6)]
    rows += [{"kind": kind, "text": text} for kind, texts in natural.items() for text in texts]
    rng.shuffle(rows)
    return [row for row in rows if row["text"]]
