"""What the site has beside the files of docs/: pages of methods, and the command line's reference. Run by mkdocs."""

import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).parent))

import commands
import taxonomy

import methods

found = methods.pages() | {"reference/cli.md": commands.page()}
found["methods/taxonomy.md"] = taxonomy.page()
names = "\n".join(f"* [{name}]({name}.md)" for name in methods.METHODS)
found["methods/SUMMARY.md"] = f"* [Overview](index.md)\n* [The survey's tree](taxonomy.md)\n{names}\n"
contributing = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
_, _, adding = contributing.partition("## How to add a method\n")
found["development/add-a-method.md"] = "# Add a method\n" + adding.partition("\n## ")[0].replace(
    "](docs/", "](../"
)
for path, text in found.items():
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)
