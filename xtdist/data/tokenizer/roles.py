"""Which tokens of a vocabulary end a document, mask and pad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xtdist.config import DataError
from xtdist.data.tokenizer.base import Roles

USUAL = {
    "eot": (
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<eos>",
        "<|eos|>",
        "[EOS]",
        "<｜end▁of▁sentence｜>",
        "[SEP]",
    ),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>"),
}


def find_roles(
    ids: Mapping[str, int],
    asked: Mapping[str, str | None],
    size: int,
    *,
    special: Iterable[str],
    where: str,
) -> Roles:
    """The roles in a vocabulary of ``size`` ids. Mask and pad that it lacks come right behind it.

    Args:
        ids: the tokens that may have a role.
        asked: eot, mask, pad: the name asked for, or None for one of the usual ones.
        special: names to list in an error.

    Raises:
        DataError: a name that the vocabulary lacks, or no end of text.
    """
    found: dict[str, int] = {}
    for role, usual in USUAL.items():
        name = asked.get(role)
        known = next((n for n in usual if n in ids and ids[n] not in found.values()), None)
        if name is None and known is None and role != "eot":
            found[role] = size
            size += 1
            continue
        name = known if name is None else name
        if name is None or name not in ids:
            have = ", ".join(sorted(special)[:40]) or "none"
            what = f"there is no token {name!r}" if name else "none of the usual names is there"
            raise DataError(
                f"{where}: {role}: {what}; give {role}=NAME with a token of the file (its special "
                f"tokens: {have})"
            )
        found[role] = ids[name]
    return Roles(**found)


def roles_from(tree: Any, size: int, where: str) -> tuple[Roles, int]:
    """Roles as saved, and the number of ids with those that follow a vocabulary of ``size``.

    Raises:
        DataError: not three ids, or ids that neither are in the vocabulary nor follow it.
    """
    keys = ("eot", "mask", "pad")
    if not isinstance(tree, dict) or set(tree) != set(keys):
        raise DataError(f"{where}: roles must give {', '.join(keys)}; it is damaged")
    ids = [tree[k] for k in keys]
    behind = sorted(i for i in ids if isinstance(i, int) and i >= size)
    if any(type(i) is not int for i in ids) or behind != [size + i for i in range(len(behind))]:
        raise DataError(
            f"{where}: roles: got {ids}; they must be ids of the {size} in the vocabulary or "
            "follow them"
        )
    roles = Roles(*ids)
    roles.check(size + len(behind), where)
    return roles, size + len(behind)


def to_tree(roles: Roles) -> dict[str, int]:
    """As ``roles_from`` reads them."""
    return {"eot": roles.eot, "mask": roles.mask, "pad": roles.pad}
