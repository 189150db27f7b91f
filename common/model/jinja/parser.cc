#include "common/model/jinja/parser.h"

#include <initializer_list>
#include <utility>

#include "common/model/jinja/expression_parser.h"

namespace trivium::model::jinja {
namespace {

// Real ones have a few kilobytes.
constexpr size_t kSourceBytesMax = 256 * 1024;

class StatementParser {
 public:
  explicit StatementParser(TokenStream& in) : in_(in), expressions_(in) {}

  // Up to a tag whose name is in `ends`, which is left to be read; up to the end when it is empty.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    const TokenStream::Level level(in_);
    if (level.TooDeep()) return in_.Fail("blocks are nested too deeply");
    Body body;
    while (in_.Peek().kind != TokenKind::kEnd) {
      if (in_.Peek().kind == TokenKind::kData) {
        Stmt* stmt = in_.NewStmt(StmtKind::kText);
        stmt->text = in_.Next().text;
        body.push_back(stmt);
      } else if (in_.Peek().kind == TokenKind::kVariableBegin) {
        Stmt* stmt = in_.NewStmt(StmtKind::kPrint);
        in_.Next();
        ASSIGN_OR_RETURN(stmt->value, expressions_.ParseTuple(true));
        RETURN_IF_ERROR(in_.Expect(TokenKind::kVariableEnd, "'}}'"));
        body.push_back(stmt);
      } else {
        in_.Next();  // the tag's opening
        for (const std::string_view end : ends) {
          if (in_.SeesName(end)) return body;
        }
        ASSIGN_OR_RETURN(const Stmt* stmt, ParseTag());
        body.push_back(stmt);
      }
    }
    if (ends.size() > 0) return in_.Fail("'{}' is missing", *(ends.end() - 1));
    return body;
  }

 private:
  using Result = absl::StatusOr<const Stmt*>;

  absl::Status CloseTag() { return in_.Expect(TokenKind::kBlockEnd, "'%}'"); }
  absl::Status CloseTag(std::string_view name) {
    if (!in_.TakeName(name)) return in_.Fail("'{}' is missing", name);
    return CloseTag();
  }

  // A body with a scope of its own, up to {% end %}; conditions around it no longer count.
  absl::StatusOr<Body> ParseInner(std::string_view end) {
    RETURN_IF_ERROR(CloseTag());
    const bool outer = std::exchange(in_.conditional, false);
    ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    in_.conditional = outer;
    RETURN_IF_ERROR(CloseTag(end));
    return body;
  }

  Result ParseTag() {
    const int line = in_.line();
    if (in_.Peek().kind != TokenKind::kName) return in_.Fail("a tag's name is missing");
    const Text name = in_.Next().text;
    static constexpr std::pair<std::string_view, Result (StatementParser::*)(Stmt*)> kTags[] = {
        {"if", &StatementParser::ParseIf},       {"for", &StatementParser::ParseFor},
        {"set", &StatementParser::ParseSet},     {"macro", &StatementParser::ParseMacro},
        {"call", &StatementParser::ParseCall},   {"filter", &StatementParser::ParseFilterBlock},
        {"with", &StatementParser::ParseWith},   {"generation", &StatementParser::ParseGeneration},
        {"break", &StatementParser::ParseBreak}, {"continue", &StatementParser::ParseContinue},
    };
    for (const auto& [tag, parse] : kTags) {
      if (!Equal(name, tag)) continue;
      Stmt* stmt = in_.NewStmt(StmtKind::kScope);
      stmt->line = line;
      return (this->*parse)(stmt);
    }
    return InvalidArgument("line {}: no tag named '{}'", line, ToUtf8(name));
  }

  Result ParseIf(Stmt* stmt) {
    stmt->kind = StmtKind::kIf;
    const bool outer = std::exchange(in_.conditional, true);
    for (bool more = true; more;) {
      Branch branch;
      ASSIGN_OR_RETURN(branch.condition, expressions_.ParseTuple(false));
      RETURN_IF_ERROR(CloseTag());
      ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
      stmt->branches.push_back(std::move(branch));
      more = in_.TakeName("elif");
    }
    if (in_.TakeName("else")) {
      RETURN_IF_ERROR(CloseTag());
      ASSIGN_OR_RETURN(stmt->otherwise, ParseBody({"endif"}));
    }
    in_.conditional = outer;
    RETURN_IF_ERROR(CloseTag("endif"));
    return stmt;
  }

  Result ParseFor(Stmt* stmt) {
    stmt->kind = StmtKind::kFor;
    ASSIGN_OR_RETURN(stmt->target, expressions_.ParseTarget(false, true));
    if (!in_.TakeName("in")) return in_.Fail("'in' is missing");
    ASSIGN_OR_RETURN(stmt->value, expressions_.ParseTuple(false));
    if (in_.TakeName("if")) {
      ASSIGN_OR_RETURN(stmt->condition, expressions_.Parse());
    }
    if (in_.SeesName("recursive")) return in_.Fail("recursive loops are not supported");
    RETURN_IF_ERROR(CloseTag());
    const bool outer = std::exchange(in_.conditional, false);
    ++loops_;
    ASSIGN_OR_RETURN(stmt->body, ParseBody({"else", "endfor"}));
    --loops_;
    if (in_.TakeName("else")) {
      RETURN_IF_ERROR(CloseTag());
      ASSIGN_OR_RETURN(stmt->otherwise, ParseBody({"endfor"}));
    }
    in_.conditional = outer;
    RETURN_IF_ERROR(CloseTag("endfor"));
    return stmt;
  }

