"""Where chat templates run: jinja set up as transformers does, with limits.

A template comes with a model and is foreign code. It reaches no files and no Python, and its time and memory
are counted (`budget`): in each turn of a loop and each call, and before each text that could become long.
"""

__all__ = ["Limited", "running"]

import contextlib
import datetime
import functools
import json
import operator
from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2.visitor import NodeTransformer

from doge_export.core.tokenizer.budget import CALL, ELEMENT, Budget, TooMuch, shallow, weigh
from doge_export.core.tokenizer.growth import comparison, filter_size, method_size, operator_size

_BUDGET: ContextVar[Budget] = ContextVar("budget")
_LOREM = 100  # what `lipsum` may be asked for
_FORMAT = 1000  # characters of a date's format

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
#: jinja's tests that look at the whole of what they are given -> the comparison that costs as much.
_TESTS = (
    dict.fromkeys(("eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<="), "eq")
    | dict.fromkeys(("gt", "greaterthan", ">", "ge", ">="), "eq")
    | dict.fromkeys(("in", "upper", "lower"), "in")
)
_OWNERS = (str, bytes, int, float, list, tuple, dict)


@contextlib.contextmanager
def running(inputs: Any) -> Generator[None]:
    """Let templates run on `inputs` with a budget of their own."""
    token = _BUDGET.set(Budget(weigh(inputs)))
    try:
        yield
    finally:
        _BUDGET.reset(token)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own convention

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """jinja's `namespace`, without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No parameter is called self: a template may give it that name.
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def template_contents(self) -> Any:
        """Return a namespace's values, for `weigh`."""
        return object.__getattribute__(self, "_Namespace__attrs")


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore first: {name!r}")


class _Limits(NodeTransformer):
    """Puts the counting into a template: `spend` at the beginning of whatever runs more than once, and
    functions of the environment for what jinja writes out as Python."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._counted(node)
        if node.test is not None:
            node.test = nodes.And(_call("spend", nodes.Const(ELEMENT * 4)), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self._counted(node)
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def _counted(self, node: Any) -> None:
        size = ELEMENT * sum(1 for _ in node.find_all(nodes.Node))
        size += sum(len(each.data) for each in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        count = nodes.ExprStmt(_call("spend", nodes.Const(size + ELEMENT)))
        node.body.insert(0, count.set_lineno(node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) == 1:
            (operand,) = node.ops
            return _call("compared", nodes.Const(operand.op), node.expr, operand.expr)
        node.expr = _call("measured", node.expr)
        for operand in node.ops:
            operand.expr = _call("measured", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("sliced", node.node, *(part or nodes.Const(None) for part in parts))

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call("measured", node.key)
        return node


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


class Limited(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates. What it runs must run inside `running`.

    A template that passes a limit raises TooMuch.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        # Without the optimizer nothing of a template runs while it is compiled.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_written,
        )
        self.filters["tojson"] = _tojson  # jinja's own escapes HTML
        self.filters = {name: _limited_filter(name, each) for name, each in self.filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {**tests, **{name: _limited_test(like, tests[name]) for name, like in _TESTS.items()}}
        lipsum: Any = self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            "lipsum": functools.partial(_lipsum, lipsum),
        }
        self.spend = _spend
        self.joined = _joined
        self.compared = _compared
        self.measured = _measured
        self.sliced = _sliced
        self._ours = {id(each) for each in (_spend, _joined, _compared, _measured, _sliced)}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _Limits().visit(source)
        return super()._generate(source, *args, **kwargs)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if id(__obj) in __self._ours:
            return __context.call(__obj, *args, **kwargs)
        budget = _BUDGET.get()
        budget.spend(CALL)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _OWNERS):
            if __obj.__name__ == "join":
                args = tuple(map(_list, args))
            budget.allow(method_size(owner, __obj.__name__, args, kwargs, budget.longest))
        elif not isinstance(__obj, jinja2.runtime.Macro):  # a macro takes its arguments as they are
            budget.allow(weigh([*args, *kwargs.values()], budget.longest))
        result = super().call(__context, __obj, *args, **kwargs)
        budget.spend(shallow(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.allow(operator_size(operator, left, right, budget.longest))
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, _measured(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, mapped = value.__self__, value.__name__ == "format_map"
        escape = getattr(text, "escape", None)
        formatter = _Formatter(self) if escape is None else _EscapeFormatter(self, escape=escape)

        def form(*args: Any, **kwargs: Any) -> str:
            # Braces that stand for themselves are read one by one, too.
            _BUDGET.get().spend(ELEMENT * (text.count("{") + text.count("}")))
            named = args[0] if mapped and args else kwargs
            formatted: str = type(text)(formatter.vformat(text, () if mapped else args, named))
            return formatted

        return form


class _Counted:
    """The fields of `str.format`, counted."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        numbers = _numbers(format_spec)
        if any(len(number) > 4 for number in numbers):
            raise TooMuch("it asks for a width of more than 9,999")
        budget = _BUDGET.get()
        budget.written(value)
        budget.spend(sum(map(int, numbers)) + CALL)
        return super().format_field(value, format_spec)  # type: ignore[misc]


