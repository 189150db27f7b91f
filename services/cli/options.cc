#include "services/cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "common/config/flags.h"
#include "common/config/yaml_tree.h"
#include "common/net/text.h"

namespace trivium::cli {
namespace {

// Calls `set` with the parsed value, so that what is not given stays unset in the request.
template <typename T, typename Set>
CLI::Option* AddSetter(CLI::App* app, const char* name, const char* help, Set set) {
  return app->add_option_function<T>(
      name, [set](const T& value) { set(value); }, help);
}

// CLI::Range and CLI::NonNegativeNumber let "nan" pass.
CLI::Validator Between(double low, double high) {
  const std::string what = fmt::format("from {:.15g} to {:.15g}", low, high);
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);
        return number && value >= low && value <= high ? std::string() : "must be " + what;
      },
      what);
}

void AddTimeout(CLI::App* app, Options* o, const char* help) {
  app->add_option("--timeout-s", o->timeout_s, help)->check(Between(0, 86400));
}

// Whitespace around a key is no part of it. Messages never show it.
std::string CheckedKey(std::string key, const std::string& source) {
  constexpr size_t kKeyBytesMax = 512;
  key.erase(key.find_last_not_of(" \t\r\n") + 1);
  key.erase(0, key.find_first_not_of(" \t\r\n"));
  const bool is_visible =
      std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!key.empty() && key.size() <= kKeyBytesMax && is_visible) return key;
  throw CLI::ValidationError(
      source, fmt::format("is no API key: 1 to {} visible ASCII characters", kKeyBytesMax));
}

std::string KeyIn(const std::string& path) {
  absl::StatusOr<std::string> text = config::ReadSmallFile(path);
  if (!text.ok()) throw CLI::ValidationError("--api-key-file", Message(text.status()));
  return CheckedKey(*std::move(text), "--api-key-file: " + path);
}

// "ID=BIAS". The router checks the ranges.
void AddBias(const std::string& text, v1::Sampling* sampling) {
  const size_t equals = text.find('=');
  int32_t id = 0;
  float bias = 0;
  if (equals == std::string::npos || !CLI::detail::lexical_cast(text.substr(0, equals), id) ||
      !CLI::detail::lexical_cast(text.substr(equals + 1), bias)) {
    throw CLI::ValidationError("--logit-bias", "\"" + text + "\" is not ID=BIAS");
  }
  if (!sampling->mutable_logit_bias()->insert({id, bias}).second) {
    throw CLI::ValidationError("--logit-bias", "names token " + std::to_string(id) + " twice");
  }
}

void AddEdits(CLI::App* app, v1::Sampling* s) {
  AddSetter<float>(app, "--repetition-penalty", "of tokens in prompt and answer; 1 is off",
                   [s](float v) { s->set_repetition_penalty(v); });
  AddSetter<float>(app, "--presence-penalty", "of tokens in the answer; 0 is off",
                   [s](float v) { s->set_presence_penalty(v); });
  AddSetter<float>(app, "--frequency-penalty", "of each time a token is in the answer; 0 is off",
                   [s](float v) { s->set_frequency_penalty(v); });
  AddSetter<std::vector<std::string>>(app, "--logit-bias",
                                      "ID=BIAS: added to a token's logit; repeatable",
                                      [s](const std::vector<std::string>& all) {
                                        for (const std::string& one : all) AddBias(one, s);
                                      })
      ->expected(1)
      ->take_all();
}

void AddSampling(CLI::App* app, Options* o) {
  v1::Sampling* s = &o->sampling;
  AddSetter<int32_t>(app, "--max-tokens", "tokens of the answer at most",
                     [s](int32_t v) { s->set_max_tokens(v); });
  AddSetter<int32_t>(app, "--min-tokens", "tokens before the answer may end",
                     [s](int32_t v) { s->set_min_tokens(v); });
  AddSetter<float>(app, "--temperature", "0 (default) is greedy",
                   [s](float v) { s->set_temperature(v); });
  AddSetter<int32_t>(app, "--top-k", "0 is off", [s](int32_t v) { s->set_top_k(v); });
  AddSetter<float>(app, "--top-p", "1 is off", [s](float v) { s->set_top_p(v); });
  AddSetter<float>(app, "--min-p", "0 is off", [s](float v) { s->set_min_p(v); });
  AddSetter<float>(app, "--typical-p", "1 is off", [s](float v) { s->set_typical_p(v); });
  AddEdits(app, s);
  AddSetter<uint64_t>(app, "--seed", "same seed, same answer", [s](uint64_t v) { s->set_seed(v); });
  AddSetter<std::vector<std::string>>(app, "--stop", "text that ends the answer; repeatable",
                                      [s](const std::vector<std::string>& all) {
                                        for (const std::string& one : all) s->add_stop(one);
                                      })
      ->expected(1)
      ->take_all();
  app->add_option("--priority", o->priority, "-100 … 100; the lowest is preempted first");
  app->add_option("--model", o->model, "model id; default: the cluster's");
  AddTimeout(app, o, "give up after so long; 0 (default) is never");
  app->add_flag("--quiet", o->quiet, "no line of figures after the answer");
}

