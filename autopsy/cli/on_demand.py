"""Commands that are loaded and built when they are first asked for: a run needs one of them, or the names of all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

Built = Any  # typer's own click has no public name


class OnDemand(dict[str, Built]):
    """Commands by name, of the functions, or groups of more commands, that stand at `module:name`."""

    def __init__(self, places: Mapping[str, str], kind: type[TyperCommand]) -> None:
        super().__init__(dict.fromkeys(places))
        self._places = places
        self._kind = kind

    def __getitem__(self, name: str) -> Built:
        """Return the command, built."""
        built = super().__getitem__(name)
        if built is None:
            self[name] = built = _built(name, self._loaded(name), self._kind)
        return built

    def get(self, name: str, default: Built = None) -> Built:
        """Return the command, built, where there is one of that name."""
        try:
            return self[name]
        except KeyError:
            return default

    def values(self) -> Iterator[Built]:  # type: ignore[override]  # nobody asks for more than to go over them
        """Yield all of them, built."""
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Built]]:  # type: ignore[override]  # likewise
        """Yield all of them, built, by name."""
        return ((name, self[name]) for name in self)

    def summary(self, name: str) -> str:
        """Return a command's first sentence, without building it."""
        loaded = self._loaded(name)
        text = loaded.info.help if isinstance(loaded, typer.Typer) else inspect.getdoc(loaded)
        words = str(text).partition("\n\n")[0].split()
        end = next((number for number, word in enumerate(words, 1) if word.endswith(".")), len(words))
        return " ".join(words[:end])

    def _loaded(self, name: str) -> Any:  # noqa: ANN401 - a function or a Typer
        module, _, name_there = self._places[name].partition(":")
        return getattr(import_module(module), name_there)


def _built(name: str, loaded: Any, kind: type[TyperCommand]) -> Built:  # noqa: ANN401 - likewise
    if isinstance(loaded, typer.Typer):
        group = typer.main.get_group(loaded)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=kind)(loaded)
    return typer.main.get_command(alone)


class GroupOnDemand(TyperGroup):
    """A group of commands, each `module:name` of a function in `places` by the command's name."""

    kind: ClassVar[type[TyperCommand]] = TyperCommand
    places: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - what typer gives its groups
        super().__init__(**given)
        self.commands = self.on_demand = OnDemand(self.places, self.kind)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer's own click has no public name
        """Return the commands' names; typer's own way goes over the commands."""
        return list(self.places)
