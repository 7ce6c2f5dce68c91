"""Preference pairs for brevity, made by SmolLM2-135M-Instruct itself: data/preference/brief.jsonl.

    python -m labkit fetch smol
    python data/build/brevity.py      # ten minutes or more on two cores

Each open question is asked twice, greedily: as it is, and with a wish for one or two sentences. The answer to the wish
is chosen over the other where it is less than half as long, so the model is taught to be brief unasked, in words of its
own. The questions are of MT-Bench's eight categories, none of them MT-Bench's; nobody judged the answers. Most usual
answers do not end within LONGEST tokens: 83 pairs of 400 questions are left, 47 of them of math and extraction, one of
coding and none of writing.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

WISH = " Answer in one or two short sentences."
EACH = 50  # questions of each category
LONGEST = 220  # tokens of an answer; what is longer is left out with its question

TEMPLATES = {
    "writing": (
        "Write a short story about {a} and {b}.",
        "Compose a poem about {a}.",
        "Draft a friendly letter to a neighbour who lost {a}.",
        "Write a blog post about a week in {country}.",
        "Describe a market in {country} so that a reader can smell it.",
        "Write an advertisement for {a}.",
    ),
    "roleplay": (
        "Pretend that you are {a}. Tell me about your day.",
        "You are a tour guide in {country}. Welcome your guests.",
        "Act as a teacher and tell small children what {a} is.",
        "You are a doctor. I have been sleeping badly since I visited {country}. What do you say?",
        "Imagine that you are the inventor of {a}. How did you get the idea?",
        "Play a seller who wants me to buy {a}.",
    ),
    "reasoning": (
        "Would you rather have {a} or {b} on a desert island? Give your reasons.",
        "Why might a family in {country} keep {a} at home?",
        "A friend says that everybody needs {a}. What speaks for and against it?",
        "If {a} cost ten times as much, what would change?",
        "Which is heavier as a rule, {a} or {b}, and how can one tell?",
        "What could go wrong when you lend {a} to a stranger?",
    ),
    "math": (
        "I buy {n} pencils and give away {m}. How many are left? Explain each step.",
        "A train goes {n} kilometers in {m} hours. How fast is it?",
        "How do I find the area of a room of {n} by {m} feet?",
        "What is a prime number, and is {n} one?",
        "Explain how to add {n} and {m} in your head.",
        "A recipe for {m} people needs {n} grams of flour. How much do {n} people need?",
    ),
    "coding": (
        "Write a Python function that counts how often each word occurs in a text about {a}.",
        "How do I sort a list of {n} numbers in Python?",
        "What is the difference between a list and a tuple? Use {a} as an example.",
        "Write a web page that shows a picture of {a}.",
        "Explain recursion to somebody who only knows {a}.",
        "How would you store the capital of {country} and of {m} other countries in a program?",
    ),
    "extraction": (
        "Name the things in this sentence: The boy put {a} beside {b} and left.",
        "Which country is this about: My aunt took {a} with her to {country} last summer?",
        "List the numbers here: On day {m} we sold {n} tickets.",
        "Is this review good or bad, and why: The shop sold me {a} that broke after {m} days.",
        "Give a title to this text: {a} was found in {country}. Nobody knows who left it there.",
        "What are the main points of: We need {a}, but {b} is cheaper and lasts {m} years.",
    ),
    "stem": (
        "What is {element}, and what is it used for?",
        "How is {a} made?",
        "Explain how one could measure the weight of {a}.",
        "What happens to {element} when it gets very hot?",
        "Why does it rain so much, or so little, in {country}?",
        "How do plants and animals in {country} live together?",
    ),
    "humanities": (
        "Tell me about the history of {country}.",
        "What should I know about manners before I travel to {country}?",
        "How has {a} changed the way people live?",
        "What do people in {country} and in {country2} have in common?",
        "Why do people collect things like {a}?",
        "What does {a} stand for in stories and paintings?",
    ),
}  # fmt: skip


def prompts(seed: int = 0) -> list[tuple[str, str]]:
    """(category, question), EACH of every category, all of them different."""
    rng = random.Random(seed)
    rows = {name: [json.loads(line) for line in (HERE.parent / name).open(encoding="utf-8")]
            for name in ("wordnet/nouns.jsonl", "factbook/countries.jsonl", "mendeleev/elements.jsonl")}  # fmt: skip
    nouns, countries, elements = rows.values()
    found: dict[str, str] = {}
    for category, templates in TEMPLATES.items():
        wanted = len(found) + EACH
        while len(found) < wanted:
            a, b = (f"{noun['article']} {noun['name']}" for noun in rng.sample(nouns, 2))
            country, country2 = (one["name"] for one in rng.sample(countries, 2))
            question = rng.choice(templates).format(
                a=a, b=b, country=country, country2=country2, element=rng.choice(elements)["name"],
                m=rng.randint(2, 12), n=rng.randint(13, 400),
            )  # fmt: skip
            found.setdefault(question[0].upper() + question[1:], category)
    return [(category, question) for question, category in found.items()]


def main() -> None:
    from labkit import models
    from labkit.evaluate import answers

    model, tokenizer = models.load("smol", frozen=True)
    asked = prompts()
    said = [
        answers.ask(model, tokenizer, [question + wish for _, question in asked], max_new_tokens=LONGEST, batch_size=40)
        for wish in (WISH, "")
    ]
    rows = [
        {"prompt": question, "chosen": brief["text"], "rejected": usual["text"], "kind": category}
        for (category, question), brief, usual in zip(asked, *said, strict=True)
        if brief["stopped"] and usual["stopped"] and 0 < 2 * len(brief["text"]) < len(usual["text"])
    ]
    random.Random(1).shuffle(rows)
    file = HERE.parent / "preference" / "brief.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} pairs of {len(asked)} questions in {file}")


if __name__ == "__main__":
    main()
