"""Write REFERENCE.md and schemas/json from the code itself.

The reference has every parameter, field, method and code that users meet, and the recipes; in schemas/json is the JSON
Schema of each message.

    .venv/bin/python deploy/reference.py [--check]

With --check nothing is written: exit code 1 says that a file is not what would be written now.
"""

# ruff: noqa: INP001 - a program beside the packages, not one of them
import argparse
import ast
import builtins
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from griffe import Docstring, DocstringSectionKind
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typing_extensions import override

from schemas.errors import ErrorCode
from schemas.json_schema import json_schemas
from schemas.replies import MemberResponse, RunError, RunMetrics
from schemas.requests import BinaryPart, TextPart
from teamturn import (
    AgnoExecutor,
    BrokerUnavailable,
    ClientClosed,
    ClientError,
    ClientTimedOut,
    NoRoute,
    PublishNacked,
    ReplyUnreadable,
    RequestTooLarge,
    RunClient,
    RunReply,
    RunRequest,
    SessionSummary,
    SingleAgent,
    StartupError,
    Step,
    Team,
    Turn,
    UnknownRun,
    Workflow,
    executor,
)
from worker.executors.turn import MemberRun, PastRun, StepResult, Usage
from worker.operations import log_events
from worker.operations.log_events import LOG_EVENTS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "REFERENCE.md"
SCHEMAS = ROOT / "schemas" / "json"
RECIPES = ROOT / "deploy" / "examples" / "recipes.py"
RUN_THIS = ".venv/bin/python deploy/reference.py"

Shown = Callable[..., Any] | type
MADE: Final[tuple[Shown, ...]] = (Team, SingleAgent, Workflow, Step, SessionSummary, AgnoExecutor, executor, RunClient)
"""What users make, or call: shown with its parameters."""
GIVEN: Final[tuple[type, ...]] = (Turn, PastRun, MemberRun, StepResult, Usage)
"""What an executor is given: shown with its fields."""
SENT: Final[tuple[type, ...]] = (RunRequest, TextPart, BinaryPart, RunReply, MemberResponse, RunMetrics, RunError)
"""What crosses the broker: shown with its fields."""
RAISED: Final[tuple[type[Exception], ...]] = (
    *(ClientError, ClientTimedOut, NoRoute, PublishNacked, RequestTooLarge, ClientClosed, UnknownRun, ReplyUnreadable),
    *(BrokerUnavailable, StartupError),
)
"""What RunClient raises."""
SHOWN: Final[tuple[Shown, ...]] = (*MADE, *GIVEN, *SENT)
WITH_METHODS: Final = (RunClient, Turn)

AS_FOR_A_TEAM: Final = "As for a Team"
LONGEST_DEFAULT: Final = 48
EXAMPLE: Final = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
"""Code in a docstring: lines that are indented."""

INTRODUCTION: Final = """\
# Reference

Every parameter of what a module in `TEAMTURN_TEAMS` is made of, what an executor is given, the fields of requests and
replies, the error codes, what a worker logs; where the names of Agno's Team are; and six recipes to copy. How to run
all of it: [README.md](README.md).

Wherever pydantic-ai has a class for something, it is that class: its [own documentation](https://ai.pydantic.dev/)
says more of models, tools, toolsets, output types, usage limits and capabilities.

This file is written from the code by `deploy/reference.py`; change the docstrings there, not the text here.
"""

