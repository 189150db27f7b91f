// The interpreter's expressions.
#include "common/model/jinja/format.h"
#include "common/model/jinja/interpreter.h"
#include "common/model/jinja/interpreter_level.h"

namespace trivium::model::jinja {

absl::StatusOr<Value> Interpreter::Evaluate(const Expr& expr, Scope* scope) {
  const Level level(*this);
  line_ = expr.line;
  RETURN_IF_ERROR(level.Check());
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.value;
    case ExprKind::kName:
      return Lookup(expr.id, expr.name, scope);
    case ExprKind::kCaptured:
      return captured_;
    case ExprKind::kTuple:
    case ExprKind::kList:
      return EvaluateItems(expr, scope);
    case ExprKind::kDict:
      return EvaluateDict(expr, scope);
    case ExprKind::kSlice:
      return EvaluateSlice(expr, scope);
    case ExprKind::kCall:
      return EvaluateCall(expr, scope, nullptr);
    case ExprKind::kFilter:
      return EvaluateFilter(expr, scope);
    case ExprKind::kTest:
      return EvaluateTest(expr, scope);
    case ExprKind::kConcat:
      return EvaluateConcat(expr, scope);
    case ExprKind::kCompare:
      return EvaluateComparison(expr, scope);
    default:
      return EvaluateOperation(expr, scope);
  }
}

absl::StatusOr<Value> Interpreter::EvaluateOperation(const Expr& expr, Scope* scope) {
  if (expr.kind == ExprKind::kConditional) {
    ASSIGN_OR_RETURN(const Value condition, Evaluate(*expr.items[1], scope));
    if (IsTrue(condition)) return Evaluate(*expr.items[0], scope);
    if (expr.items[2] == nullptr) return Undefined(U"inline if without else");
    return Evaluate(*expr.items[2], scope);
  }
  ASSIGN_OR_RETURN(const Value a, Evaluate(*expr.items[0], scope));
  switch (expr.kind) {
    case ExprKind::kAttribute:
      return GetAttribute(ws_, a, expr.name);
    case ExprKind::kNot:
      return Bool(!IsTrue(a));
    case ExprKind::kNegate:
      return Negate(a);
    case ExprKind::kPositive:
      return ComputeNumbers(Operator::kAdd, a, Int(0));
    case ExprKind::kAnd:
      return IsTrue(a) ? Evaluate(*expr.items[1], scope) : a;
    case ExprKind::kOr:
      return IsTrue(a) ? a : Evaluate(*expr.items[1], scope);
    default:
      break;
  }
  ASSIGN_OR_RETURN(const Value b, Evaluate(*expr.items[1], scope));
  if (expr.kind == ExprKind::kItem) return GetItem(ws_, a, b);
  return Compute(ws_, expr.op, a, b);
}

absl::StatusOr<Value> Interpreter::EvaluateItems(const Expr& expr, Scope* scope) {
  const Kind kind = expr.kind == ExprKind::kList ? Kind::kList : Kind::kTuple;
  ASSIGN_OR_RETURN(const Value result, ws_.NewSequence(kind, {}));
  ASSIGN_OR_RETURN(result.sequence->items, ws_.NewItems(expr.items.size()));
  for (size_t i = 0; i < expr.items.size(); ++i) {
    ASSIGN_OR_RETURN(result.sequence->items[i], Evaluate(*expr.items[i], scope));
  }
  return result;
}

absl::StatusOr<Value> Interpreter::EvaluateDict(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(const Value result, ws_.NewDict(expr.items.size() / 2));
  for (size_t i = 0; i < expr.items.size(); i += 2) {
    ASSIGN_OR_RETURN(const Value key, Evaluate(*expr.items[i], scope));
    ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[i + 1], scope));
    RETURN_IF_ERROR(ws_.SetEntry(*result.dict, key, value));
  }
  return result;
}

absl::StatusOr<Value> Interpreter::EvaluateSlice(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(const Value base, Evaluate(*expr.items[0], scope));
  SliceBounds bounds;
  std::optional<int64_t>* parts[] = {&bounds.start, &bounds.stop, &bounds.step};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.items[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(const Value part, Evaluate(*expr.items[i + 1], scope));
    if (part.IsInteger()) *parts[i] = part.AsInteger();
    if (!part.IsInteger() && !part.IsNone()) {
      return InvalidArgument("a slice's bound is {}, no integer", TypeName(part));
    }
  }
  return Slice(ws_, base, bounds);
}

absl::StatusOr<Value> Interpreter::EvaluateConcat(const Expr& expr, Scope* scope) {
  TextBuilder text(ws_);
  for (const Expr* item : expr.items) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*item, scope));
    RETURN_IF_ERROR(AppendStr(text, value));
  }
  return text.Finish();
}

absl::StatusOr<Value> Interpreter::EvaluateComparison(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expr.items[0], scope));
  for (size_t i = 0; i < expr.comparisons.size(); ++i) {
    ASSIGN_OR_RETURN(const Value right, Evaluate(*expr.items[i + 1], scope));
    ASSIGN_OR_RETURN(const bool holds, Compare(expr.comparisons[i], left, right));
    if (!holds) return Bool(false);
    left = right;
  }
  return Bool(true);
}

absl::StatusOr<bool> Interpreter::Compare(Comparison comparison, const Value& a, const Value& b) {
  switch (comparison) {
    case Comparison::kEqual:
      return AreEqual(ws_, a, b);
    case Comparison::kIn:
      return Contains(ws_, b, a);
    case Comparison::kNotEqual:
    case Comparison::kNotIn: {
      ASSIGN_OR_RETURN(const bool holds, comparison == Comparison::kNotIn ? Contains(ws_, b, a)
                                                                          : AreEqual(ws_, a, b));
      return !holds;
    }
    default:
      break;
  }
  ASSIGN_OR_RETURN(const int order, Order(ws_, a, b));
  switch (comparison) {
    case Comparison::kLess:
      return order < 0;
    case Comparison::kLessEqual:
      return order <= 0;
    case Comparison::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

}  // namespace trivium::model::jinja
