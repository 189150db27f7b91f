#!/usr/bin/env python3
"""Our own small templates, one construct each, and the recipe that records what Jinja2 makes of them.

    FOLDER=$(tests/templates/fetch); "$FOLDER/venv/bin/python" tests/templates/constructs.py \\
        > common/model/jinja/testdata/constructs.json
"""
import copy
import json
import sys

from compare import attempt, environment

VARIABLES = {
    "t": "Hello, World", "e": "", "u": "Straße ÄÖ ΣΑΣ 日本 🙂", "w": " \t a b  c\n ", "n": 7, "z": 0, "f": 2.5, "neg": -7,
    "yes": True, "no": False, "nil": None, "l": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "el": [],
    "d": {"b": 1, "a": [1, {"x": None}], "items": "mine", "C": 2.0}, "ed": {},
    "ms": [{"role": "user", "content": "a", "n": 2}, {"role": "tool", "content": "b", "n": 1}, {"role": "user", "n": 3}],
    "odd": "q'\"\\\n\u00e9\u200b<&>", "mixed": [1, "a", None, True, 2.0, [], {}],
}
STATEMENTS = [
    "a\n{% if yes %}\nb\n{% endif %}\nc\n", "  {% if yes %}x{% endif %}  \n y", "\t{%+ if yes %}x{% endif +%}\ny",
    "a {%- if yes -%} b {%- endif -%} c", "a\n  {{- t -}}  \nb", "{# gone #}\nx {#- y -#} z", "  {# c #}\n  d\n\n",
    "{% raw %}\n {{ x }} {% if %}{% endraw %}\n!", "{%- raw -%} {{ x }} {%- endraw -%} !", "x\n\n", "a\r\nb\rc\r\n",
    "{% if z %}1{% elif e %}2{% elif n %}3{% else %}4{% endif %}", "{% if el %}1{% else %}2{% endif %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.length }}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.first }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}",
    "{% for x in el %}x{% else %}none{% endfor %}", "{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{% else %}-{% endfor %}",
    "{% for x in l if x > 9 %}x{% else %}nothing{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for c in u %}{{ c }}|{% endfor %}", "{% for a, b in l %}{% endfor %}",
    "{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }}{{ loop.depth0 }} {% endfor %}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% endfor %}", "{% for x in nil %}{% endfor %}",
    "{% for x in gone %}x{% else %}empty{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in n %}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=0, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set (a, b) = l[:2] %}{{ a }}{{ b }}", "{% set a, b = l %}", "{% set n.x = 1 %}",
    "{% set x %}a{{ n }}\n{% endset %}[{{ x }}]", "{% set x | upper | trim %} a{{ t }} {% endset %}[{{ x }}]",
    "{% if yes %}{% set x = 5 %}{% endif %}{{ x }}", "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% filter upper %}a{{ t }}{% endfilter %}", "{% filter indent(2, first=true) %}a\nb{% endfilter %}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(b=4, a=5) }}{{ m() }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=1) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, a=1) }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, x=2) }}",
    "{% macro m(i) %}{{ i }}{% if i > 0 %}{{ m(i - 1) }}{% endif %}{% endmacro %}{{ m(4) }}",
    "{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 3 %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}{{ x }}",
    "{% macro m(a) %}[{{ caller(a) }}]{% endmacro %}{% call(x) m(4) %}{{ x }}{{ n }}{% endcall %}", "{{ m() }}",
    "{% macro m() %}[{{ caller is defined }}]{% endmacro %}{{ m() }}", "{% macro m() %} x {% endmacro %}{{ m() | trim ~ '.' }}",
    "{% generation %}{% set q = 1 %}a{{ q }}\n{% endgeneration %}\nb{{ q }}", "{{ raise_exception('no: ' ~ n) }}",
    "{{ strftime_now('%d %b %Y %H:%M:%S') }}", "{% if yes %}", "{% endif %}", "{% nothing %}", "{{ t", "{{ }}", "{% for x %}{% endfor %}",
    "{{ 'open }}", "{{ t | nothing }}", "{% if no %}{{ t | nothing }}{% endif %}ok", "{% if yes %}{{ t | nothing }}{% endif %}",
    "{{ 1 if t is nothing }}", "{% break %}", "{# open", "{% raw %}", "a{% raw %}", "{% raw %}\n", "{% raw %}a", "{{ (1 }}", "{{ a b }}", "{{ {'a': {'b': 1}}['a']['b']}}",
    "{%- set x = 1 -%}\n\n  {{ x }}", "{% if yes -%}\n   x\n{%- endif %}", "{% set x = {'a': 1,} %}{{ x.a }}", "{{ '}}' }}{{ \"%}\" }}",
    "line\n   {{ n }}\n   {% set x = 1 %}   \n end", "{{ 1 }}\n{{ 2 }}\n", "{%if yes%}a{%endif%}\n\n", "a{% if yes %}\n\n{% endif %}b",
]
EXPRESSIONS = [
    "1 + 2 * 3 - 4", "7 / 2", "7 // 2", "neg // 2", "neg % 3", "7 % neg", "2 ** 10", "2 ** -1", "-2 ** 2", "2 ** 3 ** 2", "7.5 // 2", "-7.5 % 2",
    "1 / 0", "1 % 0", "1 + 'a'", "'a' + 1", "'a' + nil", "'a' ~ 1 ~ nil ~ true ~ 2.0 ~ gone", "'a' * 3", "3 * 'a'", "'a' * -1", "[1] * 2",
    "[1] + [2]", "[1] + (2,)", "(1,) + (2,)", "1.0", "1e20", "1e-5", "0.1 + 0.2", "1e15", "123456789012345680.0", "1e16", "-0.0", "1_000", "0x1F",
    "1 == 1.0", "1 == true", "'1' == 1", "[1, 2] == [1, 2]", "(1,) == [1]", "{'a': 1} == {'a': 1.0}", "nil == none", "gone == other", "gone == nil",
    "1 < 2 < 3", "1 < 3 < 2", "'a' < 'b'", "'a' < 1", "[1, 2] < [1, 3]", "nil < 1", "gone < 1", "1 <= 1 != 2 >= 2 > 1",
    "1 in l", "9 not in l", "'lo' in t", "1 in t", "'b' in d", "nil in mixed", "'x' in gone", "1 in n", "[] in d",
    "yes and 'x'", "e or 'y'", "not e", "not not n", "no and gone.x", "yes or gone.x", "'a' if yes else 'b'", "'a' if no", "('a' if no) is defined",
    "1 if 2 if 0 else 3 else 4", "not 1 == 2", "-n", "+n", "-t", "- 5 | abs", "-5 | abs", "1 - -1", "(1, 2)", "(1,)", "()", "[1, 'a', [2.5, none]]",
    "{'a': 1, 2: 'b', none: true}", "{'a': 1, 'a': 2}", "{[]: 1}", "'a' 'b' \"c\"", "'\\n\\t\\\\\\'\\x41\\u00e9\\U0001F642\\101\\q'",
    "l[0]", "l[-1]", "l[9]", "l[9] is defined", "l['a'] is defined", "l[1.0] is defined", "l[true]", "t[0]", "t[-1]", "u[-1]", "u[20:]", "d['a'][1]['x']", "d.a.1.x", "d.a.0",
    "l[1:]", "l[:-1]", "l[::-1]", "l[::2]", "l[5:]", "l[-2:-1]", "t[1:4]", "t[::-2]", "l[::0]", "t[100:]", "(1, 2, 3)[1:]", "l[none:1]", "d[1:]", "n[1:]", "nil[1:]", "l[1.0:]", "t[:'a']", "gone[1:]", "l['a':]",
    "d.b", "d['items']", "d.nothing", "d.nothing.more", "d.nothing is defined", "ed.items() | list", "d.get('b')", "d.get('q')", "d.get('q', 5)",
    "d.keys() | list", "d.values() | list", "d.get()", "d.pop('b')", "d.update({}) ", "l.append(4)", "l.append is defined", "l.index(1)", "l.index(9)", "l.count(3)",
    "d.keys() | length", "d.items() is sequence", "d.keys()[0] is defined", "t.content is defined", "t.nothing.x", "gone", "gone.x", "gone['x']", "gone()", "gone + 1", "1 + gone",
    "t.upper()", "u.upper()", "u.lower()", "u.title()", "u.capitalize()", "t.strip('Hd')", "w.strip()", "w.lstrip()", "w.rstrip()", "t.strip(none)", "t.strip(1)",
    "t.split(',')", "w.split()", "'a,b,,c'.split(',')", "'a,b,c'.split(',', 1)", "'a b  c d'.split(none, 2)", "t.split('')", "'a,b,c'.rsplit(',', 1)", "e.split()", "e.split(',')", "'a\\nb\\r\\nc'.splitlines()",
    "', '.join(words)", "','.join(l)", "t.replace('l', 'L')", "t.replace('l', 'L', 1)", "'abc'.replace('', '-')", "t.replace('l')", "t.find('o')", "t.find('o', 5)", "t.find('x')", "t.rfind('o')", "t.index('x')", "u.find('日')",
    "t.count('l')", "'aaaa'.count('aa')", "t.startswith('He')", "t.startswith(('x', 'H'))", "t.endswith('ld')", "t.endswith('World', 7)", "t.startswith(1)", "t.partition(', ')", "t.rpartition('o')", "t.partition('x')",
    "t.removeprefix('He')", "t.removesuffix('ld')", "'7'.zfill(3)", "'-7'.zfill(4)", "'a'.ljust(3) ~ '|'", "'a'.rjust(3, '.')", "'12'.isdigit()", "'a1'.isalnum()", "'aé'.isalpha()", "e.isdigit()", "' '.isspace()", "'A1'.isupper()", "'a1'.islower()",
    "'{} {}'.format(1, 'a')", "'{1}{0}{x}'.format(1, 2, x=3)", "'{{}}'.format()", "'{}'.format()", "'%s %d %r %05.2f %%' % ('a', 3, 'b', 1.5)", "'%s' % 1", "'%s %s' % (1,)", "'%(a)s' % {'a': 1}", "'%-4s|%4s|%+d' % (1, 2, 3)", "'%s' | format(5)", "'%d' % 'a'", "'%x' % 255",
    "w | trim", "t | trim('Hd')", "nil | trim", "t | length", "u | length", "l | count", "nil | length", "n | length", "gone | length", "d | length",
    "gone | default('x')", "e | default('x')", "e | default('x', true)", "nil | d('x', boolean=true)", "gone | default", "d.q | default(d.b)",
    "t | upper", "n | upper", "u | lower", "'a-b c' | title", "'hELLO x' | capitalize", "words | first", "words | last", "el | first", "el | first is defined", "e | last", "t | first", "l | reverse | list", "t | reverse", "l | list", "t | list", "d | list", "nil | list",
    "n | string", "l | string", "1.5 | string", "nil | string", "gone | string", "odd | string", "[odd]", "mixed", "d", "'7' | int", "'7.9' | int", "'x' | int", "'x' | int(5)", "7.9 | int", "nil | int", "true | int", "gone | int", "' 12 ' | int", "'ff' | int(0, 16)", "'1.5' | float", "'x' | float(2.0)", "3 | float", "l | float",
    "t | replace('l', 'L')", "t | replace('l', 'L', 1)", "n | replace('7', 8)", "words | map('upper') | list", "words | map('replace', 'p', 'q') | join(' ')", "ms | map(attribute='role') | list", "ms | map(attribute='content', default='-') | join(',')", "ms | map('nothing') | list", 
    "l | select('odd') | list", "l | select('>', 1) | list", "mixed | select | list", "mixed | reject('none') | list", "ms | selectattr('role', 'equalto', 'user') | list | length", "ms | selectattr('content') | map(attribute='n') | list", "ms | selectattr('content', 'defined') | list | count", "ms | rejectattr('role', 'in', ['tool']) | map(attribute='n') | join", "ms | selectattr('role', '==', 'x') | first is defined", "ms | selectattr('role', 'nothing') | list",
    "1 if ms | selectattr('role', 'equalto', 'nobody') else 2", "(l | map('string')) | length", "(l | select)[0] is defined",
    "d | items | list", "gone | items | list", "l | items | list", "d | dictsort", "d | dictsort(true)", "ed | dictsort(by='value')", "{'x': 2, 'y': 1} | dictsort(false, 'value', true)", "l | dictsort",
    "'a\\nb\\n\\nc' | indent", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent('> ', blank=true)", "'a\\n' | indent(2)", "l | indent", "n | indent", "nil | indent", "gone | indent", "'a\\r\\nb\\n\\n\\nc\\n' | indent(1)", "'\\n\\na' | indent(2, true)", "'' | indent(2, true)", "l | sort", "words | sort", "words | sort(case_sensitive=true)", "l | sort(reverse=true)", "ms | sort(attribute='n') | map(attribute='n') | list", "mixed | sort",
    "words | unique | list", "words | unique(true) | list", "ms | unique(attribute='role') | map(attribute='n') | list", "l | min", "l | max", "el | max is defined", "words | min", "ms | max(attribute='n')", "l | sum", "ms | sum(attribute='n')", "l | sum(start=10)", "words | sum", "[0.1, 0.2] | sum",
    "2.5 | round", "3.5 | round", "2.567 | round(2)", "2.1 | round(0, 'ceil')", "7 | round", "27 | round(-1)", "25 | round(-1)", "-35 | round(-1)", "-25 | round(-1)", "4611686018427387905 | round(-3)", "yes | round(-1)", "27.5 | round(-1)", "27 | round(-1, 'floor')", "'7' | int(3, 1)", "'z' | int(3, 99)", "'0x1f' | int(3, 0)", "-2.5 | abs", "t | abs", "t | round", "'one two,three 4' | wordcount", "[1, 2, 3, 4, 5] | batch(2) | list", "[1, 2, 3] | batch(2, 0) | list", "d | attr('b') is defined", "t | safe ~ '<'", "('<' | safe) + '<&>'", "'<' + ('>' | safe)", "odd | escape", "odd | e | e", "'<' | safe | escape",
    "d | tojson", "odd | tojson", "u | tojson", "mixed | tojson", "d | tojson(indent=2)", "[[], {}, [1]] | tojson(indent=1)", "d | tojson(sort_keys=true)", "{'b': 1, 'a': 2} | tojson(sort_keys=true, indent=0)", "u | tojson(ensure_ascii=true)", "d | tojson(separators=(',', ':'))", "d | tojson(indent='--')", "gone | tojson", "(1, 2) | tojson", "{1: 2, none: 3, true: 4, 1.5: 5} | tojson", "1e100 | tojson", "l | map('string') | tojson", "l | select | list | tojson", "range(3) | list | tojson", "'\\x00\\x1f\\x7f' | tojson",
    "l | join", "l | join(', ')", "l | join(none)", "ms | join('/', attribute='role')", "nil | join", "t | join('.')",
    "n is defined", "gone is defined", "gone is undefined", "nil is none", "t is string", "n is string", "d is mapping", "ms[0] is mapping", "l is mapping", "l is sequence", "t is sequence", "d is sequence", "n is sequence", "gone is sequence", "l is iterable", "n is iterable", "nil is iterable", "f is number", "yes is number", "n is integer", "yes is integer", "f is float", "yes is boolean", "n is boolean", "yes is true", "n is true", "no is false", "z is false",
    "n is equalto 7", "n is eq(7)", "n is ne 7", "n is in l", "n is in [7]", "n is not in l", "n is odd", "n is even", "n is divisibleby 7", "n is divisibleby(0)", "n is gt 5", "n is lessthan(5)", "t is ge 'A'", "'a' is lower", "'A' is upper", "range is callable", "t is callable", "t is not string", "not t is string", "n is none or n is defined", "t is string and n is number", "t is nothing", "'upper' is filter", "'odd' is test", "t is escaped",
    "range(3) | list", "range(1, 7, 2) | list", "range(3, 0, -1) | list", "range(0) | list", "range(1, 2, 0)", "range(100001)", "range('a')", "range(5)[1:3] | list", "range(5)[-1]", "dict(a=1, b=2)", "dict({'a': 1}, b=2)", "dict([('a', 1)])", "namespace(a=1).a", "namespace({'a': 1}).a", "namespace(a=1)['a']", "t.__class__ is defined", "t.__class__.__name__ | length", "loop is defined", "true and True", "none is none and None is none", "dict(**d) == d", "range(*[1, 3]) | list", "t.split(*[','])", "{([],): 1}", "{(1, (2, {})): 1}", "{(1, (2,)): 3}[(1, (2,))]", "d[([],)] is defined", "'' | int(0, 1)", "e | int(3, 99)", "2.5 | round(1, range)", "''.rfind('a')", "''.rfind('')", "t.rfind(t ~ t)", "[[1, 2], [3]] | map('map', 'string') | map('join') | list", "t.nothing()", "d.b()", "t.casefold is defined",
]


def main():
    env = environment()
    cases = []
    for template in STATEMENTS + ["{{ " + e + " }}" for e in EXPRESSIONS]:
        text, why = attempt(lambda: env.from_string(template).render(**copy.deepcopy(VARIABLES)))
        # Addresses and the like say nothing.
        if text is not None and " at 0x" in text:
            sys.exit(f"{template} has no stable text: {text}")
        cases.append({"template": template, "text": text} if why is None else {"template": template, "raises": why})
    rows = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    print(f'{{"variables": {json.dumps(VARIABLES, ensure_ascii=False)},\n "cases": [\n{rows}\n]}}')


if __name__ == "__main__":
    main()