FROM_AGNO: Final = (
    ("`id`, `name`, `members`, `model`", "the same; a member is a pydantic-ai `Agent` or a `Team`"),
    ("`role`, of a team or an agent in a team", "`description=`; pydantic-ai: `Agent(description=…)`"),
    ("`instructions`, `expected_output`, `additional_context`, `system_message`, `description`", "`instructions=`"),
    ("`add_datetime_to_context`, `add_location_to_context`", "`instructions=` with a function of the turn"),
    ("`mode`", '`mode=`: "coordinate", "route" or "broadcast"; for "tasks", a `Workflow`'),
    ("`respond_directly=True`, `determine_input_for_members=False`", '`mode="route"`'),
    ("`delegate_to_all_members=True`", '`mode="broadcast"`; in "coordinate" the leader has a tool for it'),
    ("`add_history_to_context=True`, `num_history_runs`", "`history_runs=`, 3 by default; 0 for none"),
    ("`add_team_history_to_members`, `num_team_history_runs`", "`add_history_to_members=`; as many as the leader's"),
    (
        "`session_state`",
        "`session_state=`, for new sessions; a request's is merged over the stored one",
    ),
    ("`add_session_state_to_context`, `enable_agentic_state`", "the same"),
    ("`enable_session_summaries`, `add_session_summary_to_context`", "`session_summary=True`"),
    ("`session_summary_manager`", "`session_summary=SessionSummary(model=…, instructions=…)`"),
    ("`tools`", "`tools=`, and `toolsets=` for MCP servers and other toolsets of pydantic-ai's"),
    ("`tool_call_limit`", "`usage_limits=UsageLimits(tool_calls_limit=…)`"),
    ("`tool_choice`", "`model_settings=ModelSettings(tool_choice=…)`"),
    ("`tool_hooks`, `pre_hooks`, `post_hooks`", "`capabilities=`"),
    ("`output_schema`, `parser_model`, `use_json_mode`", "`output_type=`"),
    (
        "`retries`, `delay_between_retries`, `exponential_backoff`",
        "`model_retries=`, of each request to a model; the back-off is built in",
    ),
    ("`fallback_models`, `fallback_config`", "`fallback_models=`"),
    ("`reasoning`", "`model_settings=ModelSettings(thinking=…)`"),
    ("`dependencies`", "`RunContext.deps` is the `Turn`; anything else, a tool's own module holds"),
    ("`user_id`, `session_id`, `metadata`", "fields of the request; its `metadata` is kept with the session"),
    ("`db`", "`TEAMTURN_POSTGRES_URL`: one store for all teams"),
    ("`store_member_responses`", "always: they are runs of the session"),
    ("`knowledge`, `memory_manager`, `learning`", "a toolset of your own"),
    ("`get_member_information_tool`", "always: the leader is told who its members are"),
    ("`stream`, `stream_events`", "`stream: true` in the request, and the events of `{prefix}.events`"),
    ("`search_past_sessions`, `read_chat_history`, `skills`", "nothing; a tool of your own"),
    ("`share_member_interactions`, `compress_tool_results`, `input_schema`, `followups`", "nothing"),
)

MCP: Final = """\
### mcp

Tools of an MCP server, with `pip install 'teamturn[mcp]'`. The server is connected to for each turn; a prefix keeps its
tools apart from others of the same name.

```python
from pydantic_ai.mcp import MCPToolset
from teamturn import Team

prices = MCPToolset("http://localhost:8000/mcp", id="prices", headers={"X-Shop": "tea"})

clerk = Team(
    id="clerk",
    model="openai:gpt-5-mini",
    toolsets=[prices.prefixed("prices")],
    instructions="Look every price up.",
)
```"""


class Row(NamedTuple):
    """A parameter or a field."""

    name: str
    type: str
    default: str
    meaning: str


def reference() -> str:
    """Return all of REFERENCE.md."""
    sections = [
        *map(_section, SHOWN),
        _errors(),
        _error_codes(),
        _log_events(),
        _types(),
        _from_agno(),
        _recipes(RECIPES.read_text(encoding="utf-8")),
    ]
    contents = ", ".join(f"[{name}](#{name.lower().replace(' ', '-')})" for name in map(_heading_of, sections))
    contents = textwrap.fill(f"Contents: {contents}.", 120, break_on_hyphens=False)
    return "\n\n".join([INTRODUCTION + "\n" + contents, *sections]) + "\n"


def rows_of(shown: Shown) -> list[Row]:
    """Return the parameters of what users make, or the fields of what they are given or send."""
    return _fields(shown) if isinstance(shown, type) and shown in {*GIVEN, *SENT} else _parameters(shown)


