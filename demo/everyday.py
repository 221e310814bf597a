"""The everyday questions: some eighty facts, each asked in many wordings.

Answers hold emoji, accents, Chinese, Japanese and Malay so that one character often spans
several tokens. The split is over wordings: every fact is trained, not every way to ask it.
"""

from dataclasses import dataclass
from random import Random

from demo.task import Exchange, question

_PREFIXES = ("Hey, ", "Please tell me: ", "Quick question: ", "I wonder: ", "Excuse me, ")


@dataclass(frozen=True)
class Fact:
    """One answer and the wordings that ask for it."""

    answer: str
    wordings: tuple[str, ...]


_CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Malaysia": "Kuala Lumpur",
    "Egypt": "Cairo",
    "Brazil": "Brasília",
    "Colombia": "Bogotá",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "India": "New Delhi",
    "Australia": "Canberra",
}
_COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "coal": "black",
    "a ripe tomato": "red",
    "chocolate": "brown",
    "a carrot": "orange",
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "fast": "slow",
    "day": "night",
    "happy": "sad",
    "old": "new",
}
_PHRASES = {
    ("thank you", "Malay"): "Terima kasih",
    ("good morning", "Malay"): "Selamat pagi",
    ("hello", "Chinese"): "你好",
    ("thank you", "Chinese"): "谢谢",
    ("good morning", "Chinese"): "早上好",
    ("hello", "Japanese"): "こんにちは",
    ("hello", "French"): "Bonjour",
    ("please", "French"): "S'il vous plaît",
    ("see you soon", "French"): "À bientôt",
    ("tomorrow", "Spanish"): "Mañana",
    ("thank you", "German"): "Danke schön",
}
_EMOJI = {
    "cat": "🐱",
    "dog": "🐶",
    "heart": "❤️",
    "rocket": "🚀",
    "sun": "☀️",
    "fire": "🔥",
    "tree": "🌳",
    "family": "👨‍👩‍👧",
}
_AMOUNTS = {
    "days are in a week": "There are 7 days in a week.",
    "months are in a year": "There are 12 months in a year.",
    "hours are in a day": "There are 24 hours in a day.",
    "minutes are in an hour": "There are 60 minutes in an hour.",
    "legs does a spider have": "A spider has 8 legs.",
    "legs does a dog have": "A dog has 4 legs.",
}

_SINGLE_FACTS = (
    Fact(
        "Hello! 👋 How can I help you?",
        ("Hello!", "Hi!", "Hi there!", "Hello there!", "Hey!", "Hello.", "Hey there!", "Hi."),
    ),
    Fact(
        "Good morning! ☀️ How can I help you?",
        ("Good morning!", "Good morning.", "A good morning to you!", "Good morning to you!"),
    ),
    Fact(
        "I am fine, thank you! 😊 And you?",
        ("How are you?", "How are you doing?", "How are you today?", "Are you well?"),
    ),
    Fact(
        "You are welcome! 😊",
        ("Thank you!", "Thanks!", "Thank you very much!", "Thanks a lot!", "Many thanks!"),
    ),
    Fact(
        "Goodbye! 👋 See you soon.",
        ("Goodbye!", "Bye!", "Bye bye!", "See you later!", "Good night, bye!"),
    ),
    Fact(
        "I am a small chat model, made to show this server at work.",
        ("Who are you?", "What are you?", "Tell me who you are.", "Introduce yourself."),
    ),
    Fact(
        "No, I am a computer program with about two million numbers. 🤖",
        ("Are you a human?", "Are you a person?", "Are you human?", "Are you a robot?"),
    ),
    Fact(
        "I can spell, reverse, sort, add, count, remember your name and call tools.",
        ("What can you do?", "How can you help me?", "Help me.", "Tell me what you can do."),
    ),
    Fact(
        "The largest planet is Jupiter. 🪐",
        ("What is the largest planet?", "Which planet is the largest?", "Name the largest planet."),
    ),
    Fact(
        "Water is written H₂O.",
        ("What is the formula of water?", "How is water written?", "Name the formula of water."),
    ),
    Fact(
        "At a café, of course! ☕",
        ("Where can I drink coffee?", "Where do I get a coffee?", "Where can I get coffee?"),
    ),
    Fact(
        "Why did the byte cross the bus? To get to the other side. 😄",
        ("Tell me a joke.", "Tell a joke.", "Make me laugh.", "Do you know a joke?"),
    ),
    Fact(
        "Once upon a time a small robot lived by the sea. Every morning it counted the waves, "
        "and every evening it told the moon how many there were. One night the moon asked: "
        "why do you count? The robot smiled and said: so that you have a reason to come back. 🌙",
        ("Tell me a story.", "Tell a story.", "Write a short story.", "Do you know a story?"),
    ),
    Fact(
        "The rain falls on the river,\nthe river runs to sea,\n"
        "the sea goes up to heaven\nand rains again on me. 🌧️",
        ("Write a poem.", "Write a short poem.", "Tell me a poem.", "Do you know a poem?"),
    ),
)


