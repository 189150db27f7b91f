#!/usr/bin/env python3
"""Renders every template with every conversation by Jinja2, set up as Hugging Face does, and by our program.

    compare.py TEMPLATES PROGRAM [-v]

Texts must be equal; where Jinja2 raises, the program must refuse. A template that Jinja2 cannot parse must be
refused as well. -v prints each difference in full.
"""
import datetime
import difflib
import json
import pathlib
import subprocess
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

from conversations import CONVERSATIONS, DEFAULTS

NOW = 1767323045  # 2026-01-02 03:04:05 UTC
TEMPLATES_MIN, CONVERSATIONS_MIN = 20, 10
# A template counts when so many conversations of a template gave equal texts.
TEXTS_MIN = 10


class Generation(jinja2.ext.Extension):
    """{% generation %}: a block of its own that writes what is inside."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
    return env


def attempt(work):
    """What work() gives, or None and why it gives nothing."""
    try:
        return work(), None
    except Exception as error:  # whatever Python raises
        return None, f"{type(error).__name__}: {error}"


def expected(compiled, variables):
    template, why = compiled
    return (None, why) if template is None else attempt(lambda: template.render(**variables))


def rendered(program, jobs):
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    run = subprocess.run([program], input=lines, capture_output=True, text=True, check=True, encoding="utf-8")
    return [json.loads(line) for line in run.stdout.split("\n") if line]


def show(name, conversation, wanted, why, got, verbose):
    print(f"DIFFERS: {name} / {conversation}: Jinja2 {'raises ' + why if why else 'renders'}, "
          f"ours {'refuses: ' + got['error'] if 'error' in got else 'renders'}")
    if verbose and not why and "text" in got:
        for line in difflib.unified_diff(wanted.split("\n"), got["text"].split("\n"), "Jinja2", "ours", lineterm=""):
            print("   ", repr(line))


def main():
    folder, program = sys.argv[1:3]
    verbose = "-v" in sys.argv
    env = environment()
    templates = {p.stem: p.read_text(encoding="utf-8") for p in sorted(pathlib.Path(folder).glob("*.jinja"))}
    variables = {name: {**DEFAULTS, **more} for name, more in CONVERSATIONS.items()}
    pairs = [(t, c) for t in templates for c in variables]
    replies = rendered(program, [{"template": templates[t], "variables": variables[c], "now": NOW} for t, c in pairs])
    assert len(replies) == len(pairs), "the program gave up"
    compiled = {t: attempt(lambda source=source: env.from_string(source)) for t, source in templates.items()}
    equal, refused, different, steps = dict.fromkeys(templates, 0), 0, 0, 0
    for (t, c), got in zip(pairs, replies):
        wanted, why = expected(compiled[t], variables[c])
        steps = max(steps, got["steps"])
        if wanted is not None and got.get("text") == wanted:
            equal[t] += 1
        elif wanted is None and "error" in got:
            refused += 1
        else:
            different += 1
            show(t, c, wanted, why, got, verbose)
    compared = sum(1 for count in equal.values() if count >= TEXTS_MIN)
    print(f"{len(templates)} templates × {len(variables)} conversations: {sum(equal.values())} texts are equal, "
          f"{refused} are refused by both, {different} differ; {compared} templates with {TEXTS_MIN} equal texts or "
          f"more; {steps} steps at most")
    sys.exit(1 if different or compared < TEMPLATES_MIN or len(variables) < CONVERSATIONS_MIN else 0)


if __name__ == "__main__":
    main()
