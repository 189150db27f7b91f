// The second half of the expression parser: values, and what may stand behind one.
#include "common/model/jinja/expression_parser.h"

namespace trivium::model::jinja {
namespace {

constexpr size_t kItemsMax = 4000;  // of a list, a dictionary or a call

}  // namespace

ExpressionParser::Result ExpressionParser::ParsePrimary() {
  const Token& token = in_.Peek();
  switch (token.kind) {
    case TokenKind::kName:
      return ParseName(in_.Next());
    case TokenKind::kString:
      return ParseStrings();
    case TokenKind::kInteger:
    case TokenKind::kFloat: {
      Expr* number = in_.NewExpr(ExprKind::kConstant);
      number->value = token.kind == TokenKind::kFloat ? Float(token.number) : Int(token.integer);
      in_.Next();
      return number;
    }
    default:
      break;
  }
  if (in_.TakeOperator("(")) return ParseParentheses();
  if (in_.TakeOperator("[")) return ParseList();
  if (in_.TakeOperator("{")) return ParseDict();
  return in_.Fail("an expression is missing");
}

ExpressionParser::Result ExpressionParser::ParseName(const Token& token) {
  Expr* expr = in_.NewExpr(ExprKind::kConstant);
  expr->line = token.line;
  if (Equal(token.text, "true") || Equal(token.text, "True")) {
    expr->value = Bool(true);
  } else if (Equal(token.text, "false") || Equal(token.text, "False")) {
    expr->value = Bool(false);
  } else if (Equal(token.text, "none") || Equal(token.text, "None")) {
    expr->value = None();
  } else {
    expr->kind = ExprKind::kName;
    expr->id = in_.Name(token.text);
    expr->name = in_.program().names[expr->id];
  }
  return expr;
}

// Strings that follow each other are one.
ExpressionParser::Result ExpressionParser::ParseStrings() {
  Expr* expr = in_.NewExpr(ExprKind::kConstant);
  Text text = in_.Next().text;
  if (in_.Peek().kind == TokenKind::kString) {
    std::u32string& joined = in_.program().texts.emplace_back(text);
    while (in_.Peek().kind == TokenKind::kString) joined += in_.Next().text;
    text = joined;
  }
  expr->value = Borrow(text);
  return expr;
}

ExpressionParser::Result ExpressionParser::ParseParentheses() {
  if (in_.TakeOperator(")")) return in_.NewExpr(ExprKind::kTuple);
  ASSIGN_OR_RETURN(const Expr* inside, ParseTuple(true));
  RETURN_IF_ERROR(in_.ExpectOperator(")"));
  return inside;
}

ExpressionParser::Result ExpressionParser::ParseList() {
  Expr* list = in_.NewExpr(ExprKind::kList);
  while (!in_.TakeOperator("]")) {
    if (!list->items.empty()) RETURN_IF_ERROR(in_.ExpectOperator(","));
    if (in_.TakeOperator("]")) break;
    ASSIGN_OR_RETURN(const Expr* item, Parse());
    list->items.push_back(item);
    if (list->items.size() > kItemsMax) return in_.Fail("a list is too long");
  }
  return list;
}

ExpressionParser::Result ExpressionParser::ParseDict() {
  Expr* dict = in_.NewExpr(ExprKind::kDict);
  while (!in_.TakeOperator("}")) {
    if (!dict->items.empty()) RETURN_IF_ERROR(in_.ExpectOperator(","));
    if (in_.TakeOperator("}")) break;
    ASSIGN_OR_RETURN(const Expr* key, Parse());
    RETURN_IF_ERROR(in_.ExpectOperator(":"));
    ASSIGN_OR_RETURN(const Expr* value, Parse());
    dict->items.push_back(key);
    dict->items.push_back(value);
    if (dict->items.size() > kItemsMax) return in_.Fail("a dictionary is too long");
  }
  return dict;
}

ExpressionParser::Result ExpressionParser::ParsePostfix(const Expr* base) {
  for (int i = 0; i < kChainMax; ++i) {
    if (in_.TakeOperator(".")) {
      const Token token = in_.Next();
      if (token.kind == TokenKind::kInteger) {
        Expr* index = in_.NewExpr(ExprKind::kConstant);
        index->value = Int(token.integer);
        base = in_.NewExpr(ExprKind::kItem, {base, index});
        continue;
      }
      if (token.kind != TokenKind::kName) return in_.Fail("a name behind '.' is missing");
      Expr* attribute = in_.NewExpr(ExprKind::kAttribute, {base});
      attribute->name = token.text;
      base = attribute;
    } else if (in_.TakeOperator("[")) {
      ASSIGN_OR_RETURN(base, ParseSubscript(base));
    } else if (in_.SeesOperator("(")) {
      ASSIGN_OR_RETURN(base, ParseCall(base));
    } else {
      return base;
    }
  }
  return in_.Fail("an expression is too long");
}

ExpressionParser::Result ExpressionParser::ParseSubscript(const Expr* base) {
  const Expr* parts[3] = {};
  size_t part = 0;
  bool slice = false;
  while (!in_.TakeOperator("]")) {
    if (in_.TakeOperator(":")) {
      slice = true;
      if (++part > 2) return in_.Fail("a slice has too many parts");
    } else if (parts[part] != nullptr) {
      return in_.Fail("']' is missing");
    } else {
      ASSIGN_OR_RETURN(parts[part], Parse());
    }
  }
  if (slice) return in_.NewExpr(ExprKind::kSlice, {base, parts[0], parts[1], parts[2]});
  if (parts[0] == nullptr) return in_.Fail("an expression is missing");
  return in_.NewExpr(ExprKind::kItem, {base, parts[0]});
}

ExpressionParser::Result ExpressionParser::ParseCall(const Expr* callee) {
  Expr* call = in_.NewExpr(ExprKind::kCall, {callee});
  RETURN_IF_ERROR(ParseArguments(call));
  return call;
}

absl::Status ExpressionParser::ParseArguments(Expr* call) {
  RETURN_IF_ERROR(in_.ExpectOperator("("));
  for (size_t count = 0; !in_.TakeOperator(")"); ++count) {
    if (count > 0) RETURN_IF_ERROR(in_.ExpectOperator(","));
    if (count > 0 && in_.TakeOperator(")")) break;
    if (count > kItemsMax) return in_.Fail("a call has too many arguments");
    const bool only_named = !call->named.empty() || call->more_named != nullptr;
    if (in_.TakeOperator("**")) {
      if (call->more_named != nullptr) return in_.Fail("a call has two '**'");
      ASSIGN_OR_RETURN(call->more_named, Parse());
    } else if (in_.TakeOperator("*")) {
      if (call->more_arguments != nullptr) return in_.Fail("a call has two '*'");
      ASSIGN_OR_RETURN(call->more_arguments, Parse());
    } else if (in_.Peek().kind == TokenKind::kName && in_.SeesOperator("=", 1)) {
      const Text name = in_.Next().text;
      in_.Next();
      ASSIGN_OR_RETURN(const Expr* value, Parse());
      call->named.push_back({name, value});
    } else {
      if (only_named || call->more_arguments != nullptr) {
        return in_.Fail("an argument without a name stands behind one with a name");
      }
      ASSIGN_OR_RETURN(const Expr* value, Parse());
      call->arguments.push_back(value);
    }
  }
  return absl::OkStatus();
}

ExpressionParser::Result ExpressionParser::ParsePostfixAndFilters(const Expr* base) {
  for (int i = 0; i < kChainMax; ++i) {
    if (in_.SeesOperator("|")) {
      ASSIGN_OR_RETURN(base, ParseFilters(base, false));
    } else if (in_.TakeName("is")) {
      ASSIGN_OR_RETURN(base, ParseTest(base));
    } else if (in_.SeesOperator("(")) {
      ASSIGN_OR_RETURN(base, ParseCall(base));
    } else {
      return base;
    }
  }
  return in_.Fail("an expression is too long");
}

ExpressionParser::Result ExpressionParser::ParseFilters(const Expr* base, bool first) {
  for (int i = 0; (i == 0 && first) || in_.TakeOperator("|"); ++i) {
    if (i == 0 && first) in_.TakeOperator("|");
    if (i == kChainMax) return in_.Fail("an expression is too long");
    if (in_.Peek().kind != TokenKind::kName) return in_.Fail("a filter's name is missing");
    Expr* filter = in_.NewExpr(ExprKind::kFilter, {base});
    filter->name = in_.Next().text;
    filter->filter = FindFilter(filter->name);
    if (filter->filter == nullptr && !in_.conditional) {
      return in_.Fail("no filter named '{}'", ToUtf8(filter->name));
    }
    if (in_.SeesOperator("(")) RETURN_IF_ERROR(ParseArguments(filter));
    base = filter;
  }
  return base;
}

ExpressionParser::Result ExpressionParser::ParseTest(const Expr* base) {
  const bool negated = in_.TakeName("not");
  if (in_.Peek().kind != TokenKind::kName) return in_.Fail("a test's name is missing");
  Expr* test = in_.NewExpr(ExprKind::kTest, {base});
  test->name = in_.Next().text;
  test->test = FindTest(test->name);
  if (test->test == nullptr && !in_.conditional) {
    return in_.Fail("no test named '{}'", ToUtf8(test->name));
  }
  const TokenKind next = in_.Peek().kind;
  const bool operand = next == TokenKind::kString || next == TokenKind::kInteger ||
                       next == TokenKind::kFloat || in_.SeesOperator("[") ||
                       in_.SeesOperator("{") ||
                       (next == TokenKind::kName && !in_.SeesName("else") && !in_.SeesName("or") &&
                        !in_.SeesName("and"));
  if (in_.SeesOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(test));
  } else if (operand) {
    if (in_.SeesName("is")) return in_.Fail("tests cannot be chained with 'is'");
    ASSIGN_OR_RETURN(const Expr* argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(argument));
    test->arguments.push_back(argument);
  }
  return negated ? in_.NewExpr(ExprKind::kNot, {test}) : test;
}

}  // namespace trivium::model::jinja
