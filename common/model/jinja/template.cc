#include "common/model/jinja/template.h"

#include "common/model/jinja/interpreter.h"
#include "common/model/jinja/parser.h"

namespace trivium::model::jinja {

absl::StatusOr<Template> Template::Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::shared_ptr<const Program> program, jinja::Parse(source));
  return Template(std::move(program));
}

absl::StatusOr<std::u32string> Template::Render(Workspace& workspace,
                                                std::span<const NamedValue> variables) const {
  Interpreter interpreter(*program_, workspace);
  absl::StatusOr<std::u32string> text = interpreter.Run(variables);
  if (text.ok()) return text;
  return MakeStatus(text.status().code(), "line {}: {}", interpreter.line(),
                    Message(text.status()));
}

}  // namespace trivium::model::jinja
