"""Chat templates that would take all time or memory are refused, and say so."""

from __future__ import annotations

import pytest

from fjx.errors import RequestError
from fjx.models.chat_template import MAX_REQUEST_TEMPLATE, ChatTemplate, request_template

MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str) -> str:
    return ChatTemplate(source).render(MESSAGES, {})


def in_loop(body: str, before: str = "", turns: int = 99_999) -> str:
    return f"{before}{{% for i in range({turns}) %}}{body}{{% endfor %}}"


def doubled(start: str, by: str, shown: str = "ns.s") -> str:
    """Something that doubles 99 times."""
    before = f"{{% set ns = namespace(s={start}) %}}"
    return in_loop(f"{{% set ns.s = {by} %}}", before, turns=99) + f"{{{{ {shown} }}}}"


ENDLESS = {
    "loops": in_loop(in_loop("")),
    "loops that skip": in_loop("{% for j in range(99999) if x %}{% endfor %}"),
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "blocks": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "recursive loops": "{% for i in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "searches of a list": in_loop("{{ 'x' in l }}", "{% set l = range(9999)|list %}"),
    "searches of a text": in_loop("{{ 'ab' in s }}", "{% set s = 'a' * 10**6 %}"),
    "counts": in_loop("{{ s.count('b') }}", "{% set s = 'a' * 10**6 %}"),
    "comparisons": in_loop(
        "{{ s == t }}", "{% set s = 'a' * 10**6 %}{% set t = 'aa' * (10**6 // 2) %}"
    ),
    "tests": in_loop("{{ s is eq t }}", "{% set s = 'a' * 10**6 %}{% set t = s ~ '' %}"),
    "chained comparisons": in_loop("{{ s < s ~ 'a' < s }}", "{% set s = 'a' * 10**6 %}"),
    "slices": in_loop("{% set x = l[1:] %}", "{% set l = range(99999)|list %}"),
    "sums": in_loop("{{ range(99999)|sum }}"),
    "lazy filters": in_loop(
        "{{ range(99999)|map(attribute='a')|first }}" * 2 + "{{ loop.length }}"
    ),
    "lengths of lazy filters": in_loop(
        "{% for j in range(99999)|map('abs') %}{{ loop.length }}{% break %}{% endfor %}"
    ),
    "sorting": in_loop("{{ (range(9999)|list)|sort|first }}"),
}
LARGE = {
    "text by +": doubled("'ab'", "ns.s + ns.s"),
    "text by ~": doubled("'ab'", "ns.s ~ ns.s"),
    "text by join": doubled("'ab'", "[ns.s, ns.s]|join"),
    "text by str.join": doubled("'ab'", "ns.s.join(['a', 'b', 'c'])"),
    "text by replace": doubled("'ab'", "ns.s.replace('a', 'aa')"),
    "text by filter replace": doubled("'ab'", "ns.s|replace('b', 'bb')"),
    "text by format": doubled("'ab'", "'%s%s' % (ns.s, ns.s)"),
    "text by str.format": doubled("'ab'", "'{0}{0}'.format(ns.s)"),
    "list by +": doubled("[1]", "ns.s + ns.s", "ns.s|length"),
    "list of lists": doubled("[1]", "[ns.s, ns.s]"),
    "list of lists as JSON": doubled("[1]", "[ns.s, ns.s]", "ns.s|tojson"),
    "object of objects": doubled("{}", "{'a': ns.s, 'b': ns.s}"),
    "dict of dicts": doubled("{}", "dict(a=ns.s, b=ns.s)", "ns.s|string"),
    "tuple of tuples as key": doubled("(1,)", "(ns.s, ns.s)", "{ns.s: 1}"),
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated text, turned round": "{{ 10**10 * 'a' }}",
    "repeated list": "{{ ([0] * 10**10)|length }}",
    "width of %": "{{ '%1000000000d' % 1 }}",
    "width of % from an argument": "{{ '%*d' % (10**9, 1) }}",
    "precision of %": "{{ '%.1000000000f' % 1 }}",
    "width of filter format": "{{ '%1000000000d'|format(1) }}",
    "width of format": "{{ '{:1000000000}'.format(1) }}",
    "width of format from an argument": "{{ '{:{}}'.format(1, 10**9) }}",
    "width of format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "width of format by subscript": "{{ '{:1000000000}'['format'](1) }}",
    "width of format by attr": "{{ ('{:1000000000}'|attr('format'))(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "center while compiling": "{{ 'a'|center(1000000000) }}",
    "str.center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "rjust": "{{ 'a'.rjust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent of many lines": "{{ ('a\n' * 10**5)|indent(9999) }}",
    "join of many": "{{ range(99999)|join('b' * 10**5) }}",
    "join of what is made late": "{{ range(99999)|map('center', 9999)|join }}",
    "str.join of what is made late": "{{ ''.join(range(99999)|map('center', 9999)) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "wordwrap": "{{ ('ab ' * 10**4)|wordwrap(1, wrapstring='x' * 10**5) }}",
    "urlize": "{{ ('http://a.b ' * 10**5)|urlize(target='x' * 10**4) }}",
    "tojson with indent": "{{ [[[1]]]|tojson(indent=10**9) }}",
    "powers": "{{ 10**10000 }}",
    "products": doubled("3", "ns.s * ns.s"),
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "strftime_now": "{{ strftime_now('%Y' * 10**5) }}",
    "split": "{{ ('a ' * 10**6).split(' ')|length }}",
    "split at spaces": "{{ ('a ' * 10**6).split()|length }}",
    "splitlines": "{{ ('\n' * 10**6).splitlines()|length }}",
    "characters": "{{ ('ab' * 10**6)|list|length }}",
    "template's own text": in_loop("a" * 50_000),
    "template's own text in a block": "{% set x %}" + in_loop("a" * 50_000) + "{% endset %}",
    "template's own text in a filter": "{% filter upper %}"
    + in_loop("a" * 9999)
    + "{% endfilter %}",
    "template's own text in a call": (
        "{% macro m() %}" + in_loop("{{ caller() }}") + "{% endmacro %}"
        "{% call m() %}" + "a" * 9999 + "{% endcall %}"
    ),
    "output": in_loop("{{ s }}", "{% set s = 'a' * 10**6 %}"),
}


@pytest.mark.parametrize("source", [pytest.param(each, id=name) for name, each in ENDLESS.items()])
def test_templates_without_an_end(source: str) -> None:
    with pytest.raises(RequestError, match=r"^the model's chat template takes too much: it "):
        render(source)


@pytest.mark.parametrize("source", [pytest.param(each, id=name) for name, each in LARGE.items()])
def test_templates_that_make_too_much(source: str) -> None:
    with pytest.raises(RequestError, match=r"^the model's chat template takes too much: it "):
        render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ lipsum(n=10**8) }}", "'lipsum' is undefined"),
        ("{{ (5).to_bytes(10**9, 'big') }}", "int.to_bytes is not available"),
        ("{{ 'a'.translate({97: 'b' * 10**6}) }}", "str.translate is not available"),
        ("{{ namespace(_a=1) }}", "namespace cannot have an attribute '_a'"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "cannot have an attribute"),
    ],
)
def test_what_templates_do_not_have(source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ 1" + "+1" * 5000 + " }}",
        "{{ a" + ".b" * 5000 + " }}",
        "{{ a" + "|trim" * 3000 + " }}",
        "{{ " + "not " * 9000 + "a }}",
        "{{ [" + "1," * 30000 + "] }}",
        "{{a}}" * 12000,
        "{% for i in a %}" * 25 + "{% endfor %}" * 25,
    ],
)
def test_templates_that_are_too_large_to_compile(source: str) -> None:
    with pytest.raises(RequestError, match="the request's chat_template is too large or too deepl"):
        request_template(source).render(MESSAGES, {})


