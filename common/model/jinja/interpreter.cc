#include "common/model/jinja/interpreter.h"

#include <algorithm>
#include <utility>

#include "common/model/jinja/format.h"
#include "common/model/jinja/interpreter_level.h"

namespace trivium::model::jinja {
namespace {

constexpr size_t kVariablesAStep = 8;  // passed on the way to one

}  // namespace

Interpreter::Interpreter(const Program& program, Workspace& workspace)
    : program_(program), ws_(workspace) {
  for (const Text name : program.names) {
    Value& global = globals_.emplace_back(Undefined(name));
    for (const FunctionInfo& function : Functions()) {
      if (!Equal(name, function.name)) continue;
      global = {.kind = Kind::kFunction, .function = &function};
    }
  }
}

absl::StatusOr<std::u32string> Interpreter::Run(std::span<const NamedValue> variables) {
  RETURN_IF_ERROR(ws_.Spend(program_.names.size()));
  for (const NamedValue& variable : variables) {
    for (size_t id = 0; id < program_.names.size(); ++id) {
      if (Equal(program_.names[id], variable.name)) globals_[id] = variable.value;
    }
  }
  TextBuilder out(ws_);
  out_ = &out;
  Scope outermost;
  RETURN_IF_ERROR(RunBody(program_.body, &outermost));
  return out.Take();
}

absl::StatusOr<Scope*> Interpreter::NewScope(Scope* parent) {
  ASSIGN_OR_RETURN(Scope * scope, ws_.New<Scope>());
  scope->parent = parent;
  return scope;
}

absl::StatusOr<Value> Interpreter::Lookup(NameId id, Text name, const Scope* scope) {
  size_t seen = 0;
  for (; scope->parent != nullptr; scope = scope->parent, ++seen) {
    for (const Variable* v = scope->first; v != nullptr; v = v->next, ++seen) {
      if (v->id != id) continue;
      RETURN_IF_ERROR(ws_.Spend(seen / kVariablesAStep));
      return v->value;
    }
  }
  RETURN_IF_ERROR(ws_.Spend(seen / kVariablesAStep));
  return globals_[id].IsUndefined() ? Undefined(name) : globals_[id];
}

absl::Status Interpreter::Assign(NameId id, const Value& value, Scope* scope) {
  if (scope->parent == nullptr) {
    globals_[id] = value;
    return absl::OkStatus();
  }
  size_t seen = 0;
  for (Variable* v = scope->first; v != nullptr; v = v->next, ++seen) {
    if (v->id != id) continue;
    v->value = value;
    return ws_.Spend(seen / kVariablesAStep);
  }
  RETURN_IF_ERROR(ws_.Spend(seen / kVariablesAStep));
  ASSIGN_OR_RETURN(Variable * variable, ws_.New<Variable>());
  *variable = {id, value, scope->first};
  scope->first = variable;
  return absl::OkStatus();
}

absl::Status Interpreter::AssignTo(const Expr& target, const Value& value, Scope* scope) {
  if (target.kind == ExprKind::kName) return Assign(target.id, value, scope);
  if (target.kind == ExprKind::kAttribute) {
    const Expr& base = *target.items[0];
    ASSIGN_OR_RETURN(const Value ns, Lookup(base.id, base.name, scope));
    if (ns.kind != Kind::kNamespace) {
      return InvalidArgument("'{}' is no namespace: its attributes cannot be set",
                             ToUtf8(base.name));
    }
    return ws_.SetEntry(*ns.dict, Borrow(target.name), value);
  }
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws_, value));
  if (items.size() != target.items.size()) {
    return InvalidArgument("{} values are unpacked into {} names", items.size(),
                           target.items.size());
  }
  RETURN_IF_ERROR(ws_.Spend(items.size()));
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(Assign(target.items[i]->id, items[i], scope));
  }
  return absl::OkStatus();
}

