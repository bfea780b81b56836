"""Markdown as the page shows it, letter by letter as models write it: elements, never the text as HTML."""

import json
import re
from collections.abc import Callable, Generator

import pytest

from tests.runtime._toy import write_toy_bundle
from tests.serve._running import serving

LINK = 'target="_blank" rel="noopener noreferrer"'
MARKDOWN = {
    'plain < & > " text': '<p>plain &lt; &amp; &gt; " text</p>',
    "# One\n## Two ##": '<h3 class="h1">One</h3><h4 class="h2">Two</h4>',
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "**b** *i* ***bi*** ~~d~~ __b__ _i_": "<p><strong>b</strong> <em>i</em> <strong><em>bi</em></strong> "
    "<del>d</del> <strong>b</strong> <em>i</em></p>",
    "**a *b* c** and **open": "<p><strong>a <em>b</em> c</strong> and **open</p>",
    "**a *b***": "<p><strong>a <em>b</em></strong></p>",
    "2 * 3 * 4, snake_case_name, \\*": "<p>2 * 3 * 4, snake_case_name, *</p>",
    "`a*b*` ``c`d`` `e": "<p><code>a*b*</code> <code>c`d</code> `e</p>",
    "- a\n- b\n  - c\n\nd": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>",
    "3. a\n4. b\n   - c": '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "In\n1996. and more": "<p>In<br>1996. and more</p>",
    "> a\n> b": "<blockquote><p>a<br>b</p></blockquote>",
    "a\n\n---\n***": "<p>a</p><hr><hr>",
    '[a](https://x.org/b_c_(d) "t")': f'<p><a href="https://x.org/b_c_(d)" {LINK}>a</a></p>',
    "see https://x.org/a.": f'<p>see <a href="https://x.org/a" {LINK}>https://x.org/a</a>.</p>',
    "![a](https://x.org/b.png)": f'<p><a href="https://x.org/b.png" {LINK}>a</a></p>',
    "[a](javascript:alert(1)) [b](data:text/html,c) [c](/d)": "<p>[a](javascript:alert(1)) "
    "[b](data:text/html,c) [c](/d)</p>",
    "<img src=x onerror=alert(1)><script>a</script>": "<p>&lt;img src=x onerror=alert(1)&gt;"
    "&lt;script&gt;a&lt;/script&gt;</p>",
    "|a|b|\n|:-:|--:|\n|`c|d`|e\\|f|": '<div class="table"><table><thead><tr><th class="middle">a</th>'
    '<th class="right">b</th></tr></thead><tbody><tr><td class="middle"><code>c|d</code></td>'
    '<td class="right">e|f</td></tr></tbody></table></div>',
    "a | b": "<p>a | b</p>",
    "```py\nif a:\n    <b>\n```\nc": '<figure class="code"><figcaption>py</figcaption><pre><code>if a:\n'
    "    &lt;b&gt;</code></pre></figure><p>c</p>",
    "~~~\n```\nopen": '<figure class="code"><figcaption>text</figcaption><pre><code>```\nopen</code></pre>'
    "</figure>",
}
#: Each would take minutes if a search that found nothing were repeated, or if nesting had no end.
HOSTILE = ["*a " * 200_000, "`" + " ``a" * 100_000, "**_~~a" * 40_000, "[a" * 50_000, "<http://" * 50_000]
HOSTILE += [
    "> " * 9000 + "a",
    "- " * 9000 + "a",
    "# " + " #" * 50_000 + "a",
    "|a" * 9000 + "\n" + "|-" * 9000,
]

SHOW = """(async text => {
    const {render} = await import(new URL('static/markdown.js', location.origin));
    const place = document.createElement('div');
    for (let end = 0; end < Math.min(text.length, 300); end++) render(place, text.slice(0, end));
    render(place, text);
    for (const each of place.querySelectorAll('figcaption')) each.replaceChildren(each.textContent);
    for (const each of place.querySelectorAll('[tabindex]')) each.removeAttribute('tabindex');
    return place.innerHTML;
})"""


@pytest.fixture(scope="module")
def show(chromium, tmp_path_factory) -> Generator[Callable[[str], str]]:
    """What a text is as HTML after it has come character by character."""
    folder = tmp_path_factory.mktemp("served")
    write_toy_bundle(folder / "toy")
    with serving(folder / "toy", folder / "log") as served:
        chromium.open(f"{served.url}/")
        yield lambda text: chromium.value(f"{SHOW}({json.dumps(text)})")


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown(show, text: str) -> None:
    assert show(text) == MARKDOWN[text]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:6])
def test_a_text_that_wants_to_be_slow_is_shown(show, text: str) -> None:
    """None of its letters is lost; if it took more than its share, the browser would say nothing in time."""
    assert re.sub(r"<[^>]*>", "", show(text)).count("a") == text.count("a")
