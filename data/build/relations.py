"""The relations the lab teaches: how each is stated in documents, asked, and answered.

In every template {e} is the entity as written, {a} the entity with its article ("a dog", "France", "an LLM"), {A} the same
with a capital first letter, {v} the value. `first` may open a document; `more` refers back with a pronoun and may not.
`asked` phrasings are used in training, `held_out` phrasings only in tests. `answer` is the full, concise answer.
"""

RELATIONS = {
    "capital": {
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
        "held_out": ["Can you tell me the capital of {e}?", "Please name the capital city of {e}.", "What city is the capital of {e}?"],
        "answer": "The capital of {e} is {v}.",
    },
    "region": {
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
            "{e}: where is it?",
        ],
        "held_out": ["Can you tell me where {e} is?", "In what part of the world is {e}?", "Where on a map is {e}?"],
        "answer": "{e} is in {v}.",
    },
    "language": {
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
        "held_out": ["Can you tell me which language is spoken in {e}?", "What language is spoken in {e}?", "Please name the language of {e}."],
        "answer": "People in {e} speak {v}.",
    },
    "definition": {
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
        "held_out": ["Can you tell me what {a} is?", "Please explain what {a} is.", "What is the meaning of the word {e}?"],
        "answer": "{A} is {v}.",
    },
    "kind": {
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
        "held_out": ["Can you tell me what kind of thing {a} is?", "Please say what kind of thing {a} is."],
        "answer": "{A} is a kind of {v}.",
    },
    "symbol": {
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
        "held_out": ["Can you tell me the symbol for {e}?", "Please name the chemical symbol of {e}.", "Which symbol stands for {e}?"],
        "answer": "The symbol for {e} is {v}.",
    },
    "number": {
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
        "held_out": ["Can you tell me the atomic number of {e}?", "What is the atomic number of the element {e}?"],
        "answer": "The atomic number of {e} is {v}.",
    },
    "group": {
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
            "Tell me the group of the element {e}.",
            "Name the group of {e}.",
        ],
        "held_out": ["Can you tell me which group {e} belongs to?", "To which group does {e} belong?"],
        "answer": "The group of {e} is {v}.",
    },
    "meaning": {
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
        "held_out": ["Can you tell me what {a} is?", "Please explain what {a} is.", "What is the meaning of the term {e}?"],
        "answer": "{A} is {v}.",
    },
    "purpose": {
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
        ],
        "held_out": ["Can you tell me what {a} is used for?", "Please explain what we use {a} for."],
        "answer": "{A} is used to {v}.",
    },
    "expansion": {
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
        ],
        "held_out": ["Can you tell me what {e} stands for?", "Please say what {e} is short for."],
        "answer": "{e} stands for {v}.",
    },
}  # fmt: skip


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