def _section(shown: Shown) -> str:
    first = "parameter" if shown in MADE else "field"
    rows = map(_marked, rows_of(shown))
    parts = [f"## {shown.__name__}", _docstring(shown)[0], _table((first, "type", "default", "meaning"), rows)]
    if shown in WITH_METHODS:
        parts.append(_table(("method", "meaning"), _methods(shown)))
        parts += [_code("\n\n".join(examples))] if (examples := list(_examples(shown))) else []
    return "\n\n".join(parts)


def _heading_of(section: str) -> str:
    return section.partition("\n")[0].removeprefix("## ")


# What the code says.


def _docstring(shown: object) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and what its `Args:` say."""
    sections = Docstring(inspect.getdoc(shown) or "").parse("google", warnings=False)
    text = [section.value for section in sections if section.kind is DocstringSectionKind.text]
    arguments = [section.value for section in sections if section.kind is DocstringSectionKind.parameters]
    return "\n\n".join(text), {one.name: _line(one.description) for several in arguments for one in several}


def _parameters(shown: Shown) -> list[Row]:
    _, meanings = _docstring(shown)
    return [
        Row(one.name, _type(one.annotation), _default(one.default), _spelled_out(shown, one.name, meanings))
        for one in inspect.signature(shown).parameters.values()
    ]


def _spelled_out(shown: Shown, name: str, meanings: dict[str, str]) -> str:
    """Return what a parameter means, with the Team's text in place of the reference to it."""
    text = meanings.get(name, "")
    if not text.startswith(AS_FOR_A_TEAM):
        return text
    _, of_team = _docstring(Team)
    # An agent by itself is its own leader.
    meant = of_team[name].replace("the leader", "the agent") if shown is SingleAgent else of_team[name]
    rest = text.removeprefix(AS_FOR_A_TEAM).lstrip(".:; ")
    return f"{meant} {rest[0].upper()}{rest[1:]}" if rest else meant


def _fields(shown: type) -> list[Row]:
    meanings, annotations = _attribute_docstrings(shown), _annotations(shown)
    fields = [Row(name, _type(annotations[name]), default, meanings[name]) for name, default in _defaults(shown)]
    properties = [
        Row(name, _type(inspect.signature(found.fget).return_annotation), "", _line(_docstring(found)[0]))
        for name, found in vars(shown).items()
        if shown in GIVEN and isinstance(found, property) and found.fget
    ]
    return fields + properties


def _defaults(shown: type) -> Iterator[tuple[str, str]]:
    if issubclass(shown, BaseModel):
        for name, field in shown.model_fields.items():
            yield name, _default(field.default, field.default_factory)
    elif dataclasses.is_dataclass(shown):
        for one in dataclasses.fields(shown):
            if one.repr:  # the others are the worker's own
                factory = None if one.default_factory is dataclasses.MISSING else one.default_factory
                yield one.name, _default(one.default, factory)


def _methods(shown: Shown) -> Iterator[tuple[str, str]]:
    for name, found in vars(shown).items():
        if isinstance(found, FunctionType) and not name.startswith("_"):
            signature = inspect.signature(found)
            given = list(signature.parameters.values())[1:]
            shape = str(signature.replace(parameters=given)).replace("'", "")
            is_async = "await " if inspect.iscoroutinefunction(found) else ""
            yield f"`{is_async}{name}{shape}`", _line(EXAMPLE.sub("", _docstring(found)[0]))


def _examples(shown: Shown) -> Iterator[str]:
    """Yield the examples of a class's methods, each as it is to be copied."""
    for found in vars(shown).values():
        if isinstance(found, FunctionType):
            yield from (textwrap.dedent(code).strip("\n") for code in EXAMPLE.findall(_docstring(found)[0]))


@cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _class_body(shown: type) -> list[ast.stmt]:
    tree = _tree(sys.modules[shown.__module__])
    return next(one.body for one in tree.body if isinstance(one, ast.ClassDef) and one.name == shown.__name__)


def _annotations(shown: type) -> dict[str, str]:
    """Return the annotations of a class's fields, as they are written."""
    return {
        one.target.id: ast.unparse(one.annotation)
        for one in _class_body(shown)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }


