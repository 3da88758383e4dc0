"""How needles are stated and asked for. Every fifth of each list is for held-out prompts only."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A question and how its answer starts (the value follows)."""

    text: str
    answer_start: str


class Fact(NamedTuple):
    """A made-up fact; ``slot`` is the word class of its ``{value}``."""

    statement: str
    question: str
    answer_start: str
    slot: str


# RULER's own wording, in both splits: benchmarks ask exactly this.
RULER_NEEDLE = "One of the special magic {type}s for {key} is: {value}."
RULER_QUESTION = Question(
    "What is the special magic {type} for {key} mentioned in the provided text?",
    "The special magic {type} for {key} mentioned in the provided text is",
)
RULER_QUESTION_ALL = Question(
    "What are all the special magic {type}s for {key} mentioned in the provided text?",
    "The special magic {type}s for {key} mentioned in the provided text are",
)
RULER_INSTRUCTION = (
    "A special magic {type} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards."
)
RULER_INSTRUCTION_ALL = (
    "Some special magic {type}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type}s afterwards."
)

# What a value is called, by the kind of value.
TYPES = {
    "number": (
        "number",
        "access code",
        "serial number",
        "account number",
        "lucky number",
        "pin",
        "ticket number",
        "phone extension",
        "order number",
        "lock combination",
    ),
    "word": ("word", "secret word", "password", "code name", "nickname", "keyword", "label"),
    "uuid": ("uuid", "identifier", "session id", "token", "device id", "record id"),
    "phrase": ("phrase", "motto", "slogan", "secret phrase", "title", "greeting"),
    "date": ("date", "deadline", "due date", "appointment", "start date", "anniversary"),
    "code": ("code", "license key", "voucher", "part number", "flight number", "plate number"),
}

NEEDLES = (
    "The {type} for {key} is {value}.",
    "The {type} of {key} is {value}.",
    "{key}: {type} = {value}.",
    "Remember that the {type} for {key} is {value}.",
    "Please note that {key} has the {type} {value}.",
    "For {key}, the {type} is {value}.",
    "{key} was given the {type} {value}.",
    "Use {value} as the {type} for {key}.",
    "Important: the {type} assigned to {key} is {value}.",
    "If anybody asks for the {type} of {key}, tell them {value}.",
    "It is written that {key} goes with the {type} {value}.",
    "{value} is the {type} for {key}.",
    "They decided that the {type} of {key} would be {value}.",
    "A note on the door said: {type} for {key}: {value}.",
    "We registered {key} under the {type} {value}.",
    "Do not forget: {value} is the {type} that belongs to {key}.",
    "According to the records, the {type} of {key} is {value}.",
    "[{key}] {type}: {value}",
    "The {type} '{value}' belongs to {key}.",
    "As of today, the current {type} for {key} is {value}.",
    "By the way, {key} uses {value} as its {type}.",
    "In case it matters, the {type} linked to {key} is {value}.",
    "One of the {type}s for {key} is {value}.",
    "{key} ({type} {value}) was added to the list.",
    "The manager confirmed {value} as the {type} for {key}.",
)

QUESTIONS = (
    Question("What is the {type} for {key}?", "The {type} for {key} is"),
    Question("What is the {type} of {key}?", "The {type} of {key} is"),
    Question("Which {type} belongs to {key}?", "The {type} that belongs to {key} is"),
    Question("Tell me the {type} for {key}.", "The {type} for {key} is"),
    Question("Which {type} does {key} have according to the text?", "{key} has the {type}"),
    Question("Find the {type} of {key} in the text above.", "The {type} of {key} is"),
    Question("Please look up the {type} for {key}.", "The {type} for {key} is"),
    Question("I need the {type} of {key}. What is it?", "The {type} of {key} is"),
    Question("Question: what {type} was given to {key}?", "Answer:"),
    Question("What {type} is mentioned for {key}?", "The {type} mentioned for {key} is"),
    Question("Complete the sentence: the {type} for {key} is", "The {type} for {key} is"),
    Question("Answer with the {type} of {key} only.", ""),
    Question("Somewhere the text gives a {type} for {key}. Repeat it.", "The {type} is"),
    Question("Can you remind me of the {type} for {key}?", "Sure, the {type} for {key} is"),
    Question("What did the text say about the {type} of {key}?", "The {type} of {key} is"),
    Question("Extract the {type} for {key}.", "{type} for {key}:"),
    Question("{key}: what is its {type}?", "Its {type} is"),
    Question("Based on the text, state the {type} for {key}.", "Based on the text, it is"),
    Question("Do you remember the {type} of {key}?", "Yes, it is"),
    Question("Give me only the {type} linked to {key}, nothing else.", ""),
    Question("Which {type} should I use for {key}?", "You should use"),
    Question("Quote the {type} that goes with {key}.", "The {type} that goes with {key} is"),
    Question("Someone asks you for the {type} of {key}. What do you say?", "I say:"),
    Question("What's the {type} for {key} again?", "The {type} for {key} is"),
    Question("The text contains the {type} of {key}. Write it down.", "{key}:"),
)

