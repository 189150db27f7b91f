#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/model/chat_template.h"
#include "common/model/jinja/template.h"
#include "common/model/jinja/testing/hostile_templates.h"
#include "common/model/jinja/testing/json_value.h"

namespace trivium::model::jinja {
namespace {

using ::testing::HasSubstr;
constexpr std::time_t kNow = 1767323045;  // as in tests/templates/compare.py

absl::StatusOr<std::string> Render(std::string_view source, const nlohmann::ordered_json& json = {},
                                   uint64_t steps = kTemplateStepsBase) {
  Workspace workspace(steps, kTemplateBytesBase, kNow);
  ASSIGN_OR_RETURN(const Template parsed, Template::Parse(source));
  std::vector<std::u32string> names;
  std::vector<NamedValue> variables;
  names.reserve(json.size());
  for (const auto& [name, member] : json.items()) {
    AppendAscii(name, names.emplace_back());
    ASSIGN_OR_RETURN(const Value value, FromJson(workspace, member));
    variables.push_back({names.back(), value});
  }
  ASSIGN_OR_RETURN(const std::u32string text, parsed.Render(workspace, variables));
  return ToUtf8(text);
}

// Recorded from Jinja2 by tests/templates/constructs.py.
TEST(Jinja, DoesWhatJinja2Does) {
  std::ifstream file(TRIVIUM_JINJA_CONSTRUCTS);
  const auto recorded = nlohmann::ordered_json::parse(file);
  ASSERT_GT(recorded.at("cases").size(), 400u);
  for (const auto& each : recorded.at("cases")) {
    const auto source = each.at("template").get<std::string>();
    const auto text = Render(source, recorded.at("variables"));
    if (!each.contains("text")) {
      EXPECT_FALSE(text.ok()) << source << " gives \"" << text.value_or("") << "\", Jinja2 raises "
                              << each.at("raises");
      continue;
    }
    ASSERT_TRUE(text.ok() || text.status().code() == absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(text.ok() ? *text : text.status().ToString(), each.at("text").get<std::string>())
        << source;
  }
}

TEST(Jinja, ErrorsNameTheLine) {
  for (const auto& [source, what] : {
           std::pair{"a\n\n{{ x.y }}", "line 3: 'x' is undefined"},
           std::pair{"\n{% for %}", "line 2: a name to assign to is missing"},
           std::pair{"{{ 1\n + 'a' }}", "line 2: int + str has no meaning"},
           std::pair{"\n{{ raise_exception('why') }}", "line 2: why"},
           std::pair{"\n\n{{ 'x' | join(nothing=1) }}", "line 3: join: has an unknown"},
           std::pair{"{% include 'x' %}", "line 1: no tag named 'include'"},
       }) {
    EXPECT_THAT(Message(Render(source).status()), HasSubstr(what)) << source;
  }
}

TEST(Jinja, EffortIsBounded) {
  for (const std::string& source : HostileTemplates()) {
    EXPECT_EQ(Render(source).status().code(), absl::StatusCode::kResourceExhausted)
        << source.substr(0, 300);
  }
}

TEST(Jinja, NestingOfTheSourceIsBounded) {
  const auto repeated = [](std::string_view text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  for (const std::string& source :
       {"{{ " + repeated("(", 5000), "{{ " + repeated("[", 5000), "{{ " + repeated("not ", 5000),
        "{{ " + repeated("-", 5000), repeated("{% if 1 %}", 5000),
        repeated("{% for x in y %}", 5000), "{{ 1" + repeated(" + 1", 5000),
        "{{ a" + repeated(".a", 5000), "{{ a" + repeated("|e", 5000),
        "{{ a" + repeated(" is a(", 5000), "{{ 1" + repeated(" if 1 else 1", 5000),
        repeated("x", 300 * 1024)}) {
    EXPECT_EQ(Render(source).status().code(), absl::StatusCode::kInvalidArgument)
        << source.substr(0, 30);
  }
  EXPECT_EQ(Render("{{ " + repeated("(", 20) + "1" + repeated(")", 20) + " }}").value(), "1");
}

}  // namespace
}  // namespace trivium::model::jinja
