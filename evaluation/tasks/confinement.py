"""Takes from the sandbox's process what a hostile answer could use: rights, files, and Python's own `eval`.

`sandbox_main` loads this file as a script, so it imports none of our modules. What the system does not offer (Landlock
before Linux 5.13, another user without root) is left out; the audit hook and the checks of text are always there.
"""

from __future__ import annotations

import ast
import ctypes
import keyword
import os
import re
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MEMORY = 2 * 2**30  # bytes of memory that one request may use in addition to the libraries
_FILES = 64
_NOBODY = 65534
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_READING = ("open", "os.listdir", "os.scandir")
_HARMLESS = frozenset(
    "array.__new__ builtins.id code.__new__ compile exec function.__new__ import marshal.loads object.__delattr__ "
    "object.__getattr__ object.__setattr__ sys._getframe sys._getframemodulename sys.unraisablehook".split()
)
"""Audit events of importing and computing; everything else is refused."""

_NO_NEW_PRIVILEGES = 38  # prctl
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # system calls, the same on all processors
_LANDLOCK_READ = 1 << 2 | 1 << 3  # files and folders
_LANDLOCK_FILES = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))  # by the version that has them
_LANDLOCK_NETWORK, _LANDLOCK_SCOPES = (4, 0b11), (6, 0b11)  # TCP; abstract sockets and signals
_CAPABILITIES_VERSION = 0x20080522

_OWN_EXPRESSIONS = ("basic_arithmetic", "bitwise_arithmetic", "gsm_symbolic")
"""Modules of reasoning-gym that evaluate expressions of their own making, and no answer."""
_TOKEN = re.compile(
    r"\s+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+|(?P<name>[^\W\d_]+)\d*|\*\*|<=|>=|==|!=|[-+*/^%()\[\]{},;:=<>!|&~]"
)
_FUNCTIONS = frozenset(
    "pi oo exp log ln sqrt cbrt root sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth "
    "asinh acosh atanh erf erfi gamma abs Abs sign floor ceiling Max Min factorial binomial Rational Eq Ne "
    "Integral".split()
)
_LONGEST_NAME = 2  # letters of a variable's name


def confine(libraries: Sequence[str]) -> None:
    """Confine this process for good, except for forks; `libraries` are imported already, and must stay readable."""
    forbid_evaluation()
    os.environ.clear()
    sys.dont_write_bytecode = True
    # Bounded memory, so that a power tower fails instead of filling the machine.
    _limit_resources(FSIZE=0, CORE=0, NOFILE=_FILES, MEMLOCK=0, AS=_used_memory() + MEMORY)
    drop_user([os.__file__, *(str(sys.modules[name].__file__) for name in libraries)])
    _restrict_system_calls(_library_folders())


def forbid_all_else() -> None:
    """Confine a process further that reads answers: it computes and imports, and starts no other."""
    _limit_resources(NPROC=0)
    sys.addaudithook(refuse_unknown_events(_library_folders()))


def is_expression(text: str) -> bool:
    """Whether a text is only numbers, short names, known functions and operators, or one name: hence no program."""
    position = len(text) if text.isalpha() and not keyword.iskeyword(text) else 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return False
        name = token["name"]
        if name is not None and len(name) > _LONGEST_NAME and name not in _FUNCTIONS:
            return False
        position = token.end()
    return True


def forbid_evaluation() -> None:
    """Let the imported scorers read literals where they would evaluate, and sympy parse only expressions."""
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym.") and not any(own in name for own in _OWN_EXPRESSIONS):
            vars(module)["eval"] = ast.literal_eval
    from sympy.parsing import sympy_parser

    stringify = sympy_parser.stringify_expr

    def check(text: str, *rest: Any) -> object:
        if not is_expression(text):
            raise SyntaxError("not an expression of numbers, variables and known functions")
        return stringify(text, *rest)

    sympy_parser.stringify_expr = check


def refuse_unknown_events(folders: Sequence[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: computing and importing are allowed, reading only below these folders, and nothing else."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _HARMLESS:
            return
        if event in _READING and not (event == "open" and (arguments[2] or 0) & _WRITE_FLAGS):
            path = arguments[0]
            if isinstance(path, str | bytes) and os.path.abspath(os.fsdecode(path)).startswith(tuple(folders)):
                return
        raise PermissionError(f"{event} is not allowed in the sandbox")

    return hook


def _library_folders() -> list[str]:
    return [os.path.join(os.path.abspath(path), "") for path in {*filter(None, sys.path), os.path.dirname(os.__file__)}]


def _used_memory() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else MEMORY


def _limit_resources(**limits: int) -> None:
    try:
        import resource

        for name, value in limits.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (value if hard < 0 else min(value, hard),) * 2)
    except (AttributeError, ImportError, OSError, ValueError):
        return


def _restrict_system_calls(folders: Sequence[str]) -> None:
    """Landlock: only these folders can be read, nothing written or executed; no TCP connections, no signals."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    files = sum(mask for since, mask in _LANDLOCK_FILES if version >= since)
    network, scopes = (mask if version >= since else 0 for since, mask in (_LANDLOCK_NETWORK, _LANDLOCK_SCOPES))
    rules = (ctypes.c_uint64 * 3)(files, network, scopes)
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, 8 * (1 + (version >= 4) + (version >= 6)), 0)
    if ruleset < 0:
        return
    for folder in filter(os.path.isdir, folders):
        opened = os.open(folder, os.O_PATH)
        libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", _LANDLOCK_READ, opened), 0)
        os.close(opened)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def drop_user(needed: Sequence[str]) -> None:
    """Become a user without rights where this is root, or drop its capabilities if that user could not read these."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    os.setgroups([])
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    readable = all(os.access(path, os.R_OK, effective_ids=True) for path in needed)
    os.seteuid(0)
    os.setegid(0)
    if readable:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    elif sys.platform.startswith("linux"):
        header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, none)