class _Formatter(_Counted, jinja2.sandbox.SandboxedFormatter):
    pass


class _EscapeFormatter(_Counted, jinja2.sandbox.SandboxedEscapeFormatter):
    pass


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
    """`value`, which the template is about to write."""
    budget = _BUDGET.get()
    if isinstance(value, str):
        budget.allow(len(value))
    else:
        budget.written(value)
    return value


def _spend(units: int) -> bool:
    _BUDGET.get().spend(units)
    return True


@jinja2.pass_eval_context
def _joined(eval_context: Any, *parts: Any) -> str:
    budget = _BUDGET.get()
    budget.allow(weigh(parts, budget.longest))
    join = jinja2.runtime.markup_join if eval_context.autoescape else jinja2.runtime.str_join
    return join(parts)


def _compared(name: str, left: Any, right: Any) -> Any:
    budget = _BUDGET.get()
    budget.allow(comparison(name, left, right, budget.longest))
    return _COMPARE[name](left, right)


def _measured(value: Any) -> Any:
    if not isinstance(value, int | float | None):
        _BUDGET.get().written(value)
    return value


def _sliced(value: Any, *bounds: Any) -> Any:
    _BUDGET.get().spend(shallow(value) + ELEMENT)
    return value[slice(*bounds)]


#: Filters that go through all of what comes one by one.
_READERS = frozenset(("batch", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique"))
_PASSED = (jinja2.runtime.Context, nodes.EvalContext, jinja2.Environment)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with what says that it wants the context
    def limited(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(CALL)
        passed = args[:1] if args and isinstance(args[0], _PASSED) else ()
        arguments = list(args[len(passed) :])
        if name in _READERS:
            arguments = list(map(_list, arguments))
        budget.allow(filter_size(name, arguments, kwargs, budget.longest))
        result = function(*passed, *arguments, **kwargs)
        budget.spend(shallow(result))
        return result

    return limited


def _limited_test(like: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def limited(*args: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(CALL)
        budget.allow(comparison(like, *args, budget.longest) if len(args) == 2 else shallow(args[0]))
        return function(*args)

    return limited


def _list(value: Any) -> Any:
    """Return an iterator's values as a list, so that its size is known; a loop stays a loop."""
    if isinstance(value, Iterator) and not isinstance(value, jinja2.runtime.LoopContext):
        return list(value)
    return value


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > _FORMAT or any(len(number) > 4 for number in _numbers(form)):
        raise TooMuch("it asks for a date in too long a form")
    return datetime.datetime.now().strftime(form)


def _numbers(text: str) -> list[str]:
    return "".join(char if char.isdecimal() else " " for char in text).split()


def _lipsum(function: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    if any(isinstance(each, int) and abs(each) > _LOREM for each in (*args, *kwargs.values())):
        raise TooMuch(f"it asks for more than {_LOREM:,} words")
    _BUDGET.get().spend(1 << 19)
    return function(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
