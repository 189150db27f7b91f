// trivium: the command-line client of a cluster.
#include "services/cli/commands.h"

int main(int argc, char** argv) {
  using namespace trivium::cli;
  Options options;
  if (const auto code = ParseOptions(argc, argv, &options)) return *code;
  if (options.command == "chat") return RunChat(options);
  if (options.command == "generate") return RunGenerate(options);
  if (options.command == "status") return RunStatus(options);
  if (options.command == "models") return RunModels(options);
  if (options.command == "tokenize") return RunTokenize(options);
  if (options.command == "wait-ready") return RunWaitReady(options);
  return RunBench(options);
}
