// The interpreter's calls: filters, tests, functions, methods and macros.
#include <algorithm>

#include "common/model/jinja/interpreter.h"
#include "common/model/jinja/interpreter_level.h"

namespace trivium::model::jinja {
namespace {

// Says whose arguments or input an error is about.
absl::Status Of(Text name, const absl::Status& status) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;
  return InvalidArgument("{}: {}", ToUtf8(name), Message(status));
}

const NamedValue* FindNamed(const Args& args, Text name) {
  for (const NamedValue& named : args.named) {
    if (Equal(named.name, name)) return &named;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<Interpreter::Arguments> Interpreter::EvaluateArguments(const Expr& expr,
                                                                      Scope* scope) {
  Arguments out;
  for (const Expr* argument : expr.arguments) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*argument, scope));
    out.positional.push_back(value);
  }
  if (expr.more_arguments != nullptr) {
    ASSIGN_OR_RETURN(const Value more, Evaluate(*expr.more_arguments, scope));
    ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws_, more));
    RETURN_IF_ERROR(ws_.Charge(items.size(), sizeof(Value)));
    out.positional.insert(out.positional.end(), items.begin(), items.end());
  }
  for (const NamedArgument& argument : expr.named) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*argument.value, scope));
    out.named.push_back({argument.name, value});
  }
  if (expr.more_named == nullptr) return out;
  ASSIGN_OR_RETURN(const Value more, Evaluate(*expr.more_named, scope));
  if (more.kind != Kind::kDict) return InvalidArgument("'**' needs a mapping");
  RETURN_IF_ERROR(ws_.Charge(more.dict->size, sizeof(NamedValue)));
  for (const Entry& entry : std::span(more.dict->entries, more.dict->size)) {
    ASSIGN_OR_RETURN(const Text name, NeedText(&entry.key));
    out.named.push_back({name, entry.value});
  }
  return out;
}

absl::StatusOr<Value> Interpreter::EvaluateFilter(const Expr& expr, Scope* scope) {
  if (expr.filter == nullptr) return InvalidArgument("no filter named '{}'", ToUtf8(expr.name));
  ASSIGN_OR_RETURN(const Value input, Evaluate(*expr.items[0], scope));
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expr, scope));
  line_ = expr.line;
  absl::StatusOr<Value> result = expr.filter(ws_, input, arguments.view());
  return result.ok() ? result : Of(expr.name, result.status());
}

absl::StatusOr<Value> Interpreter::EvaluateTest(const Expr& expr, Scope* scope) {
  if (expr.test == nullptr) return InvalidArgument("no test named '{}'", ToUtf8(expr.name));
  ASSIGN_OR_RETURN(const Value input, Evaluate(*expr.items[0], scope));
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expr, scope));
  line_ = expr.line;
  const absl::StatusOr<bool> result = expr.test(ws_, input, arguments.view());
  return result.ok() ? absl::StatusOr<Value>(Bool(*result)) : Of(expr.name, result.status());
}

absl::StatusOr<Value> Interpreter::EvaluateCall(const Expr& expr, Scope* scope,
                                                const Value* caller) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*expr.items[0], scope));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expr, scope));
  if (caller != nullptr) arguments.named.push_back({U"caller", *caller});
  line_ = expr.line;
  absl::StatusOr<Value> result = Call(callee, arguments.view());
  const bool named = expr.items[0]->kind == ExprKind::kAttribute && callee.kind == Kind::kMethod;
  return result.ok() || !named ? result : Of(expr.items[0]->name, result.status());
}

absl::StatusOr<Value> Interpreter::Call(const Value& callee, const Args& args) {
  switch (callee.kind) {
    case Kind::kUndefined:
      return UndefinedError(callee);
    case Kind::kFunction:
      return callee.function->call(ws_, args);
    case Kind::kMacro:
      return CallMacro(*callee.macro, args);
    case Kind::kMethod: {
      const Method& method = *callee.method;
      if (method.info->call == nullptr) return InvalidArgument("the method is not supported");
      return method.info->call(ws_, method.self, args);
    }
    default:
      return InvalidArgument("{} cannot be called", TypeName(callee));
  }
}

absl::StatusOr<Value> Interpreter::CallMacro(const Macro& macro, const Args& args) {
  const Level level(*this);
  RETURN_IF_ERROR(level.Check());
  const MacroDefinition& definition = *macro.definition;
  ASSIGN_OR_RETURN(Scope * scope, NewScope(macro.scope));
  absl::Status bound = BindParameters(definition, args, scope);
  if (bound.ok()) bound = BindRest(definition, args, scope);
  if (!bound.ok()) return Of(definition.name, bound);
  const Value captured = captured_;
  ASSIGN_OR_RETURN(const Value written, Capture(definition.body, scope));
  captured_ = captured;
  return written;
}

absl::Status Interpreter::BindParameters(const MacroDefinition& macro, const Args& args,
                                         Scope* scope) {
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    RETURN_IF_ERROR(ws_.Spend(1 + args.named.size()));
    const NamedValue* named = FindNamed(args, parameter.name);
    Value value = Undefined(parameter.name);
    if (i < args.positional.size()) {
      if (named != nullptr) {
        return InvalidArgument("'{}' is given twice", ToUtf8(parameter.name));
      }
      value = args.positional[i];
    } else if (named != nullptr) {
      value = named->value;
    } else if (parameter.fallback != nullptr) {
      ASSIGN_OR_RETURN(value, Evaluate(*parameter.fallback, scope));
    }
    RETURN_IF_ERROR(Assign(parameter.id, value, scope));
  }
  return absl::OkStatus();
}

// What no parameter takes: a macro that reads varargs, kwargs or caller accepts it.
absl::Status Interpreter::BindRest(const MacroDefinition& macro, const Args& args, Scope* scope) {
  const size_t taken = std::min(macro.parameters.size(), args.positional.size());
  if (taken < args.positional.size() && !macro.uses_varargs) {
    return InvalidArgument("takes {} arguments, {} are given", macro.parameters.size(),
                           args.positional.size());
  }
  if (macro.uses_varargs) {
    ASSIGN_OR_RETURN(const Value rest,
                     ws_.NewSequence(Kind::kTuple, args.positional.subspan(taken)));
    RETURN_IF_ERROR(Assign(program_.varargs_id, rest, scope));
  }
  ASSIGN_OR_RETURN(const Value named_rest, ws_.NewDict(0));
  Value caller = Undefined(U"caller");
  for (const NamedValue& named : args.named) {
    RETURN_IF_ERROR(ws_.Spend(1 + macro.parameters.size()));
    const bool is_parameter =
        std::any_of(macro.parameters.begin(), macro.parameters.end(),
                    [&](const Parameter& p) { return Equal(p.name, named.name); });
    if (is_parameter) continue;
    if (macro.uses_caller && Equal(named.name, "caller")) {
      caller = named.value;
    } else if (macro.uses_kwargs) {
      RETURN_IF_ERROR(ws_.SetEntry(*named_rest.dict, Borrow(named.name), named.value));
    } else {
      return InvalidArgument("takes no argument '{}'", Excerpt(named.name));
    }
  }
  if (macro.uses_kwargs) RETURN_IF_ERROR(Assign(program_.kwargs_id, named_rest, scope));
  return macro.uses_caller ? Assign(program_.caller_id, caller, scope) : absl::OkStatus();
}

}  // namespace trivium::model::jinja
