// A parsed template. Built by the parser, immutable afterwards and then safe from any thread; nodes
// live as long as their Program. Its nesting is bounded, so that going through it may recurse.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

using NameId = uint32_t;  // of a variable: its place in Program::names

enum class ExprKind : uint8_t {
  kConstant,     // value
  kName,         // id
  kTuple,        // items
  kList,         // items
  kDict,         // items: key, value, key, value…
  kAttribute,    // items[0].name
  kItem,         // items[0][items[1]]
  kSlice,        // items[0][items[1]:items[2]:items[3]]; null where left out
  kCall,         // items[0](arguments)
  kFilter,       // items[0]|name(arguments)
  kTest,         // items[0] is name(arguments)
  kNot,          // items[0]
  kNegate,       // items[0]
  kPositive,     // items[0]
  kAnd,          // items[0], items[1]
  kOr,           // items[0], items[1]
  kBinary,       // items[0] op items[1]
  kConcat,       // all items as text
  kCompare,      // items[0] comparisons[0] items[1] comparisons[1] items[2]…
  kConditional,  // items[0] if items[1] else items[2]; the last is null where left out
  kCaptured,     // what the enclosing filter or set block has written
};

enum class Comparison : uint8_t {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

struct Expr;

struct NamedArgument {
  Text name;
  const Expr* value = nullptr;
};

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  int line = 0;
  Operator op{};
  NameId id = 0;
  Value value;
  Text name;
  std::vector<const Expr*> items;
  std::vector<Comparison> comparisons;
  // Of a call, a filter or a test.
  std::vector<const Expr*> arguments;
  std::vector<NamedArgument> named;
  const Expr* more_arguments = nullptr;  // *sequence
  const Expr* more_named = nullptr;      // **mapping
  Filter filter =
      nullptr;  // null: no filter or test of that name, which is an error when it is reached
  Test test = nullptr;
};

enum class StmtKind : uint8_t {
  kText,      // text
  kPrint,     // value
  kIf,        // branches, then otherwise
  kFor,       // target in value if condition: body; otherwise
  kSet,       // target = value
  kSetBlock,  // target = value, where kCaptured is what body writes
  kFilter,    // writes value, where kCaptured is what body writes
  kMacro,     // macro
  kCall,      // writes value, a call whose `caller` is macro
  kScope,     // body with the variables of assignments
  kBreak,
  kContinue,
};

struct Stmt;
using Body = std::vector<const Stmt*>;

struct Branch {
  const Expr* condition = nullptr;
  Body body;
};

struct Parameter {
  NameId id = 0;
  Text name;
  const Expr* fallback = nullptr;
};

struct MacroDefinition {
  NameId id = 0;
  Text name;
  std::vector<Parameter> parameters;
  Body body;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  Text text;
  const Expr* target = nullptr;  // a name, a tuple of names, or an attribute of a name
  const Expr* value = nullptr;
  const Expr* condition = nullptr;
  std::vector<Branch> branches;
  Body body, otherwise;
  MacroDefinition macro;
  std::vector<std::pair<const Expr*, const Expr*>> assignments;
};

struct Program {
  std::deque<std::u32string> texts;  // what values and names point to
  std::deque<Expr> expressions;
  std::deque<Stmt> statements;
  std::vector<Text> names;
  NameId loop_id = 0, caller_id = 0, varargs_id = 0, kwargs_id = 0;
  Body body;
};

}  // namespace trivium::model::jinja
