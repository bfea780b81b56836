"""The certificate's page as a template: words before figures, one section a question."""

__all__ = ["PAGE"]

_STYLE = """
:root { color-scheme: light dark; {{ light }} }
@media screen and (prefers-color-scheme: dark) { :root { {{ dark }} } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 46rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 1rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--grid) }
p, ul { margin: .5rem 0 }
ul { padding-left: 1.3rem }
.soft { color: var(--soft) }
.verdict, .answer { padding: .7rem 1rem; border-radius: .5rem; background: var(--panel);
  border-left: .4rem solid var(--good) }
.verdict { font-size: 1.1rem; font-weight: 600 }
.verdict.bad, .answer.bad { border-color: var(--bad) }
.answer.open { border-color: var(--ours) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr));
  gap: .7rem; margin: .9rem 0 }
.figures div { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem }
.figures strong { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.figures span { display: block; color: var(--soft); font-size: .9rem }
figure { margin: 1rem 0 }
figcaption { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
td, th { padding: .3rem .5rem .3rem 0; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid var(--grid) }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.track { background: var(--grid); height: .7rem; border-radius: .35rem; overflow: hidden; min-width: 7rem;
  margin-top: .4rem }
.fill { height: 100% }
.fill.good { background: var(--good) }
.fill.bad { background: var(--bad) }
.missed { color: var(--bad); font-weight: 600 }
.hash { font: .8rem/1.4 ui-monospace, monospace; word-break: break-all }
th.key { font-weight: 400; color: var(--soft); width: 34% }
@media (max-width: 34rem) { .share { display: none } h1 { font-size: 1.3rem } }
@media print { :root { color-scheme: light }
  body { max-width: none; padding: 0; font-size: 11pt } tr, figure, .figures div, .answer {
  break-inside: avoid } h2 { break-after: avoid } .verdict, .answer, .track, .fill, .figures div {
  print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>"""
    + _STYLE
    + """</style>
</head>
<body>
{% macro figures(rows) %}
<div class="figures">
{% for value, name, meaning in rows %}
<div><strong>{{ value }}</strong>{{ name }}<span>{{ meaning }}</span></div>
{% endfor %}
</div>
{% endmacro %}
<h1>{{ title }}</h1>
<p class="verdict {{ "good" if passed else "bad" }}">{{ headline }}</p>
{% if aside %}
<p class="answer open">{{ aside }}</p>
{% endif %}

<h2>What was compared</h2>
{% for sentence in compared %}
<p>{{ sentence }}</p>
{% endfor %}
{% if schedules %}
<p class="soft">The calls: {{ schedules | join(", ") }}.</p>
{% endif %}
{% if omitted %}
<p>What was left out:</p>
<ul>
{% for line in omitted %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}

<h2>{{ exactness.question }}</h2>
{% for sentence in exactness.words %}
<p>{{ sentence }}</p>
{% endfor %}
<p class="answer {{ "good" if passed else "bad" }}">{{ exactness.answer }}</p>
{{ figures(exactness.figures) }}
{% for picture, caption in pictures %}
<figure>{{ picture | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for section in sections %}

<h2>{{ section.question }}</h2>
{% for sentence in section.words %}
<p>{{ sentence }}</p>
{% endfor %}
<p class="answer open">{{ section.answer }}</p>
{{ figures(section.figures) }}
{% endfor %}

<h2>Everything the command says</h2>
<p>{{ verdict }}</p>
{% if notes %}
<ul>
{% for line in notes %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}

<h2>Every check</h2>
<p>The value beside its limit. A full bar is at the limit, and each eighth less is a power of ten less.</p>
<table>
<tr><th>check</th><th class="number">value</th><th class="number">limit</th>
<th class="share">of the limit</th></tr>
{% for check in checks %}
<tr><td>{{ check.name }}</td><td class="number{{ "" if check.passed else " missed" }}">{{ check.value }}</td>
<td class="number">{{ check.limit }}</td>
<td class="share"><div class="track"><div class="fill {{ "good" if check.passed else "bad" }}" style="width: \
{{ check.width }}%"></div></div></td></tr>
{% endfor %}
</table>
{% for name, rows in tables %}

<h2>{{ name }}</h2>
<table>
{% for key, value in rows %}
<tr><th class="key">{{ key }}</th><td{% if name == "Files" %} class="hash"{% endif %}>{{ value }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</body>
</html>
"""
)
