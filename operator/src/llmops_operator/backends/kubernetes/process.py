"""The operator as a command: its arguments, its log, and how it ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from llmops_operator.backends.kubernetes.config import ENVIRONMENT, ConfigError, load
from llmops_operator.backends.kubernetes.leadership import LeadershipLost
from llmops_operator.backends.kubernetes.operator import MakeBackend, run

log = logging.getLogger(__name__)

CONFIG_UNUSABLE = 64
LEADERSHIP_LOST = 1
"""Another replica acts. The kubelet starts this one again, to stand by."""


def main(make_backend: MakeBackend, arguments: Sequence[str] | None = None) -> int:
    """Be the operator until it is told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m llmops_operator.backends.kubernetes", description="The llmops operator."
    )
    parser.add_argument("--config", help=f"the configuration file; default: ${ENVIRONMENT}")
    parser.add_argument("--log-format", choices=["json", "text"], default="json")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    asked = parser.parse_args(arguments)
    log_to_stderr(asked.log_format, asked.log_level)
    try:
        config = load(asked.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CONFIG_UNUSABLE
    code = 0
    try:
        asyncio.run(run(config, make_backend))
    except* LeadershipLost as lost:
        log.error("%s; this process ends", first_of(lost))
        code = LEADERSHIP_LOST
    return code


def first_of(error: BaseException) -> BaseException:
    """What a group of groups is about."""
    return first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def log_to_stderr(form: str, level: str) -> None:
    """One line for each record, as JSON or to be read."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("kopf", "aiohttp", "httpx", "mlflow", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
