"""The console and Python blocks of the documentation: page, line, and whether the tests run them, or why not.

.venv/bin/python scripts/list_snippets.py
"""

import collections

from docs_site.snippets import Snippet, pages, snippets


def main() -> None:
    counts: collections.Counter[str] = collections.Counter()
    for page in pages():
        for each in snippets(page):
            print(f"{each.place}  {each.language}  {_said(each)}")
            counts["run" if each.is_run else "run by a script" if each.run_by else "not run"] += 1
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))


def _said(snippet: Snippet) -> str:
    if snippet.run_by:
        return f"run by {snippet.run_by}"
    return f"not run: {snippet.not_run}" if snippet.not_run else "run"


if __name__ == "__main__":
    main()
