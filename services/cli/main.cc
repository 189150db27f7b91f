// trivium: the command-line client of a cluster.
#include <map>

#include "services/cli/commands.h"

int main(int argc, char** argv) {
  using namespace trivium::cli;
  Options options;
  if (const auto code = ParseOptions(argc, argv, &options)) return *code;
  const std::map<std::string, int (*)(const Options&)> commands = {
      {"chat", RunChat},       {"generate", RunGenerate}, {"status", RunStatus},
      {"models", RunModels},   {"tokenize", RunTokenize}, {"wait-ready", RunWaitReady},
      {"explain", RunExplain}, {"bench", RunBench},       {"completion", RunCompletion},
      {"man", RunMan},         {"cache", RunCache}};
  return commands.at(options.command)(options);
}