def test_a_requests_template_has_a_length() -> None:
    assert request_template("a" * MAX_REQUEST_TEMPLATE).render(MESSAGES, {}).startswith("aaa")
    with pytest.raises(RequestError, match="chat_template has 65,537 characters, more than 65,536"):
        request_template("a" * (MAX_REQUEST_TEMPLATE + 1))


def test_namespaces_that_hold_each_other_are_written_briefly() -> None:
    assert render(doubled("1", "namespace(a=ns.s, b=ns.s)")) == "<Namespace>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 1 < 2 < 3 }} {{ 1 < 2 < 2 }} {{ 3 in [1] in [2] }}", "True False False"),
        ("{{ 'b' in 'abc' }} {{ 'x' not in {'x': 1} }} {{ 1 <= 1.0 }}", "True False True"),
        ("{{ 'abc'[1:] }} {{ [1, 2, 3][::-1] }} {{ 'abcd'[:-1:2] }}", "bc [3, 2, 1] ac"),
        ("{{ 'a' ~ 1 ~ none }} {{ (1, 'x') }} {{ {'a': [1]} }}", "a1None (1, 'x') {'a': [1]}"),
        ("{% for a, b in [(1, 2)] if a %}{{ b }}{% endfor %}", "2"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}", "ab"),
        ("{{ ['b', 'a']|sort|join(', ') }} {{ [{'n': 1}]|map(attribute='n')|list }}", "a, b [1]"),
        ("{{ [{'n': 1}]|join('-', attribute='n') }} {{ '%05.1f|%s' % (1.25, 'x') }}", "1 001.2|x"),
        (
            "{{ '{:>3}|{}'.format(1, 'x') }} {{ 'a,b'.split(',') }} {{ 2**10 }}",
            "  1|x ['a', 'b'] 1024",
        ),
        ("{{ dict(self=1) }} {{ namespace(self=2).self }}", "{'self': 1} 2"),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}"
            "{% call m(1) %}c{% endcall %}",
            "12c",
        ),
    ],
)
def test_counting_changes_no_result(source: str, text: str) -> None:
    assert render(source) == text


def test_long_conversations_are_within_the_limits() -> None:
    messages = [{"role": "user", "content": "word " * 200}] * 1000
    source = (
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{{ '<u>' + message.content.split('</think>')[-1] | trim + '</u>\n' }}"
        "{% if not loop.last and messages[loop.index0 + 1].role != 'tool' %}-{% endif %}"
        "{% endif %}{% endfor %}{{ messages | length }}"
    )
    text = ChatTemplate(source).render(messages, {})
    assert len(text) > 1000 * 1000
    assert text.endswith("1000")
