"""Second names of collections, switched all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from .errors import StoreError, malformed, not_found
from .files import write_durably


def read_aliases(path: Path) -> dict[str, str]:
    """Alias to collection, as last written; empty where nothing was."""
    return dict(orjson.loads(path.read_bytes())) if path.exists() else {}


def write_aliases(path: Path, aliases: Mapping[str, str]) -> None:
    """Replace the file durably: after a crash it holds the old aliases or the new ones."""
    write_durably(path, orjson.dumps(dict(aliases), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def changed_aliases(aliases: Mapping[str, str], actions: Any, collections: Mapping[str, Any]) -> dict[str, str]:
    """What the aliases are after `actions`, applied in order. Raises `StoreError` at the first one that cannot be applied.

    As on a server, deleting an alias that is not there is no error, and creating one that is moves it.
    """
    if not isinstance(actions, list):
        raise malformed("missing field `actions`")
    changed = dict(aliases)
    for action in actions:
        match action:
            case {"create_alias": {"collection_name": str(collection), "alias_name": str(alias)}}:
                if collection not in collections:
                    raise not_found(f"Collection `{collection}` doesn't exist!")
                if alias in collections:
                    raise StoreError(409, f"Wrong input: Collection `{alias}` already exists!")
                changed[alias] = collection
            case {"delete_alias": {"alias_name": str(alias)}}:
                changed.pop(alias, None)
            case {"rename_alias": {"old_alias_name": str(old), "new_alias_name": str(new)}}:
                if old not in changed:
                    raise not_found(f"Alias {old} does not exists!")
                if new in collections:
                    raise StoreError(409, f"Wrong input: Collection `{new}` already exists!")
                changed[new] = changed.pop(old)
            case _:
                raise malformed("actions: expected objects with create_alias, delete_alias or rename_alias")
    return changed
