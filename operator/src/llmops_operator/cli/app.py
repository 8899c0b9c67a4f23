"""The commands and their options. Bodies are short: the work is in the modules that they import when they are called."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.where import Where

UsageError: Any = typer.BadParameter.__mro__[1]
"""click's; typer has it under another name from version to version."""

GLOBAL = {name: name for name in ("--home", "--namespace", "--context", "--kubeconfig")} | {"-n": "--namespace"}


class _Group(TyperGroup):
    """Takes the global options wherever they stand, as kubectl does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        front: list[str] = []
        rest: list[str] = []
        left = list(args)
        while left:
            word = left.pop(0)
            if word == "--":
                rest += [word, *left]
                break
            name, equals, value = word.partition("=")
            if name not in GLOBAL:
                rest.append(word)
            elif equals:
                front += [GLOBAL[name], value]
            else:
                front += [GLOBAL[name], *left[:1]]
                del left[:1]
        return super().parse_args(ctx, [*front, *rest])


app = typer.Typer(
    cls=_Group,
    name="llmops",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Bring your own data into a language model: training, indexing and answering as three kinds of objects.",
    epilog="--home, --context, --kubeconfig and -n may stand anywhere in the line. `llmops COMMAND --help` tells more.",
)


def _say(text: str) -> None:
    print(text, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.callback()
def _globals(
    ctx: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(envvar="LLMOPS_HOME", help="On this machine: the folder that everything is kept in (.llmops)."),
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; default: default.")] = None,
    context: Annotated[str | None, typer.Option(help="In a cluster: this context of the kubeconfig.")] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="In a cluster: this kubeconfig instead of KUBECONFIG or ~/.kube/config.")
    ] = None,
) -> None:
    closing = ctx.with_resource(ExitStack())
    ctx.obj = Where(closing, home, namespace, context, kubeconfig, plugin=bool(ctx.obj), warn=_warn)


Files = Annotated[
    list[str],
    typer.Option("--filename", "-f", help="Manifest, folder with manifests, or - for standard input; may be repeated."),
]
Objects = Annotated[list[str], typer.Argument(metavar="TYPE [NAME…] | TYPE/NAME…", show_default=False)]
OneObject = Annotated[list[str], typer.Argument(metavar="TYPE/NAME", show_default=False)]


@app.command()
def up(ctx: typer.Context) -> int:
    """Bring about what was applied, until Ctrl-C.

    Starts MLflow, the vector store and whatever the objects ask for; Ctrl-C stops every process.
    """
    from llmops_operator.cli.up import up as start

    where: Where = ctx.obj
    return start(where.own_home())


@app.command()
def down(ctx: typer.Context) -> None:
    """Stop everything that `llmops up` has started.

    Also what a daemon that was killed has left running.
    """
    from llmops_operator.cli.up import down as stop

    where: Where = ctx.obj
    _say("stopped" if stop(where.own_home()) else "nothing was running")


@app.command()
def run(
    ctx: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Stop everything when all is done and shown.")] = False,
    timeout: Annotated[str, typer.Option(help="Give up after, like 30m or 2h; 0 is never.")] = "0",
) -> int:
    """Bring about a folder of manifests and ask it.

    Applies the *.yaml of DIR, waits until all is ready, asks the questions of DIR/ask.txt (one a line) and shows the
    answers, their sources and their lineage; then serves until Ctrl-C. What is unchanged is not done again.
    """
    from llmops_operator.cli.run import run as bring_about
    from llmops_operator.cli.waiting import seconds

    where: Where = ctx.obj
    return bring_about(where.own_home(), folder, namespace=where.asked, once=once, timeout=seconds(timeout) or None)


@app.command()
def apply(ctx: typer.Context, filename: Files) -> None:
    """Save manifests; `llmops up` acts on them."""
    from llmops_operator.cli import write

    where: Where = ctx.obj
    home = where.own_home(f"kubectl apply -f {filename[0]}")
    write.apply(home, where.asked, filename, say=_say, warn=_warn)


@app.command()
def validate(ctx: typer.Context, filename: Files) -> None:
    """Check manifests and the data they point at, offline."""
    from llmops_operator.cli import write

    where: Where = ctx.obj
    write.validate(where.asked, filename, say=_say, warn=_warn)


@app.command()
def get(
    ctx: typer.Context,
    objects: Objects = ["all"],  # noqa: B006 - typer reads it, nothing writes it
    output: Annotated[str | None, typer.Option("--output", "-o", help="wide, yaml, json or name.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and print each change.")] = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Labels, like team=hr,stage!=test.")] = "",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
) -> None:
    """Show objects as a table, YAML or JSON."""
    from llmops_operator.cli.get import get as show
    from llmops_operator.cli.kinds import parse_targets
    from llmops_operator.cli.selectors import parse_selector

    where: Where = ctx.obj
    show(
        where.place,
        None if all_namespaces else where.namespace,
        parse_targets(objects),
        form=output,
        watch=watch,
        matches=parse_selector(selector),
        say=_say,
        warn=_warn,
    )


@app.command()
def describe(ctx: typer.Context, objects: Objects) -> None:
    """Show everything about an object.

    Spec, status, conditions, attempts, events, and where its logs are.
    """
    from llmops_operator.cli.describe import describe_all
    from llmops_operator.cli.kinds import parse_targets

    where: Where = ctx.obj
    _say(describe_all(where.place, where.namespace, parse_targets(objects)))


@app.command()
def delete(
    ctx: typer.Context,
    objects: Annotated[list[str] | None, typer.Argument(metavar="TYPE NAME… | TYPE/NAME…", show_default=False)] = None,
    filename: Annotated[
        list[str] | None, typer.Option("--filename", "-f", help="The objects of these manifests.")
    ] = None,
    ignore_not_found: Annotated[bool, typer.Option(help="It is fine when there is no such object.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when they are gone.")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait, like 30s, 5m or 1h; 0 is for ever.")] = "0",
) -> None:
    """Delete objects and what runs for them.

    Runs and models in MLflow stay.
    """
    from llmops_operator.cli import write
    from llmops_operator.cli.waiting import seconds

    where: Where = ctx.obj
    home = where.own_home(f"kubectl delete {' '.join(objects or [f'-f {name}' for name in filename or ()])}")
    write.delete(
        home,
        where.asked,
        objects or [],
        filename or [],
        ignore_not_found=ignore_not_found,
        wait=wait,
        timeout=seconds(timeout) or None,
        say=_say,
        warn=_warn,
    )


@app.command()
def wait(
    ctx: typer.Context,
    objects: Objects,
    for_: Annotated[str, typer.Option("--for", help="condition=TYPE, condition=TYPE=STATUS, delete or create.")],
    timeout: Annotated[str, typer.Option(help="How long to wait, like 30s, 5m or 1h; 0 looks once.")] = "30s",
) -> None:
    """Wait until objects have a condition, or are gone."""
    from llmops_operator.cli.kinds import parse_targets
    from llmops_operator.cli.waiting import seconds, wait_for

    where: Where = ctx.obj
    wait_for(where.place, where.namespace, parse_targets(objects), for_, timeout=seconds(timeout), say=_say)


@app.command()
def events(
    ctx: typer.Context,
    for_: Annotated[str | None, typer.Option("--for", help="Of one object, TYPE/NAME.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and print what happens.")] = False,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
) -> None:
    """Show what happened."""
    from llmops_operator.cli.events import show
    from llmops_operator.cli.kinds import parse_object

    where: Where = ctx.obj
    target = parse_object(for_) if for_ else None
    show(where.place, None if all_namespaces else where.namespace, target, watch=watch, say=_say, warn=_warn)


@app.command()
def logs(
    ctx: typer.Context,
    objects: OneObject,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the program ends.")] = False,
    role: Annotated[str | None, typer.Option(help="trainer, indexer, engine or gateway.")] = None,
    tail: Annotated[int, typer.Option(help="The last so many lines; -1 is all.")] = -1,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the attempt before.")] = False,
) -> None:
    """Print what an object's programs have written."""
    from llmops_operator.cli.kinds import parse_one
    from llmops_operator.cli.logs import show

    where: Where = ctx.obj
    show(
        where.place,
        where.namespace,
        parse_one(objects),
        role=role,
        tail=tail,
        follow_on=follow,
        previous=previous,
        write=_write,
    )