def _attribute_docstrings(shown: type) -> dict[str, str]:
    return {name: _line(text) for name, text in _documented(_class_body(shown))}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield the names that are assigned to, each with the string after it."""
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield name, inspect.cleandoc(text)
                    case _:
                        yield name, ""
            case _:
                pass


# Its types.


def _type(annotation: object) -> str:
    """Return an annotation as it is written, without what is checked beside the type; a Literal as its values."""
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = ast.unparse(_Unchecked().visit(ast.parse(written, mode="eval")))
    return re.sub(r"\bLiteral\[([^\]]*)\]", lambda found: found[1].replace(", ", " | ").replace("'", '"'), text)


class _Unchecked(ast.NodeTransformer):
    """Takes the type out of each Annotated."""

    @override
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
                return first
            case _:
                return node


def _types() -> str:
    """Say what the names in the tables' types stand for, and where the others are imported from."""
    ours: dict[str, tuple[str, str]] = {}
    others: dict[str, set[str]] = {}
    wanted = [(name, sys.modules[one.__module__]) for one in SHOWN for row in rows_of(one) for name in _names(row.type)]
    seen = {one.__name__ for one in (*SHOWN, ErrorCode)} | set(dir(builtins))
    while wanted:
        name, module = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        home, original = _imports(module).get(name, (module.__name__, name))
        if home.partition(".")[0] in {"schemas", "worker"} and (alias := _alias(sys.modules[home], original)):
            ours[name] = alias
            wanted += [(inner, sys.modules[home]) for inner in _names(alias[0])]
        else:
            others.setdefault(home, set()).add(name)
    aliases = [(f"`{name}`", f"`{value}`", meaning) for name, (value, meaning) in sorted(ours.items())]
    imported = [(f"`{home}`", ", ".join(f"`{name}`" for name in sorted(others[home]))) for home in sorted(others)]
    told = "What the names in the tables' types stand for, and where the others are imported from."
    tables = _table(("name", "stands for", "meaning"), aliases), _table(("module", "names"), imported)
    return "\n\n".join(["## Types", told, *tables])


def _names(annotation: str) -> list[str]:
    return [one.id for one in ast.walk(ast.parse(annotation, mode="eval")) if isinstance(one, ast.Name)]


def _imports(module: ModuleType) -> dict[str, tuple[str, str]]:
    return {
        name.asname or name.name: (statement.module or "", name.name)
        for statement in ast.walk(_tree(module))
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }


def _alias(module: ModuleType, name: str) -> tuple[str, str] | None:
    """Return what a name stands for that is an enum (its values) or a type, and its docstring; None for a class."""
    value = getattr(module, name)
    if isinstance(value, type) and issubclass(value, Enum):
        return " | ".join(json.dumps(one.value) for one in value), _line(_docstring(value)[0])
    for statement in _tree(module).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=written) if found == name:
                return _type(ast.unparse(written)), _line(dict(_documented(_tree(module).body))[name])
            case _:
                pass
    return None


def _default(value: object, factory: Callable[..., Any] | None = None) -> str:
    if factory is not None:
        return repr(factory()) if factory in {dict, list} else f"{factory.__name__}()"
    if value in {inspect.Parameter.empty, dataclasses.MISSING, PydanticUndefined}:
        return "required"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str):
        return json.dumps(textwrap.shorten(value, LONGEST_DEFAULT, placeholder=" …"), ensure_ascii=False)
    return repr(value)


# The other sections.


def _errors() -> str:
    """Return what RunClient raises."""
    told = "Each is a `ClientError`, but the last two: those are raised only where its block is entered."
    rows = [(f"`{one.__name__}`", _line(_docstring(one)[0])) for one in RAISED]
    return "\n\n".join(["## What RunClient raises", told, _table(("class", "when"), rows)])


def _log_events() -> str:
    """Return what a worker logs, by what it is about."""
    told = _docstring(log_events)[0].partition("\n\n")[2]
    parts = ["## Log events", told]
    for about, events in LOG_EVENTS.items():
        rows = [(f"`{name}`", event.level, event.meaning) for name, event in events.items()]
        parts += [f"**{about}**", _table(("event", "level", "meaning"), rows)]
    return "\n\n".join(parts)


