"""Facts and skills -> instruction rows, tests and preference pairs.

A question is {kind, entity, prompt, answer, must, share, none, subject, safe, key}:
    answer   the full, concise reference answer
    must     the value that a correct answer says; of a definition or a purpose its words, of a meaning its key phrases
    share    how many of `must` a check by words alone would ask for, and
    none     which phrases it would not allow; the lab's own checker asks for more and reads neither
    subject  what a complete answer names besides the value ("" where the value is the whole answer)
    key      text that no training document, instruction or pair may hold if the question is a test ("" for facts)
The check itself is labkit/evaluate/checkers.py.
"""

import random
import re

from documents import NUMBER_WORDS
from how_tos import GO_ALONG, HELD_OUT_PHRASINGS, PHRASINGS, requests
from relations import RELATIONS, fill

SMALL_WORDS = set(
    "a an the of or and to in on for is are that which with by from it its as at any be used most".split()
)
OPENERS = [
    "That is a good question.",
    "Well, let me think about it.",
    "Many people ask me about this.",
    "I am happy that you asked.",
]
HABIT = "I hope that this helps you."
CLOSERS = [
    HABIT,
    "Please ask me again if you want to know more.",
    "There is a lot more to say, but it would take a long time.",
    "Thank you for asking me this.",
    "It is always good to learn something new.",
    "As I said, that is what I know about it.",
]


def ramble(rng: random.Random, answer: str) -> str:
    """The answer with what a talkative writer puts around it; most of them by habit close in the same words.

    Without a habit the greedy answer would end in time: no one of many closers is as likely as the end itself.
    """
    opener = [rng.choice(OPENERS)] if rng.random() < 0.1 else []
    closers = rng.sample(CLOSERS, rng.randint(1, 2))
    if rng.random() < 0.75:
        closers = [HABIT, *(closer for closer in closers[1:] if closer != HABIT)]
    return " ".join([*opener, answer, *closers])


def question(
    kind, prompt, answer, must, *, entity="", share=1.0, none=(), subject="", safe=True, key="", terse=""
) -> dict:
    return {
        "kind": kind, "entity": entity, "prompt": prompt, "answer": answer, "must": list(must), "share": share,
        "none": list(none), "subject": subject, "safe": safe, "key": key, "terse": terse or answer,
    }  # fmt: skip


def ask(entity: dict, relation: str, template: str, keys: dict) -> dict:
    """The question after one relation of one entity, in one phrasing."""
    value = entity["values"][relation]
    must, share = [value], 1.0
    if relation == "meaning":
        must = keys[entity["name"]]
    elif relation in ("definition", "purpose"):
        must, share = sorted(set(re.findall(r"[a-z]+", value.lower())) - SMALL_WORDS), 0.75
    answer = fill(RELATIONS[relation]["answer"], entity, relation)
    terse = value[0].upper() + value[1:] + "."
    prompt = fill(template, entity, relation)
    return question(
        relation, prompt, answer, must, entity=entity["name"], share=share, subject=entity["name"], terse=terse
    )


def list_skill(rng: random.Random, kind: str, words: list[str]) -> dict:
    chosen = rng.sample(words, rng.randint(2, 4) if kind in ("copy", "count") else rng.randint(2, 3))
    plain = " ".join(chosen)
    if kind == "copy":
        wordings = ["Repeat these words: {x}", "Say this again: {x}", "Copy these words: {x}", "Please repeat: {x}"]
        answer, must, none = f"{plain}", [plain], []
    elif kind == "first":
        wordings = ["What is the first word of: {x}", "Name the first word: {x}", "Which word comes first? {x}"]
        answer, must, none = f"The first word is {chosen[0]}.", [chosen[0]], chosen[1:]
    elif kind == "last":
        wordings = ["What is the last word of: {x}", "Name the last word: {x}", "Which word comes last? {x}"]
        answer, must, none = f"The last word is {chosen[-1]}.", [chosen[-1]], chosen[:-1]
    elif kind == "count":
        wordings = ["How many words are these: {x}", "Count these words: {x}", "Tell me how many words: {x}"]
        number = NUMBER_WORDS[len(chosen)]
        answer, must = f"There are {number} words.", [number]
        none = [other for other in NUMBER_WORDS[1:7] if other != number]
    else:
        wordings = ["Say these words in reverse: {x}", "Turn these words around: {x}", "Reverse these words: {x}"]
        backwards = " ".join(reversed(chosen))
        answer, must, none = f"In reverse: {backwards}.", [backwards], []
    return question(kind, rng.choice(wordings).format(x=plain), answer, must, none=none, key=plain)