void AddChat(CLI::App* root, Options* o) {
  CLI::App* app = root->add_subcommand("chat", "talk; Ctrl-C stops an answer, Ctrl-D ends");
  app->add_option("--message", o->prompt, "one message instead of a conversation");
  app->add_option("--image", o->images,
                  "JPEG, PNG or WebP file before the first message; repeatable")
      ->expected(1)
      ->take_all();
  app->add_option("--system", o->system, "system message");
  AddSampling(app, o);
}

void AddPrompt(CLI::App* app, Options* o, bool with_ids) {
  CLI::Option_group* prompt = app->add_option_group("prompt", "exactly one of");
  prompt->add_option("--prompt", o->prompt, "text");
  prompt->add_option("--file", o->file, "file with the text; - is standard input")
      ->type_name("FILE");
  if (with_ids) {
    prompt->add_option("--tokens", o->token_ids, "token ids: 1,2,3")
        ->delimiter(',')
        ->expected(1, -1);
  }
  prompt->require_option(1);
  app->add_flag("--chat", o->as_chat, "the text is a user's message, not raw");
  app->add_flag("--json", o->json, "one JSON object at the end");
}

void AddGenerate(CLI::App* root, Options* o) {
  CLI::App* app = root->add_subcommand("generate", "answer one prompt");
  AddPrompt(app, o, true);
  AddSampling(app, o);
  AddSetter<int32_t>(app, "--n", "choices, drawn with --seed, --seed + 1, …",
                     [o](int32_t v) { o->sampling.set_n(v); });
  AddSetter<int32_t>(app, "--logprobs", "log-probabilities with so many alternatives (in --json)",
                     [o](int32_t v) { o->sampling.set_logprobs(v); });
  AddSetter<int32_t>(app, "--prompt-logprobs", "the same for the tokens of the prompt",
                     [o](int32_t v) { o->sampling.set_prompt_logprobs(v); });
  app->add_flag_callback(
      "--ignore-eos", [o] { o->sampling.set_ignore_eos(true); }, "go on to --max-tokens");
}

void AddOpenLoop(CLI::App* app, BenchOptions* b) {
  CLI::Option* rate = app->add_option("--rate", b->rate, "open loop: requests/s, at random times");
  rate->check(Between(1e-3, 1e5));
  CLI::Option* trace = app->add_option(
      "--trace", b->trace, "open loop: JSON lines of timestamp (ms), input_length, output_length");
  trace->type_name("FILE")->excludes(rate);
  app->get_option("--concurrency")->excludes(rate)->excludes(trace);
  for (const char* length : {"--prompt-tokens", "--max-tokens"}) {
    app->get_option(length)->excludes(trace);
  }
  app->add_option("--outstanding-max", b->outstanding_max,
                  "open loop: what is due while so many are under way is dropped and counted")
      ->check(Between(1, 1024))
      ->capture_default_str();
}

void AddMeasured(CLI::App* app, BenchOptions* b) {
  app->add_option("--warm-up-s", b->warm_up_s, "what is due earlier is sent and not measured")
      ->check(Between(0, 86400))
      ->capture_default_str();
  app->add_option("--ttft-slo-ms", b->targets.ttft_ms,
                  "goodput counts requests with a first token by then")
      ->check(Between(0, 1e9));
  app->add_option("--tpot-slo-ms", b->targets.tpot_ms, "and no more time a token after it")
      ->check(Between(0, 1e9));
}

void AddBench(CLI::App* root, Options* o) {
  BenchOptions* b = &o->bench;
  CLI::App* app = root->add_subcommand("bench", "load of random prompts, measured");
  const auto add = [app](const char* name, auto* value, double low, double high, const char* help) {
    app->add_option(name, *value, help)->check(Between(low, high))->capture_default_str();
  };
  app->add_option("--requests", b->requests, "to send in all; default: the whole trace, or 32")
      ->check(Between(1, kBenchRequestsMax));
  add("--concurrency", &b->concurrency, 1, 1024, "closed loop: requests in flight at once");
  add("--prompt-tokens", &b->prompt_tokens, 1, 1e6, "of each request");
  add("--max-tokens", &b->max_tokens, 1, 1e6, "of each answer: it is always so long");
  app->add_option("--seed", b->seed, "of the prompts and times; default: drawn anew");
  add("--token-id-min", &b->token_id_min, 0, INT32_MAX, "prompts are drawn from this id");
  add("--token-id-max", &b->token_id_max, 0, INT32_MAX, "to this one");
  AddOpenLoop(app, b);
  AddMeasured(app, b);
  AddTimeout(app, o, "of one request; 0 (default) is none");
  app->add_flag("--json", o->json, "one JSON object at the end");
}

