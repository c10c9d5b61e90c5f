"""Count the escapes from the type checker and the linter, and hold them under their ceilings (`make check`).

    python .ci/type_debt.py FOLDER ... [--record]

Ceilings stand in .ci/type-debt.json. --record lowers them to the present counts and never raises one.
"""

import argparse
import ast
import io
import json
import sys
import tokenize
from collections import Counter
from pathlib import Path

CEILINGS = Path(__file__).with_name("type-debt.json")
KINDS = ("Any", "cast", "type: ignore", "noqa")


def main() -> None:
    """Print counts beside ceilings; exit 1 where a count is above."""
    parser = argparse.ArgumentParser(description="Hold Any, cast, type: ignore and noqa under their ceilings.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--record", action="store_true", help="lower the ceilings to the present counts")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for folder in arguments.folders:
        for file in sorted(folder.rglob("*.py")):
            counts.update(count(file.read_text()))
    ceilings: dict[str, int] = json.loads(CEILINGS.read_text()) if CEILINGS.is_file() else {}
    if arguments.record:
        ceilings = {kind: min(counts[kind], ceilings.get(kind, counts[kind])) for kind in KINDS}
        CEILINGS.write_text(json.dumps(ceilings, indent=2) + "\n")
    print("  ".join(f"{kind}: {counts[kind]} (ceiling {ceilings.get(kind, 0)})" for kind in KINDS))
    if above := [kind for kind in KINDS if counts[kind] > ceilings.get(kind, 0)]:
        sys.exit(f"type debt: more of {', '.join(above)} than {CEILINGS.name} allows; type it instead")
    if any(counts[kind] < ceilings[kind] for kind in KINDS):
        print(f"type debt has fallen: run {Path(__file__).parent.name}/type_debt.py --record to keep it there")


def count(source: str) -> Counter[str]:
    """Uses of Any (imports aside), calls of cast, and comments that silence a tool."""
    counts: Counter[str] = Counter()
    for node in ast.walk(ast.parse(source)):
        if _named(node, "Any"):
            counts["Any"] += 1
        elif isinstance(node, ast.Call) and _named(node.func, "cast") and len(node.args) == 2:
            counts["cast"] += 1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            counts["type: ignore"] += "type: ignore" in token.string
            counts["noqa"] += "noqa" in token.string
    return counts


def _named(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


if __name__ == "__main__":
    main()