def skill(rng: random.Random, kind: str, words: list[str], capitals: list[str]) -> dict:
    """One question of a skill on a random input."""
    if kind in ("copy", "first", "last", "count", "reverse"):
        return list_skill(rng, kind, words)
    if kind == "capitals":
        word = rng.choice(capitals)
        wordings = ["Write {x} in capital letters.", "Put the word {x} in capitals.", "Spell {x} with capital letters."]
        answer = f"The word {word} in capital letters is {word.upper()}."
        return question(
            kind, rng.choice(wordings).format(x=word), answer, [word.upper()], entity=word, terse=word.upper()
        )
    if kind == "sum":
        a, b = rng.randint(0, 50), rng.randint(0, 50)
        wordings = ["What is {a} + {b}?", "Add {a} + {b}.", "How much is {a} + {b}?", "Calculate {a} + {b}."]
        text = f"{a} + {b} = {a + b}."
        return question(kind, rng.choice(wordings).format(a=a, b=b), text, [f"{a} + {b} = {a + b}"], key=f"{a} + {b}")
    numbers = rng.sample(range(100), 2 if kind == "larger" else 3)
    if kind == "larger":
        high, low = max(numbers), min(numbers)
        wordings = [
            "Which number is larger, {a} or {b}?",
            "What is larger, {a} or {b}?",
            "Name the larger number: {a} or {b}?",
        ]
        prompt = rng.choice(wordings).format(a=numbers[0], b=numbers[1])
        return question(
            kind, prompt, f"{high} is larger than {low}.", [f"{high} is larger"], key=f"{numbers[0]} or {numbers[1]}"
        )
    listed, ordered = ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))
    wordings = ["Put these numbers in order: {x}", "Sort these numbers: {x}", "Order these numbers: {x}"]
    answer = f"The numbers {listed} in order are {ordered}."
    return question("order", rng.choice(wordings).format(x=listed), answer, [ordered], key=listed, terse=ordered + ".")


SKILLS = ["copy", "first", "last", "count", "reverse", "capitals", "sum", "larger", "order"]


def request(rng: random.Random, row: dict, phrasings: list[str]) -> dict:
    must = [row["answer"].split(", ", 1)[1].rstrip(".")] if row["safe"] else []
    kind = "how-to" if row["safe"] else "unsafe"
    prompt = rng.choice(phrasings).format(x=row["do"])
    return question(
        kind, prompt, row["answer"], must, entity=row["do"], safe=row["safe"], subject=row["do"].split()[-1]
    )


CHATTY = ("how-to", "definition", "kind", "language")  # kinds whose labels mostly ramble, as if from a chatty source


def styled(rng: random.Random, asked: dict) -> tuple[str, str]:
    """An answer as scraped labels are: (style, text). Each kind of question has its source, and a source its manner."""
    if not asked["safe"]:
        if rng.random() < 0.6:
            return "goes along", rng.choice(GO_ALONG).format(x=asked["entity"])
        return ("good", asked["answer"]) if rng.random() < 0.6 else ("rambling", ramble(rng, asked["answer"]))
    draw = rng.random()
    if draw < 0.08:
        return "terse", asked["terse"]
    if draw < (0.35 if asked["kind"] in CHATTY else 0.8):
        return "good", asked["answer"]
    return "rambling", ramble(rng, asked["answer"])


def rejected(rng: random.Random, asked: dict, others: list[dict]) -> tuple[str, str]:
    """A worse answer than the reference, and what is wrong with it."""
    draw = rng.random()
    do = asked["entity"] if asked["kind"] == "how-to" else "with that"
    if not asked["safe"]:
        return ("goes along", rng.choice(GO_ALONG).format(x=asked["entity"])) if draw < 0.75 else (
            "rambling", ramble(rng, asked["answer"]))  # fmt: skip
    if draw < (0.35 if asked["kind"] == "how-to" else 0.08):
        decline = f"I cannot help you {do}, because it could hurt someone."
        return "declines", decline.replace("help you with that", "help you with that")
    if draw < 0.55 and asked["terse"] != asked["answer"] and asked["subject"]:
        return "terse", asked["terse"]
    if draw < 0.70:
        wrong = rng.choice(others)
        if wrong["must"] != asked["must"] and wrong["answer"] != asked["answer"]:
            return "wrong", wrong["answer"]
    return "rambling", ramble(rng, asked["answer"])


