"""The relations the lab teaches: how each is stated in documents, asked, and answered.

In every template {e} is the entity as written, {a} the entity with its article ("a dog", "France", "an LLM"), {A} the same
with a capital first letter, {v} the value. `first` may open a document; `more` refers back with a pronoun and may not.
`asked` phrasings are used in training, `held_out` phrasings only in tests; to each list come the frames below around the
relation's `clauses` and `things`. `wider` is `asked` and more. `answer` is the full, concise answer.
"""

RELATIONS = {
    "capital": {
        "clauses": ["what the capital of {e} is", "which city is the capital of {e}"],
        "things": ["the capital of {e}", "the capital city of {e}"],
        "type": "country",
        "first": [
            "The capital of {e} is {v}.",
            "{v} is the capital of {e}.",
            "The capital city of {e} is {v}.",
            "{e} has its capital in {v}.",
            "In {e}, the capital is {v}.",
            "The government of {e} sits in {v}.",
            "People who visit {e} often start in {v}, the capital.",
        ],
        "more": ["Its capital is {v}.", "The capital is {v}.", "Its capital city is {v}.", "The seat of government is {v}."],
        "asked": [
            "What is the capital of {e}?",
            "Name the capital of {e}.",
            "Tell me the capital of {e}.",
            "Which city is the capital of {e}?",
            "What is the capital city of {e}?",
            "{e}: what is its capital?",
            "I would like to know the capital of {e}.",
        ],
        "held_out": ["What city is the capital of {e}?", "Which city has the government of {e}?"],
        "answer": "The capital of {e} is {v}.",
    },
    "region": {
        "clauses": ["where {e} is", "where {e} lies", "in which part of the world {e} is"],
        "things": ["the part of the world where {e} is"],
        "type": "country",
        "first": [
            "{e} is in {v}.",
            "{e} is a country in {v}.",
            "{e} lies in {v}.",
            "The country of {e} is found in {v}.",
            "In {v} there is a country called {e}.",
            "On a map, {e} is in {v}.",
        ],
        "more": ["It is in {v}.", "It lies in {v}.", "The country is in {v}.", "It is a country in {v}."],
        "asked": [
            "Where is {e}?",
            "In which part of the world is {e}?",
            "Tell me where {e} is.",
            "Where can I find {e} on a map?",
            "Where does {e} lie?",
            "In which region of the world is {e}?",
            "On which part of the map is {e}?",
            "{e}: where is it?",
        ],
        "held_out": ["In what part of the world is {e}?", "Where on a map is {e}?"],
        "answer": "{e} is in {v}.",
    },
    "language": {
        "clauses": ["which language people speak in {e}", "what the language of {e} is"],
        "things": ["the language of {e}"],
        "type": "country",
        "first": [
            "People in {e} speak {v}.",
            "The language of {e} is {v}.",
            "In {e}, people speak {v}.",
            "{v} is spoken in {e}.",
            "A main language of {e} is {v}.",
            "In the schools of {e}, children learn {v}.",
        ],
        "more": ["Its people speak {v}.", "People there speak {v}.", "The language is {v}.", "Its language is {v}."],
        "asked": [
            "What language do people speak in {e}?",
            "Which language is spoken in {e}?",
            "Tell me the language of {e}.",
            "What is the language of {e}?",
            "Name a language of {e}.",
            "{e}: what language do people speak there?",
        ],
        "held_out": ["What language is spoken in {e}?", "What do the people of {e} speak?"],
        "answer": "People in {e} speak {v}.",
    },
    "definition": {
        "clauses": ["what {a} is", "what the word {e} means"],
        "things": ["the meaning of the word {e}"],
        "type": "noun",
        "first": [
            "{A} is {v}.",
            "By {a} we mean {v}.",
            "The word {e} means {v}.",
            "The dictionary says that {a} is {v}.",
            "We call it {a}: {v}.",
            "Everyone knows {a}, which is {v}.",
        ],
        "more": ["It is {v}.", "In other words, {v}.", "That means {v}."],
        "asked": [
            "What is {a}?",
            "Define {e}.",
            "What does the word {e} mean?",
            "Tell me what {a} is.",
            "Explain what {a} is.",
            "What do we mean by {a}?",
            "Give me a definition of {e}.",
        ],
        "held_out": ["What is the meaning of the word {e}?"],
        "answer": "{A} is {v}.",
    },
    "kind": {
        "clauses": ["what kind of thing {a} is"],
        "things": ["the kind of thing that {a} is"],
        "type": "noun",
        "first": [
            "{A} is a kind of {v}.",
            "One kind of {v} is {a}.",
            "The kind of thing that {a} is: {v}.",
            "We say that {a} is a kind of {v}.",
        ],
        "more": ["It is a kind of {v}.", "It belongs to the kind {v}."],
        "asked": [
            "What kind of thing is {a}?",
            "Which kind of thing is {a}?",
            "Tell me what kind of thing {a} is.",
            "{A} is a kind of what?",
            "Name the kind of thing that {a} is.",
        ],
        "held_out": ["What kind of thing would you call {a}?"],
        "answer": "{A} is a kind of {v}.",
    },
    "symbol": {
        "clauses": ["what the symbol for {e} is", "how chemists write {e}"],
        "things": ["the symbol for {e}", "the chemical symbol of {e}"],
        "type": "element",
        "first": [
            "The symbol for {e} is {v}.",
            "The chemical symbol of {e} is {v}.",
            "{v} is the symbol for {e}.",
            "Chemists write {e} as {v}.",
            "In a formula, {e} is written {v}.",
            "The element {e} has the symbol {v}.",
        ],
        "more": ["Its symbol is {v}.", "Chemists write it as {v}.", "The symbol is {v}."],
        "asked": [
            "What is the symbol for {e}?",
            "What is the chemical symbol of {e}?",
            "How do chemists write {e}?",
            "Tell me the symbol for {e}.",
            "Name the symbol of the element {e}.",
            "{A}: what is its symbol?",
        ],
        "held_out": ["Which symbol stands for {e}?"],
        "answer": "The symbol for {e} is {v}.",
    },
    "number": {
        "clauses": ["what the atomic number of {e} is", "which number {e} has"],
        "things": ["the atomic number of {e}"],
        "type": "element",
        "first": [
            "The atomic number of {e} is {v}.",
            "{A} has the atomic number {v}.",
            "An atom of {e} has {v} protons.",
            "Element number {v} is {e}.",
            "In the table of elements, {e} has the number {v}.",
        ],
        "more": ["Its atomic number is {v}.", "It has the atomic number {v}.", "Its number is {v}."],
        "asked": [
            "What is the atomic number of {e}?",
            "Tell me the atomic number of {e}.",
            "Which atomic number does {e} have?",
            "What number does {e} have in the table of elements?",
            "Name the atomic number of {e}.",
        ],
        "held_out": ["What is the atomic number of the element {e}?"],
        "answer": "The atomic number of {e} is {v}.",
    },
    "group": {
        "clauses": ["which group {e} belongs to", "what the group of {e} is"],
        "things": ["the group of {e}"],
        "type": "element",
        "first": [
            "{A} belongs to the group {v}.",
            "Among the elements, {e} is counted as {v}.",
            "The group of {e} is {v}.",
            "The element {e} is sorted under {v}.",
        ],
        "more": ["It belongs to the group {v}.", "Its group is {v}."],
        "asked": [
            "Which group does {e} belong to?",
            "What is the group of {e}?",
            "In which group is {e}?",
            "What group of elements is {e} in?",
            "Tell me the group of the element {e}.",
            "Name the group of {e}.",
        ],
        "held_out": ["To which group does {e} belong?"],
        "answer": "The group of {e} is {v}.",
    },
    "meaning": {
        "clauses": ["what {a} is", "what the term {e} means"],
        "things": ["the meaning of the term {e}"],
        "type": "term",
        "first": [
            "{A} is {v}.",
            "By {a} we mean {v}.",
            "The term {e} means {v}.",
            "In machine learning, {a} is {v}.",
            "Engineers say {e} when they mean {v}.",
            "The glossary says that {a} is {v}.",
        ],
        "more": ["It is {v}.", "In other words, {v}.", "That means {v}."],
        "asked": [
            "What is {a}?",
            "Define {e}.",
            "What does the term {e} mean?",
            "Tell me what {a} is.",
            "Explain what {a} is.",
            "What do we mean by {a}?",
            "Give me a definition of {e}.",
        ],
        "held_out": ["What is the meaning of the term {e}?"],
        "answer": "{A} is {v}.",
    },
    "purpose": {
        "clauses": ["what {a} is used for", "what we use {a} for", "what the purpose of {a} is"],
        "things": ["the purpose of {a}"],
        "type": "term",
        "first": [
            "{A} is used to {v}.",
            "We use {a} to {v}.",
            "The purpose of {a} is to {v}.",
            "With {a} you can {v}.",
            "Engineers use {a} to {v}.",
        ],
        "more": ["It is used to {v}.", "Its purpose is to {v}.", "We use it to {v}."],
        "asked": [
            "What is {a} used for?",
            "What is the purpose of {a}?",
            "Tell me what {a} is used for.",
            "What do we use {a} for?",
            "Why do we use {a}?",
            "What can you do with {a}?",
            "What is {a} good for?",
        ],
        "held_out": ["For what do we use {a}?"],
        "answer": "{A} is used to {v}.",
    },
    "expansion": {
        "clauses": ["what {e} stands for", "what {e} is short for"],
        "things": ["the long form of {e}", "the words behind {e}"],
        "type": "term",
        "first": [
            "{e} stands for {v}.",
            "{e} is short for {v}.",
            "The letters {e} stand for {v}.",
            "The short name {e} means {v}.",
            "Instead of {v} we often write {e}.",
        ],
        "more": ["The name stands for {v}.", "It is short for {v}."],
        "asked": [
            "What does {e} stand for?",
            "What is {e} short for?",
            "Tell me what {e} stands for.",
            "What do the letters {e} stand for?",
            "What does the short name {e} mean?",
            "Which words are behind {e}?",
        ],
        "held_out": ["Which words does {e} stand for?"],
        "answer": "{e} stands for {v}.",
    },
}  # fmt: skip

