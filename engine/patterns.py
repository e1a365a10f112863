"""Regular expressions that users and files give, matched within a limit of time.

Python's matcher tries one way after another, and ``(.+)+!`` has more of them on a path of 40 characters than can be tried
in a year. Nothing stops it in the process (it holds the interpreter's lock), so an expression that may have many ways is
first tried in a small process of its own, which the system ends after ``LIMIT`` seconds of its computing time. What has
passed there is then matched here. All of Python's syntax stays, and simple expressions never start a process.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from engine.errors import InputError
from engine.trial import Trial

LIMIT = 1.0  # seconds that one expression may take, for all names together
MOST_LENGTH = 4096  # characters of an expression
_MOST_WAYS = 1_000_000
_OVERHEAD = 1e-4  # seconds of a trial that matches at once: many names must not add up
_REPEATED_GROUP = re.compile(r"\)\s*[*+?{]|\(\?[a-zA-Z]*x")  # in verbose mode, more than space may stand between
_WORK = """
import re
def work(request):
    text, method, name = request
    compiled = re.compile(text)
    if name is not None:
        getattr(compiled, method)(name)
"""


class PatternError(InputError):
    """An expression is not valid, or takes too long to match. Only that of matching names the expression."""


@dataclass(frozen=True)
class Pattern:
    """A regular expression in Python's syntax with a limit of time; a stand-in for ``re.Pattern``.

    Raises PatternError if the text is not a valid expression or longer than ``MOST_LENGTH``; matching raises it if the
    expression takes longer than ``LIMIT``. ``label`` says there where the expression comes from.

    Example:
        >>> from engine.patterns import Pattern
        >>> Pattern(r"blocks/(\\d+)/.*").fullmatch("blocks/3/norm")[1]
        '3'
    """

    pattern: str
    label: str = field(default="", compare=False)
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", _compile(self.pattern))

    @property
    def groups(self) -> int:
        return self._compiled.groups

    def fullmatch(self, name: str) -> re.Match[str] | None:
        """Matches the whole name."""
        self._check_time("fullmatch", name)
        return self._compiled.fullmatch(name)

    def match(self, name: str) -> re.Match[str] | None:
        """Matches the beginning of the name."""
        self._check_time("match", name)
        return self._compiled.match(name)

    def _check_time(self, method: str, name: str) -> None:
        if max(1, len(name)) ** _choices(self.pattern) > _MOST_WAYS:
            try:
                _try(self.pattern, method, name)
            except PatternError as error:
                raise PatternError(f"{self.label or f'`{self.pattern}`'}: {error}") from None


@functools.lru_cache(maxsize=4096)
def _compile(text: str) -> re.Pattern[str]:
    if len(text) > MOST_LENGTH:
        raise PatternError(f"it has {len(text):,} characters; the limit is {MOST_LENGTH:,}")
    if len(text) > 256:  # some classes of characters take long to compile
        _try(text, "compile", None)
    try:
        return re.compile(text)
    except RecursionError:
        raise PatternError("its brackets are nested too deeply") from None
    except MemoryError:
        raise PatternError("it needs too much memory") from None
    except (re.error, OverflowError, ValueError) as error:  # OverflowError: a{99999999999}
        raise PatternError(str(error)) from None


@functools.lru_cache(maxsize=4096)
def _choices(text: str) -> int:
    """How many choices the matcher has, each of at most as many ways as the name has characters."""
    plain = re.sub(r"\\.", "x", text, flags=re.DOTALL)
    return 64 if _REPEATED_GROUP.search(plain) else min(64, sum(map(plain.count, "*+?{|")))


@functools.lru_cache(maxsize=65536)
def _try(text: str, method: str, name: str | None) -> None:
    """Raises PatternError unless the expression is done with a name within what is left of its limit."""
    left = LIMIT - _used.get(text, 0.0)
    took = _trial.run([text, method, name], left) if left > 0 else None
    if took is not None:
        if len(_used) > 4096:
            _used.clear()
        _used[text] = _used.get(text, 0.0) + max(0.0, took - _OVERHEAD)
        return
    _used[text] = LIMIT
    where = "" if name is None else f" to match against names such as {name if len(name) < 80 else name[:77] + '...'}"
    raise PatternError(
        f"it takes longer than {LIMIT:g} s{where}; avoid repeats inside of repeats, such as `(.+)+`, and write fewer `.*`"
    )


_used: dict[str, float] = {}
_trial = Trial(_WORK, options=("-I", "-S"))