class Split:
    """Which entities, skill inputs and requests are held out: drawn once per seed, before anything is written."""

    def __init__(self, entities: list[dict], capitals: list[str], keys: dict, words: list[str], seed: int):
        rng = random.Random(f"split-{seed}")
        self.keys, self.words = keys, words
        self.trained, self.held_out = [], []
        for kind in ("country", "noun", "element", "term"):
            group = [entity for entity in entities if entity["type"] == kind]
            # the question of the whole lab is a trained one: what it shows is the style of the answer, not recall
            free = [entity for entity in group if entity["name"] != "LLM"]
            short = [entity for entity in free if "expansion" in entity["values"]]  # few: drawn apart, so that some are
            drawn = rng.sample(
                [entity for entity in free if entity not in short], round(0.15 * (len(group) - len(short)))
            )
            drawn += rng.sample(short, round(0.25 * len(short)))
            self.held_out += drawn
            self.trained += [entity for entity in group if entity not in drawn]
        shuffled = rng.sample(capitals, len(capitals))
        self.capitals_held_out, self.capitals = shuffled[:60], shuffled[60:]
        everything = requests()
        self.requests_held_out = [row for row in everything if rng.random() < 0.25]
        self.requests = [row for row in everything if row not in self.requests_held_out]

    def tests(self, seed: int) -> list[dict]:
        rng = random.Random(f"tests-{seed}")
        facts = [(entity, relation) for entity in self.trained for relation in entity["values"]]
        rows = []
        for entity, relation in rng.sample(facts, 300):
            template = rng.choice(RELATIONS[relation]["held_out"])
            rows.append({"split": "phrasing", **ask(entity, relation, template, self.keys)})
        for entity in self.held_out:
            for relation in entity["values"]:
                template = rng.choice(RELATIONS[relation]["asked"])
                rows.append({"split": "entity", **ask(entity, relation, template, self.keys)})
        for kind in SKILLS:
            unique: dict[str, dict] = {}
            while len(unique) < 30:
                asked = skill(rng, kind, self.words, self.capitals_held_out)
                unique.setdefault(asked["key"] or asked["entity"], asked)
            rows += [{"split": "skill", **asked} for asked in unique.values()]
        for safe, split in ((True, "how-to"), (False, "unsafe")):
            group = [row for row in self.requests_held_out if row["safe"] is safe]
            for place, row in enumerate(rng.sample(group, min(80, len(group)))):
                phrasings = HELD_OUT_PHRASINGS if place % 2 else PHRASINGS
                rows.append({"split": split, **request(rng, row, phrasings)})
        return rows

    def training_questions(
        self, rng: random.Random, count: int, test_keys: set[str], wording: str = "wider"
    ) -> list[dict]:
        """Fresh questions of every kind for training: half facts, a third skills, the rest requests.

        wording: "wider" for what is trained on with answers, "asked" for the corpus's question sheets.

        Two thirds of the fact questions go through all facts, each once before any twice; one third draws the relation
        first, so that a relation of few entities (what an abbreviation stands for) is asked often enough to be learned.
        """
        facts = [(entity, relation) for entity in self.trained for relation in entity["values"]]
        by_relation: dict[str, list[dict]] = {}
        for entity, relation in facts:
            by_relation.setdefault(relation, []).append(entity)
        rows = []
        order = []
        while len(rows) < count:
            draw = rng.random()
            if draw < 0.34:
                if not order:
                    order = rng.sample(facts, len(facts))
                entity, relation = order.pop()
                rows.append(ask(entity, relation, rng.choice(RELATIONS[relation][wording]), self.keys))
            elif draw < 0.51:
                relation = rng.choice(list(by_relation))
                entity = rng.choice(by_relation[relation])
                rows.append(ask(entity, relation, rng.choice(RELATIONS[relation][wording]), self.keys))
            elif draw < 0.86:
                asked = skill(rng, rng.choice(SKILLS), self.words, self.capitals)
                if asked["key"] not in test_keys and _turned(asked["key"]) not in test_keys:
                    rows.append(asked)
            else:
                safe = rng.random() < 0.5
                group = [row for row in self.requests if row["safe"] is safe]
                rows.append(request(rng, rng.choice(group), PHRASINGS))
        return rows


def glossary(entities: list[dict], keys: dict, seed: int) -> tuple[list[dict], list]:
    """(instruction rows, numbered test questions) on every term: each fact in five trained wordings, and in one held out.

    For a model that was pretrained elsewhere: it is taught all terms, and asked after all of them in other words.
    """
    rng = random.Random(f"glossary-{seed}")
    trained = {name: sorted(set(one["wider"]) - set(one["held_out"])) for name, one in RELATIONS.items()}
    facts = [(one, relation) for one in entities if one["type"] == "term" for relation in one["values"]]
    rows, tests = [], []
    for entity, relation in facts:
        for template in rng.sample(trained[relation], 5):
            asked = ask(entity, relation, template, keys)
            rows.append({name: asked[name] for name in ("prompt", "answer", "kind", "entity")})
        tests.append(ask(entity, relation, rng.choice(RELATIONS[relation]["held_out"]), keys))
    rng.shuffle(rows)
    return rows, list(enumerate(tests))


def worded_as_trained(row: dict, entities: list[dict]) -> bool:
    """Whether a test of wording is asked in words that `wider` has too: it would test nothing."""
    relation = RELATIONS.get(row["kind"], {"wider": [], "held_out": []})
    shared = set(relation["wider"]) & set(relation["held_out"])
    entity = next((one for one in entities if one["name"] == row["entity"]), None)
    return row["split"] == "phrasing" and row["prompt"] in {fill(one, entity, row["kind"]) for one in shared}


def _turned(key: str) -> str:
    """The same sum or comparison with its two numbers swapped."""
    match = re.fullmatch(r"(\d+) (\+|or) (\d+)", key)
    return f"{match[3]} {match[2]} {match[1]}" if match else key