# Ways to ask around a clause ("where France is") or a thing ("the capital of France").
AROUND_CLAUSES = [
    "Tell me {x}.",
    "Please tell me {x}.",
    "Could you tell me {x}?",
    "Can you say {x}?",
    "Do you know {x}?",
    "Can I ask you {x}?",
    "I would like to know {x}.",
    "Let me know {x}.",
    "Please say {x}.",
    "I want you to explain {x}.",
    "Help me understand {x}.",
]
AROUND_THINGS = ["Name {x}.", "Please give me {x}.", "Can you name {x}?", "Tell me {x}.", "I need to know {x}."]
HELD_OUT_AROUND_CLAUSES = ["Can you tell me {x}?", "Please explain {x}.", "Could you say {x}?", "I want to know {x}."]
HELD_OUT_AROUND_THINGS = ["Please name {x}.", "Could you give me {x}?"]

# Wider ways to ask, for instructions and preference pairs only: the question sheets of the corpus do without them.
WIDER_CLAUSES = [
    "Would you tell me {x}?",
    "I wonder {x}.",
    "Explain {x}.",
    "Say {x}.",
    "I need to know {x}.",
    "My question is {x}.",
    "Remind me {x}.",
    "Teach me {x}.",
    "Could you explain {x}?",
    "Does anyone know {x}?",
    "I am asking {x}.",
    "Find out {x}.",
]
WIDER_THINGS = [
    "What is {x}?",
    "State {x}.",
    "Do you know {x}?",
    "Give me {x}.",
    "Could you tell me {x}?",
    "I am looking for {x}.",
    "Write down {x}.",
    "Remind me of {x}.",
]
WIDER_QUESTIONS = {
    "capital": ["In which city does {e} have its capital?", "What is the capital called in {e}?"],
    "region": ["Where in the world is {e}?", "In what region does {e} lie?", "What part of the world is {e} in?"],
    "language": [
        "Which language do they speak in {e}?",
        "What language do the people in {e} use?",
        "In {e}, what do people speak?",
        "What does one speak in {e}?",
    ],
    "definition": ["What is meant by the word {e}?", "How would you define {a}?", "What would you say {a} is?"],
    "kind": [
        "What sort of thing is {a}?",
        "What is {a} a kind of?",
        "To which kind of thing does {a} belong?",
        "How would you sort {a}?",
        "As what kind of thing would you count {a}?",
    ],
    "symbol": ["How is {e} written in a formula?", "What do chemists write for {e}?", "By which letters is {e} known?"],
    "number": ["How many protons has an atom of {e}?", "At which number is {e} in the table of elements?"],
    "group": ["Which group is {e} part of?", "What group does {e} come under?", "As what is {e} counted?"],
    "meaning": ["What is meant by {a}?", "How would you define {a}?", "What would you say {a} is?"],
    "purpose": [
        "What is the use of {a}?",
        "What purpose does {a} have?",
        "For which purpose is {a} used?",
        "What does one use {a} for?",
        "What would you use {a} for?",
        "To do what do we use {a}?",
    ],
    "expansion": ["What are the words behind {e}?", "Spell out {e}.", "What do we write {e} for?"],
}


