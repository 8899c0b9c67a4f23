"""What `llmops run` shows when everything is ready: answers with and without retrieval, where they are from, and addresses."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llmops_operator.backends.local.daemon import Serving
from llmops_operator.cli.ask import url_of
from llmops_operator.cli.chat import Answer, Question, source_line, stream
from llmops_operator.cli.lineage import as_trees
from llmops_operator.cli.tables import dig

BESIDE = 100
"""From so many columns on two answers stand beside one another."""
RECORDED_SECONDS = 30.0
"""Lineage is written beside the work; so long it is waited for before it is shown."""
MAX_TOKENS = 160


class Show:
    """Shows the services of a folder, the first of which is asked."""

    def __init__(self, console: Console, serving: Serving, services: Sequence[Mapping[str, Any]]) -> None:
        self._console, self._serving, self._services = console, serving, services
        self._live = console.is_terminal and not console.is_dumb_terminal and console.width >= BESIDE

    async def all(self, questions: Sequence[str], *, once: bool) -> None:
        """Ask, show the lineage of the last answer, and say the addresses. Raises `CommandError`."""
        answer: Answer | None = None
        if self._services and not dig(self._services[0], "spec", "suspend"):
            for number, question in enumerate(questions, start=1):
                self._console.print(
                    Rule(Text(f"Question {number} of {len(questions)}"), align="left", characters="─"), width=80
                )
                self._console.print(Text(question, style="bold"))
                answer = await self._both(question)
        if answer is not None and answer.id:
            await self._lineage(answer.id)
        self._addresses(questions[0] if questions else "What can you tell me?", once=once)

    async def _both(self, text: str) -> Answer:
        service = self._services[0]
        url, name = url_of(dict(service), "start `llmops up`"), service["metadata"]["name"]
        with_rag = Question(url, name, text, max_tokens=MAX_TOKENS)
        without = Question(url, name, text, {"enabled": False}, MAX_TOKENS)
        if not dig(service, "spec", "indexes"):
            return await self._print("", without)
        if self._live:
            return await self._beside(with_rag, without)
        answer = await self._print("with retrieval:", with_rag)
        await self._print("the same question without retrieval:", without)
        return answer

    async def _print(self, heading: str, question: Question) -> Answer:
        """The answer as it comes, below what was shown before."""
        if heading:
            self._console.print(Text(f"\n{heading}", style="dim"))
        shown, answer = 0, Answer()
        async for answer in stream(question):
            self._console.print(Text(answer.text[shown:]), end="")
            shown = len(answer.text)
        self._console.print()
        for citation in answer.citations:
            self._console.print(Text(f"  {source_line(citation)}", style="cyan"))
        return answer

    async def _beside(self, left: Question, right: Question) -> Answer:
        answers = [Answer(), Answer()]
        with Live(_pair(answers), console=self._console, refresh_per_second=8) as live:
            for place, question in enumerate((left, right)):
                async for answer in stream(question):
                    answers[place] = answer
                    live.update(_pair(answers))
        return answers[0]

    async def _lineage(self, answer_id: str) -> None:
        from llmops_operator.controllers.lineage_graph.graph import Reference, Unknown, Unreachable
        from llmops_operator.controllers.lineage_graph.reader import LineageReader

        self._console.print(Rule(Text("What the last answer was made from"), align="left", characters="─"), width=80)
        reader = LineageReader(self._serving.env["MLFLOW_TRACKING_URI"])
        loop = asyncio.get_running_loop()
        until = loop.time() + RECORDED_SECONDS
        while True:
            why = "its parts are still being written to MLflow"
            found = None
            try:
                found = await asyncio.to_thread(reader.origins, Reference("answer", answer_id))
            except (Unknown, Unreachable) as error:
                why = str(error)
            if found is not None and not any(
                "not recorded" in node.facts.get("status", "") for node in found.nodes.values()
            ):
                break
            if loop.time() > until:
                self._console.print(Text(f"not complete: {why}. Later: llmops lineage answer/{answer_id}"))
                break
            await asyncio.sleep(1.0)
        for tree in as_trees(found, uses=False) if found is not None else ():
            self._console.print(tree, soft_wrap=not self._console.is_terminal)

    def _addresses(self, question: str, *, once: bool) -> None:
        self._console.print(Rule(Text("Addresses"), align="left", characters="─"), width=80)
        for service in self._services:
            if url := dig(service, "status", "url"):
                name = service["metadata"]["name"]
                self._say(f"{name} answers at {url} (OpenAI's API, model {name}):")
                self._say(f"  {curl_line(url, name, question)}")
        self._say(f"MLflow is at {self._serving.env['MLFLOW_TRACKING_URI']}")
        self._say("everything is stopped now: without --once it goes on" if once else "Ctrl-C stops everything")

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def _pair(answers: Sequence[Answer]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
    table.add_column("with retrieval", ratio=3, header_style="dim")
    table.add_column("without retrieval", ratio=2, header_style="dim")
    sources = [Text(source_line(citation), style="cyan") for citation in answers[0].citations]
    table.add_row(Group(Text(answers[0].text), *([Text(), *sources] if sources else [])), Text(answers[1].text))
    return table


def curl_line(url: str, service: str, question: str) -> str:
    """A line for a shell that asks the service."""
    body = json.dumps({"model": service, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    return f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"