FACTS = (
    Fact(
        "{name} keeps the {thing} in the {value}.",
        "Where does {name} keep the {thing}?",
        "{name} keeps the {thing} in the",
        "place",
    ),
    Fact("{name} works as a {value}.", "What is {name}'s job?", "{name} works as a", "job"),
    Fact("{name} was born in {value}.", "Where was {name} born?", "{name} was born in", "city"),
    Fact(
        "The favourite food of {name} is {value}.",
        "What is the favourite food of {name}?",
        "The favourite food of {name} is",
        "food",
    ),
    Fact(
        "{name} painted the {thing} {value}.",
        "Which colour did {name} paint the {thing}?",
        "{name} painted the {thing}",
        "colour",
    ),
    Fact(
        "{name} sold the {thing} for {value} dollars.",
        "For how many dollars did {name} sell the {thing}?",
        "{name} sold the {thing} for",
        "number",
    ),
    Fact(
        "{name}'s parrot is called {value}.",
        "What is the name of {name}'s parrot?",
        "{name}'s parrot is called",
        "name",
    ),
    Fact(
        "{name} will get married in {value}.",
        "In which month will {name} get married?",
        "{name} will get married in",
        "month",
    ),
    Fact(
        "The {thing} belongs to {value}.",
        "Who does the {thing} belong to?",
        "The {thing} belongs to",
        "name",
    ),
    Fact(
        "The hotel room of {name} has the number {value}.",
        "What is the number of {name}'s hotel room?",
        "The number of {name}'s hotel room is",
        "number",
    ),
    Fact(
        "Last night {name} hid the {thing} in the {value}.",
        "Where did {name} hide the {thing}?",
        "{name} hid the {thing} in the",
        "place",
    ),
    Fact(
        "{name} moved to {value} last spring.",
        "Which city did {name} move to?",
        "{name} moved to",
        "city",
    ),
    Fact(
        "The {thing} was repaired by {value}.",
        "Who repaired the {thing}?",
        "The {thing} was repaired by",
        "name",
    ),
    Fact(
        "The {thing} in the museum of {value} is the oldest of its kind.",
        "In which city's museum is the {thing}?",
        "The {thing} is in the museum of",
        "city",
    ),
    Fact(
        "For lunch {name} always orders {value}.",
        "What does {name} always order for lunch?",
        "{name} always orders",
        "food",
    ),
    Fact(
        "{name} met the {value} at the station.",
        "Whom did {name} meet at the station?",
        "{name} met the",
        "job",
    ),
    Fact(
        "The best thing to do in {city} is to visit the {value}.",
        "What is the best thing to do in {city}?",
        "The best thing to do in {city} is to visit the",
        "thing",
    ),
    Fact(
        "{name} gave {value} a {thing} as a present.",
        "Who got a {thing} from {name}?",
        "{name} gave the {thing} to",
        "name",
    ),
    Fact(
        "The {thing} weighs exactly {value} grams.",
        "How many grams does the {thing} weigh?",
        "The {thing} weighs",
        "number",
    ),
    Fact(
        "{name} forgot the {thing} in {value}.",
        "In which city did {name} forget the {thing}?",
        "{name} forgot the {thing} in",
        "city",
    ),
    Fact(
        "The old house of {name} has a {value} door.",
        "What colour is the door of {name}'s old house?",
        "The door of {name}'s old house is",
        "colour",
    ),
    Fact(
        "{name} promised to return the {thing} in {value}.",
        "When did {name} promise to return the {thing}?",
        "{name} promised to return the {thing} in",
        "month",
    ),
    Fact(
        "The favourite dish of the {job} is {value}.",
        "What is the favourite dish of the {job}?",
        "The favourite dish of the {job} is",
        "food",
    ),
    Fact(
        "The birthplace of the {job} is {value}.",
        "What is the birthplace of the {job}?",
        "The birthplace of the {job} is",
        "city",
    ),
    Fact(
        "The colour of the {thing} is {value}.",
        "What is the colour of the {thing}?",
        "The colour of the {thing} is",
        "colour",
    ),
    Fact(
        "The name of the {job}'s dog is {value}.",
        "What is the name of the {job}'s dog?",
        "The name of the {job}'s dog is",
        "name",
    ),
    Fact(
        "The price of the {thing} is {value}.",
        "What is the price of the {thing}?",
        "The price of the {thing} is",
        "number",
    ),
    Fact(
        "The month of the {job}'s holiday is {value}.",
        "What is the month of the {job}'s holiday?",
        "The month of the {job}'s holiday is",
        "month",
    ),
)

INSTRUCTIONS = (
    "Read the text below and answer the question.",
    "Some facts that do not belong are hidden in the text below. Remember them.",
    "Below is a long text. Read it carefully, I will ask you something about it.",
    "Use the following document to answer.",
    "There is important information hidden inside a lot of irrelevant text. Find it.",
    "Here are my notes.",
    "Context:",
    "Answer from the text only.",
    "Memorize the important details of this text.",
    "Please go through this and help me find something.",
)

NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "The river runs to the sea. The wind is cold. Nothing happens here. We walk on.",
    "A bird sings. The day is long. The road goes on. Time passes slowly. All is well.",
    "The cat sleeps on the mat. The dog barks. The rain falls. The night is dark.",
    "One step at a time. The hills are far. The stones are old. Snow is white. Let us go.",
    "Water is wet. Fire is hot. Ice is cold. The moon is round. The stars are bright.",
    "Lorem ipsum dolor sit amet. Consectetur adipiscing elit. Sed do eiusmod tempor.",
    "This sentence says nothing. So does this one. And the next one too. Keep reading.",
    "The train is late. People wait. A clock ticks. Somebody coughs. The light flickers.",
    "Bread is on the table. Milk is in the jug. The door is shut. The house is quiet.",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer briefly and precisely.",
    "You are an expert reader. Use the given text.",
    "You are a careful assistant who never makes things up.",
    "Answer the user's question.",
)