@app.command()
def ask(
    ctx: typer.Context,
    service: Annotated[str, typer.Argument(metavar="SERVICE", show_default=False)],
    question: Annotated[list[str], typer.Argument(metavar="QUESTION", show_default=False)],
    no_rag: Annotated[
        bool, typer.Option("--no-rag", help="Without retrieval: what the model knows by itself.")
    ] = False,
    top_k: Annotated[int | None, typer.Option(min=1, help="So many chunks at most.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    output: Annotated[str | None, typer.Option("--output", "-o", help="json")] = None,
) -> None:
    """Ask a RagService; sources come along."""
    from llmops_operator.cli.ask import ask as put

    where: Where = ctx.obj
    rag = {**({"enabled": False} if no_rag else {}), **({} if top_k is None else {"topK": top_k})}
    text = " ".join(question)
    put(where.place, where.namespace, service, text, rag=rag, max_tokens=max_tokens, form=output, write=_write)


@app.command()
def lineage(
    ctx: typer.Context,
    thing: Annotated[str | None, typer.Argument(metavar="OBJECT", show_default=False)] = None,
    uses: Annotated[str | None, typer.Option("--uses", help="The other way round: what was made from this.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="tree, json or dot.")] = "tree",
) -> None:
    """Show what something was made from, or into.

    OBJECT is tj/NAME, ei/NAME, rag/NAME, answer/ID, model/NAME[/VERSION] or dataset/NAME.
    """
    from llmops_operator.cli.lineage import show

    where: Where = ctx.obj
    if (thing is None) == (uses is None):
        raise CommandError("say what: either OBJECT, or --uses OBJECT")
    show(where.place, where.namespace, thing or uses or "", uses=uses is not None, form=output, say=_say)


@app.command()
def push(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="DIR|FILE…", show_default=False)],
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
) -> None:
    """Send files that manifests name to MLflow; print the manifests.

    `llmops push DIR | kubectl apply -f -`: what a cluster cannot read (file://) becomes what it can (artifact://).
    """
    from llmops_operator.cli.push import push as send

    where: Where = ctx.obj
    send(where.for_a_cluster, names, form=output, write=_write, warn=_warn)


@app.command()
def version() -> None:
    """Show versions of program and API."""
    from importlib.metadata import version as installed

    _say(f"llmops {installed('llmops')}, API llmops.dev/v1alpha1, Python {sys.version.split()[0]}")


def execute(arguments: list[str] | None = None, *, plugin: bool = False) -> int:
    """Run one command line; the exit code. What a person did wrong is one line a fault on stderr, never a traceback.

    As kubectl's `plugin` it is about the cluster unless it says --home.
    """
    try:
        outcome = app(arguments, prog_name="kubectl llmops" if plugin else "llmops", standalone_mode=False, obj=plugin)
    except CommandError as error:
        for line in str(error).splitlines():
            _warn(f"error: {line}")
        return 1
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "llmops"
        _warn(f"error: {error.format_message()}\nsee `{path} --help`")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Who reads has gone, as in `llmops get | head -1`. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return outcome if isinstance(outcome, int) else 0
