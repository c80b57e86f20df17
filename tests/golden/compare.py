"""Names each difference between the digests of two revisions."""

from difflib import unified_diff

# lines shown of one text
MOST_LINES = 12


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Lines that say what differs; none where nothing does.

    >>> differences({"help/plan": {"stdout": "a\\nb"}}, {"help/plan": {"stdout": "a\\nc"}})
    ['help/plan: stdout', '  -b', '  +c']
    """
    lines: list[str] = []
    for case in sorted(before | after):
        if case not in before or case not in after:
            lines.append(f"{case}: only {'after' if case in after else 'before'}")
            continue
        old, new = before[case], after[case]
        for item in sorted(old | new):
            if old.get(item) != new.get(item):
                lines += [f"{case}: {item}", *_shown(old.get(item, ""), new.get(item, ""))]
    return lines


def _shown(old: str, new: str) -> list[str]:
    changed = [
        f"  {line[:200]}"
        for line in unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    more = [f"  ... {len(changed) - MOST_LINES} further lines"] if len(changed) > MOST_LINES else []
    return changed[:MOST_LINES] + more