def _error_codes() -> str:
    """Return the codes under the comments that sort them."""
    lines = inspect.getsource(ErrorCode).splitlines()
    comments = {number: line.strip("# ") for number, line in enumerate(lines, start=1) if re.match(r"\s*# ", line)}
    body = ast.parse(inspect.getsource(ErrorCode)).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - for the type checker
    line_of = {
        target.id: one.lineno
        for one in body.body
        if isinstance(one, ast.Assign)
        for target in one.targets
        if isinstance(target, ast.Name)
    }
    meanings = _attribute_docstrings(ErrorCode)
    groups: dict[str, list[tuple[str, str]]] = {}
    for code in ErrorCode:
        group = comments[max(number for number in comments if number < line_of[code.name])]
        groups.setdefault(group, []).append((f"`{code.value}`", meanings.get(code.name, "")))
    tables = [f"{group}\n\n{_table(('code', 'meaning'), rows)}" for group, rows in groups.items()]
    return "\n\n".join(["## Error codes", _docstring(ErrorCode)[0], *tables])


def _from_agno() -> str:
    told = (
        "With `pip install 'teamturn[agno]'`, a Team, an Agent or a Workflow of Agno's in `TEAMTURN_TEAMS` is run as "
        "it is: see `AgnoExecutor`. Who would rather have a team of teamturn's own: this is what the parameters of "
        "Agno's `Team` are called here. Teams keep nothing themselves: whose a session is, its id and its metadata "
        "come with each request."
    )
    return "\n\n".join(["## From Agno", textwrap.fill(told, 120), _table(("Agno", "teamturn"), FROM_AGNO)])


def _recipes(source: str) -> str:
    """Return the recipes: each begins with a comment that begins with its name, and ends where the next one begins."""
    before, end, _ = source.partition("\nteams = [")
    head, *cut = re.split(r"^# (?!ruff)(\w+): ", before, flags=re.MULTILINE)
    if not end or not cut:
        raise ValueError(f"{RECIPES} has no recipes, or no list of teams at its end")
    imports = "".join(line for line in head.rpartition('"""')[2].splitlines(keepends=True) if line[:1] != "#")
    told = inspect.cleandoc(ast.get_docstring(ast.parse(source)) or "")
    where = (
        "They are in [deploy/examples/recipes.py](deploy/examples/recipes.py); the tests have each of them take turns, "
        "as it stands."
    )
    parts = ["## Recipes", told, textwrap.fill(where, 120), _code(imports)]
    for name, text in zip(cut[::2], cut[1::2], strict=True):
        comment = re.match(r".*(\n# .*)*", text)
        assert comment  # noqa: S101 - for the type checker: it matches any text
        parts += [f"### {name}", comment[0].replace("\n# ", "\n"), _code(text[comment.end() :])]
    return "\n\n".join([*parts, MCP])


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```"


# Markdown.


def _line(text: str) -> str:
    return " ".join(text.split())


def _marked(row: Row) -> tuple[str, str, str, str]:
    default = row.default if row.default in {"", "required"} else f"`{row.default}`"
    return f"`{row.name}`", f"`{row.type}`", default, row.meaning


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table that is read as well as it is rendered: all columns but the last one are of one width."""
    cells = [heads, *(tuple(cell.replace("|", r"\|") or "—" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    cells.insert(1, (*("-" * width for width in widths), "---"))
    return "\n".join(
        "| " + " | ".join([*(f"{cell:{width}}" for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]) + " |"
        for row in cells
    )


def main() -> None:
    """Write the files, or say which are out of date."""
    parser = argparse.ArgumentParser(description="Write REFERENCE.md and schemas/json from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    checking = parser.parse_args().check
    outdated = {path: text for path, text in _written().items() if _text_of(path) != text}
    if checking and outdated:
        sys.exit(f"{', '.join(path.name for path in outdated)} is out of date: run {RUN_THIS}")
    for path, text in outdated.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _written() -> dict[Path, str]:
    schemas = {
        SCHEMAS / f"{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in json_schemas().items()
    }
    return {REFERENCE: reference()} | schemas


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    main()
