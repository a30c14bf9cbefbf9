"""What the site has beside the files of docs/: pages of methods, and the command line's reference. Run by mkdocs."""

import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).parent))

import commands

import methods

found = methods.pages() | {"reference/cli.md": commands.page()}
names = "\n".join(f"* [{name}]({name}.md)" for name in methods.METHODS)
found["methods/SUMMARY.md"] = f"* [Overview](index.md)\n{names}\n"
for path, text in found.items():
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)
