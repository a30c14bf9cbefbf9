"""The options of methods as JSON: python docs/gen/option_table.py > src/keyhole/cli/methods.json.

The command line checks a method by this file before it imports torch. A test compares it with the code.
"""

import json

from keyhole.methods import METHODS

_DROPPED = ("description", "x-unit")


def table() -> str:
    """The file: for each method the schema of its options, those of former versions, and those it needs."""
    held = {
        name: {
            "options": {
                option: {key: value for key, value in schema.items() if key not in _DROPPED}
                for option, schema in kind.schema()["properties"].items()
            },
            "renamed": kind.renamed,
            **({"required": kind.required} if kind.required else {}),
        }
        for name, kind in METHODS.items()
    }
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in held.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    print(table(), end="")
