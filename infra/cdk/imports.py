"""What a handler imports sooner or later, read from our source: at the top of a module or inside a function, but only what its own calls can reach.

Standard library only; nothing is imported to find out. A module counts as a whole, but for `functions/wiring.py`: it knows every adapter, so of it
counts what a module asks it for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("heliograph", "adapters", "functions")
WIRING: Final = "functions.wiring"


@dataclass(frozen=True, slots=True)
class Reached:
    """Our modules by their dotted names, and the import statements of those that are neither ours nor the standard library's."""

    modules: frozenset[str]
    statements: frozenset[str]

    @property
    def packages(self) -> frozenset[str]:
        """The top-level names that the statements import."""
        return frozenset(statement.split()[1].partition(".")[0] for statement in self.statements)


@cache
def reached_by(handler: str, root: Path = ROOT) -> Reached:
    """What this handler string (`functions.signal.handler.handler`) can reach in the source below `root`. ValueError for a name that is not there."""
    statements: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(handler.rpartition(".")[0], "")]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for wanted in _imports(root, *node):
            if isinstance(wanted, str):
                statements.add(wanted)
            else:
                waiting.append(wanted)
    return Reached(frozenset(module for module, _ in seen), frozenset(statements))


def _imports(root: Path, module: str, name: str) -> Iterator[str | tuple[str, str]]:
    """The statements that import others' modules, and (module, name) of ours; the name is empty but for a function of the wiring."""
    for part in _parts(root, module, name):
        match part:
            case ast.Import(names=names):
                for alias in names:
                    yield from _wanted(alias.name, f"import {alias.name}")
            case ast.ImportFrom(module=str() as source, names=names, level=0):
                for alias in names:
                    is_module = source in OURS or _file(root, f"{source}.{alias.name}") is not None
                    yield from _wanted(f"{source}.{alias.name}" if is_module else source, f"from {source} import {alias.name}")
            case ast.ImportFrom():
                raise ValueError(f"{module} imports relatively; name the package")
            case ast.Attribute(value=ast.Name(id="wiring"), attr=attribute):
                yield WIRING, attribute
            case ast.Name(id=called) if module == WIRING and called != name and called in _functions(_tree(root, WIRING)):
                yield WIRING, called


def _wanted(module: str, statement: str) -> Iterator[str | tuple[str, str]]:
    top = module.partition(".")[0]
    if top in OURS:
        yield module, ""
    elif top not in sys.stdlib_module_names:
        yield statement


def _parts(root: Path, module: str, name: str) -> Iterator[ast.AST]:
    """Every node that runs: of the whole module, of the wiring's top level, or of one function of the wiring."""
    tree = _tree(root, module)
    if name:
        if name not in _functions(tree):
            raise ValueError(f"{module} has no function {name}")
        return _running([_functions(tree)[name]])
    if module == WIRING:
        return _running(node for node in tree.body if not isinstance(node, ast.FunctionDef))
    return _running(tree.body)


def _running(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _running(node.orelse)
        else:
            yield node
            yield from _running(ast.iter_child_nodes(node))


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@cache
def _tree(root: Path, module: str) -> ast.Module:
    path = _file(root, module)
    if path is None:
        raise ValueError(f"{module} is none of our modules")
    return ast.parse(path.read_text())


def _file(root: Path, module: str) -> Path | None:
    if module.partition(".")[0] not in OURS:
        return None
    path = root / module.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)