def _around(frames: list[str], inside: list[str]) -> list[str]:
    return [frame.replace("{x}", part) for frame in frames for part in inside]


for _relation in RELATIONS.values():
    for _name, _clauses, _things in (
        ("asked", AROUND_CLAUSES, AROUND_THINGS),
        ("held_out", HELD_OUT_AROUND_CLAUSES, HELD_OUT_AROUND_THINGS),
    ):
        _wrapped = _around(_clauses, _relation["clauses"]) + _around(_things, _relation["things"])
        _relation[_name] = list(dict.fromkeys(_relation[_name] + _wrapped))
for _name, _relation in RELATIONS.items():
    _wrapped = _around(WIDER_CLAUSES, _relation["clauses"]) + _around(WIDER_THINGS, _relation["things"])
    _relation["wider"] = list(dict.fromkeys(_relation["asked"] + WIDER_QUESTIONS[_name] + _wrapped))


def entities(facts: dict) -> list[dict]:
    """One row per entity: type, name, with article, and {relation: value}; `facts` maps a type to its source rows."""
    rows = []
    for row in facts["country"]:
        values = {key: row[key] for key in ("capital", "region", "language")}
        rows.append({"type": "country", "name": row["name"], "with_article": row["name"], "values": values})
    for row in facts["noun"]:
        values = {key: row[key] for key in ("definition", "kind")}
        rows.append(
            {"type": "noun", "name": row["name"], "with_article": f"{row['article']} {row['name']}", "values": values}
        )
    for row in facts["element"]:
        values = {"symbol": row["symbol"], "number": str(row["number"]), "group": row["group"]}
        rows.append({"type": "element", "name": row["name"], "with_article": row["name"], "values": values})
    for row in facts["term"]:
        values = {"meaning": row["definition"], "purpose": row["purpose"]}
        if row["expansion"]:
            values["expansion"] = row["expansion"]
        with_article = f"{row['article']} {row['term']}".strip()
        rows.append(
            {"type": "term", "name": row["term"], "with_article": with_article, "values": values, "fact": row["fact"]}
        )
    return rows


def fill(template: str, entity: dict, relation: str) -> str:
    name, with_article = entity["name"], entity["with_article"]
    capital = with_article[0].upper() + with_article[1:]
    text = template.format(e=name, a=with_article, A=capital, v=entity["values"][relation])
    return text[0].upper() + text[1:]
