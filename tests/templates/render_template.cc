// Renders templates for tests: one JSON object a line in, {"template", "variables", "now"}; one a line
// out, {"text"} or {"error"}, each with "steps".
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "common/model/jinja/template.h"
#include "common/model/jinja/testing/json_value.h"

namespace trivium::model::jinja {
namespace {

// Far above what chats get: what a real template needs is seen in "steps".
constexpr uint64_t kSteps = 10'000'000;
constexpr size_t kBytes = size_t{1} << 30;

absl::StatusOr<std::string> Render(Workspace& workspace, const nlohmann::ordered_json& job) {
  ASSIGN_OR_RETURN(const Template parsed,
                   Template::Parse(job.at("template").get_ref<const std::string&>()));
  std::vector<std::u32string> names;
  std::vector<NamedValue> variables;
  names.reserve(job.at("variables").size());
  for (const auto& [name, json] : job.at("variables").items()) {
    AppendAscii(name, names.emplace_back());
    ASSIGN_OR_RETURN(const Value value, FromJson(workspace, json));
    variables.push_back({names.back(), value});
  }
  ASSIGN_OR_RETURN(const std::u32string text, parsed.Render(workspace, variables));
  return ToUtf8(text);
}

int Main() {
  for (std::string line; std::getline(std::cin, line);) {
    const auto job = nlohmann::ordered_json::parse(line);
    Workspace workspace(kSteps, kBytes, job.value("now", int64_t{0}));
    const absl::StatusOr<std::string> text = Render(workspace, job);
    nlohmann::ordered_json reply;
    reply["steps"] = workspace.steps_used();
    if (text.ok()) reply["text"] = *text;
    if (!text.ok()) reply["error"] = Message(text.status());
    std::cout << reply.dump() << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace trivium::model::jinja

int main() { return trivium::model::jinja::Main(); }
