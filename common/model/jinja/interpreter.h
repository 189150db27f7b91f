// Runs a Program once. For one thread; the program is only read, all memory is the workspace's.
//
// Every statement, expression and turn of a loop takes a step of the workspace, every text and list
// takes its bytes, and recursion is counted: a program that would not end is stopped with
// RESOURCE_EXHAUSTED. INVALID_ARGUMENT: what Jinja2 would raise.
#pragma once

#include <span>
#include <vector>

#include "common/model/jinja/ast.h"
#include "common/model/jinja/text_builder.h"

namespace trivium::model::jinja {

struct Variable {
  NameId id = 0;
  Value value;
  Variable* next = nullptr;
};

// What a loop's turn, a macro or a block sets and does not pass on; the outermost scope has no
// parent.
struct Scope {
  Scope* parent = nullptr;
  Variable* first = nullptr;
};

struct Macro {
  const MacroDefinition* definition = nullptr;
  Scope* scope = nullptr;  // where it was defined
};

class Interpreter {
 public:
  Interpreter(const Program& program, Workspace& workspace);

  // What the template writes, `variables` given.
  absl::StatusOr<std::u32string> Run(std::span<const NamedValue> variables);
  int line() const { return line_; }  // where it stopped

 private:
  enum class Flow { kOn, kBreak, kContinue };
  class Level;

  absl::StatusOr<Scope*> NewScope(Scope* parent);
  absl::StatusOr<Value> Lookup(NameId id, Text name, const Scope* scope);
  absl::Status Assign(NameId id, const Value& value, Scope* scope);
  absl::Status AssignTo(const Expr& target, const Value& value, Scope* scope);

  absl::Status RunBody(const Body& body, Scope* scope);
  absl::Status RunStatement(const Stmt& stmt, Scope* scope);
  absl::Status RunIf(const Stmt& stmt, Scope* scope);
  absl::Status RunFor(const Stmt& stmt, Scope* scope);
  absl::Status RunTurns(const Stmt& stmt, std::span<Value> items, Scope* scope);
  absl::Status RunScope(const Stmt& stmt, Scope* scope);
  absl::Status RunCapturing(const Stmt& stmt, Scope* scope);
  absl::Status RunCallBlock(const Stmt& stmt, Scope* scope);
  absl::StatusOr<Value> NewMacro(const MacroDefinition& definition, Scope* scope);
  absl::StatusOr<std::span<Value>> Filtered(const Stmt& stmt, std::span<const Value> items,
                                            Scope* scope);
  // What `body` writes in a scope of its own.
  absl::StatusOr<Value> Capture(const Body& body, Scope* scope);

  absl::StatusOr<Value> Evaluate(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateOperation(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateItems(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateDict(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateSlice(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateConcat(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateComparison(const Expr& expr, Scope* scope);
  absl::StatusOr<bool> Compare(Comparison comparison, const Value& a, const Value& b);

  struct Arguments {
    std::vector<Value> positional;
    std::vector<NamedValue> named;
    Args view() const { return {positional, named}; }
  };
  absl::StatusOr<Arguments> EvaluateArguments(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateFilter(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateTest(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateCall(const Expr& expr, Scope* scope, const Value* caller);
  absl::StatusOr<Value> Call(const Value& callee, const Args& args);
  absl::StatusOr<Value> CallMacro(const Macro& macro, const Args& args);
  absl::Status BindParameters(const MacroDefinition& macro, const Args& args, Scope* scope);
  absl::Status BindRest(const MacroDefinition& macro, const Args& args, Scope* scope);

  const Program& program_;
  Workspace& ws_;
  TextBuilder* out_ = nullptr;
  std::vector<Value> globals_;  // by name id; the outermost scope
  Value captured_;
  Flow flow_ = Flow::kOn;
  int line_ = 0;
  int depth_ = 0;
};

}  // namespace trivium::model::jinja