def _capital_fact(country: str, city: str) -> Fact:
    wordings = (
        f"What is the capital of {country}?",
        f"Tell me the capital of {country}.",
        f"Which city is the capital of {country}?",
        f"Name the capital of {country}.",
        f"What is {country}'s capital?",
    )
    return Fact(f"The capital of {country} is {city}.", wordings)


def _colour_fact(thing: str, colour: str) -> Fact:
    wordings = (
        f"What colour is {thing}?",
        f"What color is {thing}?",
        f"Tell me the colour of {thing}.",
        f"Which colour is {thing}?",
    )
    return Fact(f"{thing[0].upper()}{thing[1:]} is {colour}.", wordings)


def _day_fact(day: str, next_day: str) -> Fact:
    wordings = (
        f"What day comes after {day}?",
        f"Which day comes after {day}?",
        f"Which day follows {day}?",
        f"If today is {day}, what day is tomorrow?",
    )
    return Fact(f"The day after {day} is {next_day}.", wordings)


def _opposite_fact(word: str, opposite: str) -> Fact:
    wordings = (
        f"What is the opposite of {word}?",
        f"Tell me the opposite of {word}.",
        f"Name the opposite of {word}.",
        f"Which word is the opposite of {word}?",
    )
    return Fact(f"The opposite of {word} is {opposite}.", wordings)


def _phrase_fact(text: str, language: str, translated: str) -> Fact:
    wordings = (
        f'How do you say "{text}" in {language}?',
        f"How do you say {text} in {language}?",
        f'What is "{text}" in {language}?',
        f"Say {text} in {language}.",
    )
    return Fact(f'In {language} you say "{translated}".', wordings)


def _emoji_fact(thing: str, emoji: str) -> Fact:
    wordings = (
        f"Show me a {thing} emoji.",
        f"Give me a {thing} emoji.",
        f"Send me the emoji for {thing}.",
        f"What is the emoji for {thing}?",
    )
    return Fact(f"Here you are: {emoji}", wordings)


def _amount_fact(asked: str, answer: str) -> Fact:
    wordings = (
        f"How many {asked}?",
        f"Tell me how many {asked}.",
        f"Do you know how many {asked}?",
    )
    return Fact(answer, wordings)


FACTS: tuple[Fact, ...] = (
    *(_capital_fact(country, city) for country, city in _CAPITALS.items()),
    *(_colour_fact(thing, colour) for thing, colour in _COLOURS.items()),
    *(_day_fact(day, _DAYS[(i + 1) % 7]) for i, day in enumerate(_DAYS)),
    *(_opposite_fact(word, opposite) for word, opposite in _OPPOSITES.items()),
    *(_phrase_fact(text, language, said) for (text, language), said in _PHRASES.items()),
    *(_emoji_fact(thing, emoji) for thing, emoji in _EMOJI.items()),
    *(_amount_fact(asked, answer) for asked, answer in _AMOUNTS.items()),
    *_SINGLE_FACTS,
)


def everyday(rng: Random) -> Exchange:
    """One fact, asked in one of its wordings."""
    fact = rng.choice(FACTS)
    prompt = _restyled(rng, rng.choice(fact.wordings))
    return question("everyday", prompt, prompt, fact.answer)


def _restyled(rng: Random, wording: str) -> str:
    """As people type: sometimes a lead-in, lower case only, or no mark at the end."""
    if wording.endswith("?") and rng.random() < 0.3:
        wording = rng.choice(_PREFIXES) + wording[0].lower() + wording[1:]
    if rng.random() < 0.2:
        wording = wording.lower()
    return wording[:-1] if rng.random() < 0.2 else wording