absl::Status Interpreter::RunBody(const Body& body, Scope* scope) {
  for (const Stmt* stmt : body) {
    RETURN_IF_ERROR(RunStatement(*stmt, scope));
    if (flow_ != Flow::kOn) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::RunStatement(const Stmt& stmt, Scope* scope) {
  const Level level(*this);
  line_ = stmt.line;
  RETURN_IF_ERROR(level.Check());
  switch (stmt.kind) {
    case StmtKind::kText:
      return out_->Append(stmt.text);
    case StmtKind::kPrint: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.value, scope));
      return AppendStr(*out_, value);
    }
    case StmtKind::kIf:
      return RunIf(stmt, scope);
    case StmtKind::kFor:
      return RunFor(stmt, scope);
    case StmtKind::kSet: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.value, scope));
      return AssignTo(*stmt.target, value, scope);
    }
    case StmtKind::kSetBlock:
    case StmtKind::kFilter:
      return RunCapturing(stmt, scope);
    case StmtKind::kMacro: {
      ASSIGN_OR_RETURN(const Value macro, NewMacro(stmt.macro, scope));
      return Assign(stmt.macro.id, macro, scope);
    }
    case StmtKind::kCall:
      return RunCallBlock(stmt, scope);
    case StmtKind::kScope:
      return RunScope(stmt, scope);
    case StmtKind::kBreak:
      flow_ = Flow::kBreak;
      break;
    case StmtKind::kContinue:
      flow_ = Flow::kContinue;
      break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::RunIf(const Stmt& stmt, Scope* scope) {
  for (const Branch& branch : stmt.branches) {
    ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition, scope));
    if (IsTrue(condition)) return RunBody(branch.body, scope);
  }
  return RunBody(stmt.otherwise, scope);
}

absl::StatusOr<std::span<Value>> Interpreter::Filtered(const Stmt& stmt,
                                                       std::span<const Value> items, Scope* scope) {
  ASSIGN_OR_RETURN(const std::span<Value> kept, ws_.NewItems(items.size()));
  size_t count = 0;
  for (const Value& item : items) {
    RETURN_IF_ERROR(ws_.Spend(1));
    bool keep = true;
    if (stmt.condition != nullptr) {
      ASSIGN_OR_RETURN(Scope * inner, NewScope(scope));
      RETURN_IF_ERROR(AssignTo(*stmt.target, item, inner));
      ASSIGN_OR_RETURN(const Value condition, Evaluate(*stmt.condition, inner));
      keep = IsTrue(condition);
    }
    if (keep) kept[count++] = item;
  }
  return kept.first(count);
}

absl::Status Interpreter::RunFor(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.value, scope));
  ASSIGN_OR_RETURN(const std::span<const Value> all, Items(ws_, value));
  ASSIGN_OR_RETURN(const std::span<Value> items, Filtered(stmt, all, scope));
  if (items.empty()) {
    ASSIGN_OR_RETURN(Scope * inner, NewScope(scope));
    return RunBody(stmt.otherwise, inner);
  }
  return RunTurns(stmt, items, scope);
}

absl::Status Interpreter::RunTurns(const Stmt& stmt, std::span<Value> items, Scope* scope) {
  ASSIGN_OR_RETURN(Loop * loop, ws_.New<Loop>());
  loop->items = items;
  const Value loop_value{.kind = Kind::kLoop, .loop = loop};
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(ws_.Spend(1));
    loop->index = i;
    ASSIGN_OR_RETURN(Scope * turn, NewScope(scope));
    RETURN_IF_ERROR(Assign(program_.loop_id, loop_value, turn));
    RETURN_IF_ERROR(AssignTo(*stmt.target, items[i], turn));
    RETURN_IF_ERROR(RunBody(stmt.body, turn));
    if (std::exchange(flow_, Flow::kOn) == Flow::kBreak) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::RunScope(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(Scope * inner, NewScope(scope));
  for (const auto& [target, expr] : stmt.assignments) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*expr, scope));
    RETURN_IF_ERROR(AssignTo(*target, value, inner));
  }
  return RunBody(stmt.body, inner);
}

absl::StatusOr<Value> Interpreter::Capture(const Body& body, Scope* scope) {
  ASSIGN_OR_RETURN(Scope * inner, NewScope(scope));
  TextBuilder written(ws_);
  TextBuilder* const outer = std::exchange(out_, &written);
  const absl::Status status = RunBody(body, inner);
  out_ = outer;
  RETURN_IF_ERROR(status);
  return written.Finish();
}

absl::Status Interpreter::RunCapturing(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(const Value written, Capture(stmt.body, scope));
  if (flow_ != Flow::kOn) return absl::OkStatus();
  captured_ = written;
  ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.value, scope));
  if (stmt.kind == StmtKind::kFilter) return AppendStr(*out_, value);
  return AssignTo(*stmt.target, value, scope);
}

absl::StatusOr<Value> Interpreter::NewMacro(const MacroDefinition& definition, Scope* scope) {
  ASSIGN_OR_RETURN(Macro * macro, ws_.New<Macro>());
  *macro = {&definition, scope};
  return Value{.kind = Kind::kMacro, .macro = macro};
}

absl::Status Interpreter::RunCallBlock(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(const Value caller, NewMacro(stmt.macro, scope));
  ASSIGN_OR_RETURN(const Value value, EvaluateCall(*stmt.value, scope, &caller));
  return AppendStr(*out_, value);
}

}  // namespace trivium::model::jinja
