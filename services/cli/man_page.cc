#include "services/cli/man_page.h"

#include <fmt/format.h>

namespace trivium::cli {
namespace {

constexpr char kDescription[] = R"(.SH DESCRIPTION
.B trivium
is the command\-line client of a Trivium cluster: it talks to the router, which passes prompts to
prefill workers and answers from decode workers.
.PP
The answer goes to standard output, everything else to standard error.
A prompt is at most 8 MiB of UTF\-8.
Text of the model is printed to a terminal without the control characters that a terminal would obey.
.PP
Options of the program may stand before or behind the command.
)";

constexpr char kEnd[] = R"(.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
An error; one line on standard error says which.
.TP
.B 2
A command line that is wrong.
.TP
.B 130
Ended by Ctrl\-C.
.SH EXAMPLES
.TP
A conversation:
.B trivium chat
.TP
One answer, with all its figures:
.B trivium generate \-\-prompt \(dq2 + 2 =\(dq \-\-max\-tokens 8 \-\-json
.TP
The cluster, once a second:
.B trivium status \-\-watch
.TP
Completion in this shell:
.B source <(trivium completion bash)
.SH SEE ALSO
.BR curl (1),
.BR man (1)
)";

// "a, b" in bold; the value behind it in italics.
std::string Heading(const OptionInfo& option) {
  std::string out;
  for (const std::string& name : option.names) {
    out += (out.empty() ? "\\fB" : ", \\fB") + Roff(name) + "\\fR";
  }
  if (option.value.empty()) return out;
  return out + (out.empty() ? "" : " ") + "\\fI" + Roff(option.value) + "\\fR";
}

std::string Sentence(const std::string& text) {
  if (text.empty()) return "";
  std::string out = text;
  if (out[0] >= 'a' && out[0] <= 'z') out[0] = static_cast<char>(out[0] - 'a' + 'A');
  return out + (out.back() == '.' ? "" : ".");
}

std::string OptionEntry(const OptionInfo& option) {
  std::string text = Sentence(option.help);
  if (!option.choices.empty()) {
    text += fmt::format(" One of {}.", fmt::join(option.choices, ", "));
  } else if (!option.range.empty()) {
    text += fmt::format(" It must be {}.", option.range);
  }
  if (!option.default_value.empty())
    text += fmt::format(" The default is {}.", option.default_value);
  if (!option.environment.empty()) {
    text += fmt::format(" The environment variable {} sets it too.", option.environment);
  }
  return ".TP\n" + Heading(option) + "\n" + Roff(text) + "\n";
}

std::string CommandEntry(const CommandInfo& command) {
  std::string out =
      fmt::format(".SS trivium {}\n{}\n", Roff(command.name), Roff(Sentence(command.help)));
  for (const OptionInfo& option : command.options) out += OptionEntry(option);
  return out;
}

std::string Synopsis(const CommandInfo& program) {
  std::string out = ".SH SYNOPSIS\n";
  for (const CommandInfo& command : program.commands) {
    std::string arguments;
    for (const OptionInfo& option : command.options) {
      if (option.names.empty()) arguments += " \\fI" + Roff(option.value) + "\\fR";
    }
    out += fmt::format("{}\\fBtrivium {}\\fR [\\fIOPTION\\fR]...{}\n",
                       &command == &program.commands.front() ? "" : ".br\n", Roff(command.name),
                       arguments);
  }
  return out;
}

}  // namespace

std::string Roff(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool line_start = out.empty() || out.back() == '\n';
    if (line_start && (text[i] == '.' || text[i] == '\'')) out += "\\&";
    if (text[i] == '\\') {
      out += "\\e";
    } else if (text[i] == '-') {
      out += "\\-";
    } else if (text.compare(i, 3, "…") == 0) {
      out += "...";
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string ManPage(const CommandInfo& program, const std::string& version) {
  std::string out = fmt::format(
      ".TH TRIVIUM 1 \"\" \"Trivium {}\" \"User Commands\"\n"
      ".SH NAME\ntrivium \\- ask a cluster that serves language models\n",
      Roff(version));
  out += Synopsis(program) + kDescription + ".SH OPTIONS\n";
  for (const OptionInfo& option : program.options) out += OptionEntry(option);
  out += ".SH COMMANDS\n";
  for (const CommandInfo& command : program.commands) out += CommandEntry(command);
  return out + kEnd;
}

}  // namespace trivium::cli
