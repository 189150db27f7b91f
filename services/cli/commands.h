// The commands of `trivium`, one a file. Each returns the exit code of the process. Called from
// main.
#pragma once

#include "services/cli/options.h"

namespace trivium::cli {

int RunChat(const Options& options);
int RunGenerate(const Options& options);
int RunStatus(const Options& options);
int RunWatch(const Options& options);  // status --watch
int RunExplain(const Options& options);
int RunCache(const Options& options);
int RunModels(const Options& options);
int RunTokenize(const Options& options);
int RunWaitReady(const Options& options);
int RunBench(const Options& options);
int RunCompletion(const Options& options);
int RunMan(const Options& options);

}  // namespace trivium::cli
