"""Documents to search, and questions about them: made up, seeded, and as many as are wanted."""

from __future__ import annotations

import random
from pathlib import Path

import load

WORDS = """invoice travel laptop contract holiday backup server release customer pension password meeting office training safety
budget warranty shipping printer certificate network patch incident review bonus parking visitor battery sensor firmware archive
calendar supplier discount refund insurance relocation mentor survey audit""".split()  # noqa: SIM905


def write_documents(folder: Path, count: int, *, seed: int) -> None:
    """Documents of one chunk each, about sixty words."""
    chance = random.Random(seed)
    folder.mkdir()
    for number in range(count):
        first, second, third = chance.sample(WORDS, 3)
        sentences = [
            f"The {first} of team {number} needs a {chance.choice(WORDS)} before the {chance.choice(WORDS)} in week {chance.randint(1, 52)}."
            for _ in range(5)
        ]
        text = f"# {first.title()} and {second} {number}\n\n## Rules for {third}\n\n" + " ".join(sentences) + "\n"
        (folder / f"{number:05}.md").write_text(text)


def questions(count: int = 4000) -> list[str]:
    """Questions, each another one: nothing is answered from a cache."""
    chance = random.Random(2)
    return [f"Which {chance.choice(WORDS)} does team {n} need before the {chance.choice(WORDS)}?" for n in range(count)]


def queries() -> list[bytes]:
    """Bodies for /v1/retrieve."""
    return [f'{{"query": "{question}"}}'.encode() for question in questions()]


def chats(*, stream: bool, rag: bool = True) -> list[bytes]:
    """Bodies for chats, each with another question."""
    return [load.chat_body("chat", question, stream=stream, rag={"enabled": rag}) for question in questions()]