  Result ParseSet(Stmt* stmt) {
    ASSIGN_OR_RETURN(stmt->target, expressions_.ParseTarget(true, true));
    if (in_.TakeOperator("=")) {
      stmt->kind = StmtKind::kSet;
      ASSIGN_OR_RETURN(stmt->value, expressions_.ParseTuple(true));
      RETURN_IF_ERROR(CloseTag());
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    stmt->value = in_.NewExpr(ExprKind::kCaptured);
    if (in_.SeesOperator("|")) {
      ASSIGN_OR_RETURN(stmt->value, expressions_.ParseFilters(stmt->value, false));
    }
    ASSIGN_OR_RETURN(stmt->body, ParseInner("endset"));
    return stmt;
  }

  absl::Status ParseParameters(MacroDefinition* macro) {
    RETURN_IF_ERROR(in_.ExpectOperator("("));
    while (!in_.TakeOperator(")")) {
      if (!macro->parameters.empty()) RETURN_IF_ERROR(in_.ExpectOperator(","));
      Parameter parameter;
      ASSIGN_OR_RETURN(const Expr* name, expressions_.ParseTarget(false, false));
      parameter.id = name->id;
      parameter.name = name->name;
      if (in_.TakeOperator("=")) {
        ASSIGN_OR_RETURN(parameter.fallback, expressions_.Parse());
      } else if (!macro->parameters.empty() && macro->parameters.back().fallback != nullptr) {
        return in_.Fail("a parameter without a default stands behind one with a default");
      }
      macro->parameters.push_back(parameter);
    }
    return absl::OkStatus();
  }

  // What a macro reads decides what it accepts.
  absl::Status ParseMacroBody(MacroDefinition* macro, std::string_view end) {
    const size_t begin = in_.program().expressions.size();
    const int loops = std::exchange(loops_, 0);
    ASSIGN_OR_RETURN(macro->body, ParseInner(end));
    loops_ = loops;
    for (size_t i = begin; i < in_.program().expressions.size(); ++i) {
      const Expr& expr = in_.program().expressions[i];
      if (expr.kind != ExprKind::kName) continue;
      macro->uses_caller |= Equal(expr.name, "caller");
      macro->uses_varargs |= Equal(expr.name, "varargs");
      macro->uses_kwargs |= Equal(expr.name, "kwargs");
    }
    return absl::OkStatus();
  }

  Result ParseMacro(Stmt* stmt) {
    stmt->kind = StmtKind::kMacro;
    ASSIGN_OR_RETURN(const Expr* name, expressions_.ParseTarget(false, false));
    stmt->macro.id = name->id;
    stmt->macro.name = name->name;
    RETURN_IF_ERROR(ParseParameters(&stmt->macro));
    RETURN_IF_ERROR(ParseMacroBody(&stmt->macro, "endmacro"));
    return stmt;
  }

  Result ParseCall(Stmt* stmt) {
    stmt->kind = StmtKind::kCall;
    stmt->macro.name = U"caller";
    if (in_.SeesOperator("(")) RETURN_IF_ERROR(ParseParameters(&stmt->macro));
    ASSIGN_OR_RETURN(stmt->value, expressions_.Parse());
    if (stmt->value->kind != ExprKind::kCall) return in_.Fail("a call is missing");
    RETURN_IF_ERROR(ParseMacroBody(&stmt->macro, "endcall"));
    return stmt;
  }

  Result ParseFilterBlock(Stmt* stmt) {
    stmt->kind = StmtKind::kFilter;
    ASSIGN_OR_RETURN(stmt->value,
                     expressions_.ParseFilters(in_.NewExpr(ExprKind::kCaptured), true));
    ASSIGN_OR_RETURN(stmt->body, ParseInner("endfilter"));
    return stmt;
  }

  Result ParseWith(Stmt* stmt) {
    while (in_.Peek().kind != TokenKind::kBlockEnd) {
      if (!stmt->assignments.empty()) RETURN_IF_ERROR(in_.ExpectOperator(","));
      ASSIGN_OR_RETURN(const Expr* target, expressions_.ParseTarget(false, false));
      RETURN_IF_ERROR(in_.ExpectOperator("="));
      ASSIGN_OR_RETURN(const Expr* value, expressions_.Parse());
      stmt->assignments.emplace_back(target, value);
    }
    ASSIGN_OR_RETURN(stmt->body, ParseInner("endwith"));
    return stmt;
  }

  // Marks what the assistant wrote, for training; the text is the same.
  Result ParseGeneration(Stmt* stmt) {
    ASSIGN_OR_RETURN(stmt->body, ParseInner("endgeneration"));
    return stmt;
  }

  Result ParseBreak(Stmt* stmt) { return ParseJump(stmt, StmtKind::kBreak); }
  Result ParseContinue(Stmt* stmt) { return ParseJump(stmt, StmtKind::kContinue); }
  Result ParseJump(Stmt* stmt, StmtKind kind) {
    if (loops_ == 0) return in_.Fail("break or continue stands outside of a loop");
    stmt->kind = kind;
    RETURN_IF_ERROR(CloseTag());
    return stmt;
  }

  TokenStream& in_;
  ExpressionParser expressions_;
  int loops_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Program>> Parse(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    return InvalidArgument("the template has {} bytes, at most {} are read", source.size(),
                           kSourceBytesMax);
  }
  auto program = std::make_unique<Program>();
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenise(source, program->texts));
  TokenStream stream(std::move(tokens), *program);
  program->loop_id = stream.Name(U"loop");
  program->caller_id = stream.Name(U"caller");
  program->varargs_id = stream.Name(U"varargs");
  program->kwargs_id = stream.Name(U"kwargs");
  ASSIGN_OR_RETURN(program->body, StatementParser(stream).ParseBody({}));
  return std::unique_ptr<const Program>(std::move(program));
}

}  // namespace trivium::model::jinja