void AddQuestions(CLI::App* root, Options* o) {
  CLI::App* status = root->add_subcommand("status", "workers, blocks and queues");
  CLI::Option* json = status->add_flag("--json", o->json, "one JSON object");
  CLI::Option* watch =
      status->add_flag("--watch", o->watch.on, "go on, in place on a terminal, else a line each");
  watch->excludes(json);
  status->add_option("--interval-s", o->watch.interval_s, "of --watch")
      ->check(Between(0.05, 3600))
      ->needs(watch)
      ->capture_default_str();
  status->add_option("--count", o->watch.count, "--watch ends after so many; default: Ctrl-C")
      ->check(Between(1, INT32_MAX))
      ->needs(watch);
  CLI::App* models = root->add_subcommand("models", "what the cluster serves");
  models->add_flag("--json", o->json, "one JSON object");
  AddPrompt(root->add_subcommand("tokenize", "text as token ids"), o, false);
  CLI::App* explain =
      root->add_subcommand("explain", "why a request went to the workers that it went to");
  explain->add_option("request_id", o->request_id, "as the answer gave it: see generate --json")
      ->required();
  CLI::App* wait = root->add_subcommand("wait-ready", "wait until a request could be served");
  AddTimeout(wait, o, "give up after so long; default 60");
  wait->add_option("--prefill", o->prefill_workers, "ready prefill workers")
      ->check(Between(0, 1024));
  wait->add_option("--decode", o->decode_workers, "ready decode workers")->check(Between(0, 1024));
}

void AddCache(CLI::App* root, Options* o) {
  CLI::App* cache = root->add_subcommand("cache", "the router's cache of answers");
  cache->add_option("action", o->cache.action, "what to do")
      ->required()
      ->check(CLI::IsMember({"stats", "explain", "invalidate"}));
  cache->add_option("--question", o->cache.question, "of explain: what would be asked");
  cache->add_option("--system", o->system, "of explain: the system prompt before it");
  cache->add_option("--category", o->cache.category, "of explain and invalidate; default: any");
  cache->add_option("--tenant", o->cache.tenant, "of invalidate, for administrators; default: any");
  cache->add_option("--older-than-s", o->cache.older_than_s, "of invalidate; default: of any age")
      ->check(Between(0, 1e9));
}

void AddDocuments(CLI::App* root, Options* o) {
  CLI::App* completion = root->add_subcommand("completion", "a script that completes this program");
  completion->add_option("shell", o->shell, "whose script")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  root->add_subcommand("man", "the manual page, for man -l");
}

std::unique_ptr<CLI::App> MakeApp(Options* options) {
  auto app = std::make_unique<CLI::App>("Asks a Trivium cluster.", "trivium");
  app->set_version_flag("--version", "trivium " + std::string(config::Version()),
                        "print the version and end");
  app->set_help_flag("-h,--help", "print what there is and end");
  app->add_option("--router", options->router, "HOST:PORT of the router")
      ->envname("TRIVIUM_ROUTER")
      ->capture_default_str();
  AddSetter<std::string>(app.get(), "--api-key-file",
                         "file with the API key; or the key itself in TRIVIUM_API_KEY",
                         [options](const std::string& path) { options->api_key = KeyIn(path); })
      ->type_name("FILE");
  app->require_subcommand(1);
  app->fallthrough();
  AddChat(app.get(), options);
  AddGenerate(app.get(), options);
  AddBench(app.get(), options);
  AddQuestions(app.get(), options);
  AddCache(app.get(), options);
  AddDocuments(app.get(), options);
  return app;
}

}  // namespace

CommandInfo DescribeCommands() {
  Options defaults;
  return Describe(*MakeApp(&defaults));
}

std::optional<int> ParseOptions(int argc, const char* const* argv, Options* options) {
  const std::unique_ptr<CLI::App> owner = MakeApp(options);
  CLI::App& app = *owner;
  try {
    app.parse(argc, argv);
    options->command = app.get_subcommands().at(0)->get_name();
    const char* key = std::getenv("TRIVIUM_API_KEY");
    if (options->api_key.empty() && key != nullptr && *key != '\0') {
      options->api_key = CheckedKey(key, "TRIVIUM_API_KEY");
    }
    if (options->bench.token_id_min <= options->bench.token_id_max) return std::nullopt;
    throw CLI::ValidationError("--token-id-max", "lies below --token-id-min");
  } catch (const CLI::CallForVersion& version) {
    std::printf("%s\n", version.what());
    return 0;
  } catch (const CLI::Success&) {  // --help, of the program or of a command
    const auto chosen = app.get_subcommands();
    std::fputs((chosen.empty() ? app : *chosen[0]).help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "trivium: %s; see --help\n", net::Escape(error.what(), 300).c_str());
    return 2;
  }
}

}  // namespace trivium::cli
