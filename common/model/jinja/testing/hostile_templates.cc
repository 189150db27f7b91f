#include "common/model/jinja/testing/hostile_templates.h"

#include <fmt/format.h>

namespace trivium::model::jinja {
namespace {

std::string Joined(std::string_view pattern, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += fmt::format(fmt::runtime(pattern), i);
  return out;
}

// `statement` a billion times, `setup` done before.
std::string Often(std::string_view statement, std::string_view setup = "") {
  std::string out(setup);
  for (const char* name : {"o", "p", "q"}) {
    out += fmt::format("{{% for {} in range(1000) %}}", name);
  }
  return out + std::string(statement) + "{% endfor %}{% endfor %}{% endfor %}";
}

// Sets z again and again to `expression` of `x`, which is set once to `large`.
std::string OnLarge(std::string_view large, std::string_view expression) {
  return Often(fmt::format("{{% set z = {} %}}", expression),
               fmt::format("{{% set x = {} %}}", large));
}

void AddOnEach(std::initializer_list<std::string_view> larges,
               std::initializer_list<std::string_view> expressions, std::vector<std::string>& out) {
  for (const std::string_view expression : expressions) {
    for (const std::string_view large : larges) out.push_back(OnLarge(large, expression));
  }
}

void AddLoops(std::vector<std::string>& out) {
  out.push_back(Often(""));
  out.push_back(Often("{{ o }}"));
  out.push_back(Often("{% if o %}{% endif %}"));
  out.push_back(Often("{% set ns.x = ns.x + o * p %}", "{% set ns = namespace(x=0.5) %}"));
  out.push_back(Often("{{ loop.nothing }}"));
  out.push_back(Often("{{ 'x'.nothing }}"));
  out.push_back(Often("{{ 'x'.zfill(1) }}"));
  out.push_back(Often("{{ m(o) }}", "{% macro m(a, b=2) %}{{ a }}{% endmacro %}"));
  out.push_back(Often("{{ {'a': o, 'b': p}.items() | list | length }}"));
  out.push_back(Often("{{ strftime_now('%Z%c%Z') }}"));
  out.push_back(Often("{% set z = '1e308' | float | round(15) %}"));
  out.push_back(Often("{% set z = '%.1000f' % 1e308 %}"));
  out.push_back(Often("{% set z = '1' | int(0, 1) %}"));
  out.push_back(Often("{% set z = 0.1 ~ '' %}"));
  out.push_back("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}");
}

void AddRecursion(std::vector<std::string>& out) {
  out.push_back("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  out.push_back("{% macro m(x) %}{{ m(x) ~ m(x) }}{% endmacro %}{{ m(1) }}");
  out.push_back(
      "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
      "{{ m(30) }}");
  out.push_back(
      "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}"
      "{% endcall %}{% endmacro %}{{ n() }}");
  // `next` of x makes the x that is 2000 levels deep.
  const auto nested = [&](std::string_view next, std::string_view end) {
    out.push_back(
        fmt::format("{{% set ns = namespace(x=[]) %}}{{% for i in range(2000) %}}"
                    "{{% set ns.x = {} %}}{{% endfor %}}{{{{ {} }}}}",
                    next, end));
  };
  nested("[ns.x]", "ns.x");
  nested("[ns.x]", "ns.x | tojson");
  nested("[ns.x]", "ns.x == ns.x");
  nested("[ns.x]", "ns.x < ns.x");
  nested("[ns.x]", "ns.x | map(*(['map'] * 2000)) | list");
  nested("(ns.x,)", "{ns.x: 1}");
  nested("{1: ns.x}", "ns.x == ns.x");
}

void AddGrowth(std::vector<std::string>& out) {
  const auto grown = [&](std::string_view begin, std::string_view next) {
    out.push_back(
        fmt::format("{{% set ns = namespace(x={}) %}}{{% for i in range(99999) %}}"
                    "{{% set ns.x = {} %}}{{% endfor %}}",
                    begin, next));
  };
  grown("'x'", "ns.x * 2");
  grown("'x'", "ns.x ~ ns.x");
  grown("'x'", "ns.x + 'x'");
  grown("[1]", "ns.x + ns.x");
  grown("[1]", "ns.x + [i]");
  grown("[1]", "[ns.x, ns.x]");
  grown("{}", "dict(ns.x, a=ns.x)");
  grown("{}", "dict([(i, i)] + ns.x.items() | list)");
  out.push_back(
      "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] "
      "%}{% endfor %}{{ ns.x == ns.x | list }}");
  out.push_back("{{ 'x' * 10**9 }}");
  out.push_back("{{ [1] * 10**9 }}");
  out.push_back("{{ ('x' * 10**6).replace('', 'y' * 10**6) }}");
  out.push_back("{{ ('x,' * 10**5).split(',') | join('y' * 10**5) }}");
  out.push_back("{{ '%999s' % 1 * 10**5 }}");
  out.push_back("{{ 'a' | indent(10**9) }}");
  out.push_back("{{ 'a'.ljust(10**12) }}");
}

// A part of what fits, so that it is the repetition that has to be stopped.
void AddLargeTexts(std::vector<std::string>& out) {
  AddOnEach({"'a' * 50000", "'\\u00e9' * 50000", "'\\n' * 25000", "'\\x01<' * 12500"},
            {"x.replace('b', 'c')",
             "x.replace('aaab', '')",
             "x.split('aaab')",
             "x.rsplit('b', 9)",
             "x.split()",
             "x.splitlines()",
             "x.strip('bcdea')",
             "x | trim",
             "x.find('aaaaaaaaaaaaaaab')",
             "x.rfind('b')",
             "''.rfind(x)",
             "[{}, {}] | map(attribute=x) | list",
             "x.count('aaab')",
             "'aaab' in x",
             "x.partition('b')",
             "x == x ~ ''",
             "x < x ~ 'b'",
             "x.startswith(x)",
             "x.removeprefix(x)",
             "x.isalpha()",
             "x.islower()",
             "x is upper",
             "x | wordcount",
             "x[::-1]",
             "x[::2]",
             "x | reverse",
             "x | list",
             "x | upper",
             "x.title()",
             "x | title",
             "x | capitalize",
             "x | e",
             "[x] | string",
             "x | tojson",
             "x | indent",
             "x.format(1)",
             "x | batch(2) | list",
             "{x: 1}[x]",
             "x ~ x",
             "x.zfill(10**9)",
             "[x, x] | join(x)"},
            out);
  out.push_back(OnLarge("'%' ~ '0' * 100000 ~ 'd'", "x % 1"));
}

void AddLargeLists(std::vector<std::string>& out) {
  AddOnEach({"range(12500) | list", "[0.1] * 25000", "[''] * 25000", "[[]] * 25000"},
            {"x | sort",
             "x | sort(reverse=true) | list",
             "x | min",
             "x | max",
             "x | list",
             "x | reverse | list",
             "x | batch(1) | list",
             "x | map('string') | list",
             "x | map(attribute='a') | list",
             "x | select | list",
             "x | select('none') | list",
             "x | reject('eq', 3) | list",
             "x | join",
             "x | string",
             "x | tojson",
             "x | tojson(indent=1)",
             "x | length",
             "x[::-1]",
             "x[1:]",
             "x * 2",
             "x + x",
             "x == x + []",
             "x < x + [1]",
             "-1 in x",
             "x.count(-1)",
             "x | first",
             "x | last"},
            out);
  AddOnEach({"range(12500) | list"}, {"x | sum", "x | map('abs') | list", "x | unique | list"},
            out);
  const std::string entries = fmt::format("{{{}}}", Joined("'k{}': 1.5,", 300));
  AddOnEach(
      {entries},
      {"x | dictsort", "x | tojson(sort_keys=true)", "x | tojson", "x.items()", "x | list",
       "x.nothing1", "x.get('k299')", "dict(x)", "namespace(**x)", "x == dict(x)", "x | string"},
      out);
  out.push_back(
      Often("{% set z = '{a}{a}{a}' %}{{ z.format(a=1, **x) }}", "{% set x = " + entries + " %}"));
}

void AddManyNames(std::vector<std::string>& out) {
  const std::string sets = Joined("{{% set v{} = 1 %}}", 5000);
  out.push_back(Often("{% with %}" + sets + "{{ v0 }}{% endwith %}"));
  const std::string parameters = Joined("v{},", 1000) + "w";
  out.push_back(Often("{{ m() }}", "{% macro m(" + parameters + ") %}{{ w }}{% endmacro %}"));
  out.push_back(Often("{{ m(**x) }}", "{% macro m(" + parameters +
                                          ") %}{{ kwargs }}{% endmacro %}"
                                          "{% set x = {" +
                                          Joined("'x{}': 1,", 300) + "} %}"));
  out.push_back(Joined("{{% with %}}", 30) + Often("{{ nothing }}") +
                Joined("{{% endwith %}}", 30));
}

}  // namespace

std::vector<std::string> HostileTemplates() {
  std::vector<std::string> out;
  AddLoops(out);
  AddRecursion(out);
  AddGrowth(out);
  AddLargeTexts(out);
  AddLargeLists(out);
  AddManyNames(out);
  return out;
}

}  // namespace trivium::model::jinja
