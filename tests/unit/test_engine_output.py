"""What is read out of the lines that vLLM prints when it ends."""

import asyncio

import pytest

from llmops_services.engine.output import Output


async def read(*lines: str) -> Output:
    stream = asyncio.StreamReader(limit=1000)
    stream.feed_data("".join(f"{line}\n" for line in lines).encode())
    stream.feed_eof()
    output = Output()
    await output.pass_on(stream)
    return output


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            [
                "(EngineCore pid=7) ERROR 11-26 16:44:39 [core.py:1101] Traceback (most recent call last):",
                '(EngineCore pid=7) ERROR 11-26 16:44:39 [core.py:1101]     raise ValueError("x: y")',
                "(EngineCore pid=7) ERROR 11-26 16:44:39 [core.py:1101] ValueError: Free memory on device is 3 GiB (of 80).",
                "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: Free memory on device is 3 GiB (of 80).",
        ),
        (
            [
                "\x1b[0;36m(APIServer pid=1)\x1b[0;0m pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "\x1b[0;36m(APIServer pid=1)\x1b[0;0m   Value error, max_model_len (99999) is greater than 1024.",
            ],
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig: "
            "Value error, max_model_len (99999) is greater than 1024.",
        ),
        (
            [
                "(VllmWorker-0 pid=56) ERROR 11-26 18:32:37 [multiproc_executor.py:953] AttributeError: no such attribute",
                "(EngineCore pid=41) ERROR 11-26 18:32:40 [core.py:1510] Exception: WorkerProc initialization failed.",
            ],
            "AttributeError: no such attribute",
        ),
        (["(EngineCore pid=41) Exception: it failed"], "Exception: it failed"),
        (["usage: api_server.py", "api_server.py: error: unrecognized arguments: --seeed"], "api_server.py: error: unrecognized arguments: --seeed"),
        (["INFO 11-26 16:44:39 [api_server.py:1] Starting vLLM", "Killed"], None),
        (["x" * 3000, "torch.OutOfMemoryError: CUDA out of memory."], "torch.OutOfMemoryError: CUDA out of memory."),
    ],
    ids=["the first process that failed", "pydantic's next line", "a worker before its engine", "no more than an exception", "argparse", "none", "after a line that is too long"],
)  # fmt: skip
async def test_the_first_exception_is_the_cause(lines: list[str], cause: str | None) -> None:
    assert (await read(*lines)).cause() == cause


async def test_every_line_is_passed_on_as_it_came(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    await read("\x1b[0;36m(APIServer pid=1)\x1b[0;0m one", "two")
    assert capfdbinary.readouterr().err == b"\x1b[0;36m(APIServer pid=1)\x1b[0;0m one\ntwo\n"
