// Pictures through real processes: encode, prefill and decode workers give the bits of one process
// that does all three, whoever encodes and whoever is killed on the way; what a tenant has had
// encoded is its own, what is public is everybody's; and no block is lost.
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "common/engine/generate.h"
#include "common/image/testing/make_png.h"
#include "common/model/testing/tiny_model.h"
#include "common/vision/picture_encoder.h"
#include "common/vision/picture_prompt.h"
#include "common/vision/testing/tiny_tower.h"
#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int kOutputTokens = 6;
constexpr int32_t kHidden = 64;

// A model and a tower that fit each other, as files.
class Files {
 public:
  Files() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "trivium-pictures-XXXXXX").string();
    TRIVIUM_CHECK(mkdtemp(pattern.data()) != nullptr, "cannot make {}", pattern);
    folder_ = pattern;
    TRIVIUM_CHECK(model::WriteTinyModel(model(), {.hidden = kHidden}).ok(), "no model");
    TRIVIUM_CHECK(vision::WriteTinyTower(tower(), {.out_hidden = kHidden}).ok(), "no tower");
  }
  ~Files() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string model() const { return folder_ + "/model.gguf"; }
  std::string tower() const { return folder_ + "/tower.gguf"; }
  std::string folder() const { return folder_; }

 private:
  std::string folder_;
};

struct Part {
  std::string text;
  std::optional<image::Image> picture;
};

v1::GenerateRequest ToRequest(const std::vector<Part>& parts) {
  v1::GenerateRequest request = TextRequest("", kOutputTokens);
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  for (const Part& part : parts) {
    if (part.picture.has_value()) {
      message->add_parts()->set_picture(image::MakePng(*part.picture));
    } else {
      message->add_parts()->set_text(part.text);
    }
  }
  return request;
}

// Everything in this process, on one engine.
class Oracle {
 public:
  explicit Oracle(const Files& files)
      : model_(*model::Model::Load(files.model())),
        encoder_(*vision::Tower::Load(files.tower()), Ops()),
        prompt_(*vision::PicturePrompt::Make(encoder_.tower().config, *model_->tokenizer)),
        pool_(kBlocks) {
    const kernels::KvLayout layout = engine::KvLayoutOf(model_->config);
    engine_ = std::make_unique<engine::Engine>(
        model_, Ops(), *kv::KvStorage::Create(layout, model_->config.layers, kBlocks));
  }

  engine::Generation Answer(const std::vector<Part>& parts) {
    constexpr char kMark[] = "(a picture stands here)";
    std::string content;
    std::vector<vision::PicturePlan> plans;
    std::vector<std::vector<float>> rows;
    for (const Part& part : parts) {
      content += part.picture.has_value() ? kMark : part.text;
      if (part.picture.has_value()) Encode(*part.picture, &plans, &rows);
    }
    const model::ChatMessage message{"user", content};
    std::string text = *model_->chat_template.Render({&message, 1});
    std::vector<std::string> pieces;
    for (size_t at; (at = text.find(kMark)) != std::string::npos;) {
      pieces.push_back(text.substr(0, at));
      text.erase(0, at + sizeof(kMark) - 1);
    }
    pieces.push_back(text);
    const auto prompt = prompt_.Expand(pieces, plans, {.parse_special = true});
    TRIVIUM_CHECK(prompt.ok(), "{}", Message(prompt.status()));
    std::vector<engine::GivenRows> given;
    for (size_t i = 0; i < rows.size(); ++i) given.push_back({prompt->places[i].first, rows[i]});
    engine::SamplingParams params;
    params.max_tokens = kOutputTokens;
    params.ignore_eos = true;
    params.logprobs = 0;
    auto generation = engine::GenerateLocal(*engine_, pool_, prompt->ids, params, 512, given);
    TRIVIUM_CHECK(generation.ok(), "{}", Message(generation.status()));
    return *std::move(generation);
  }
  int32_t SlicesOf(const image::Image& picture) const {
    return vision::PlanPicture(encoder_.tower().config, picture.width, picture.height)->slices();
  }

 private:
  static constexpr int32_t kBlocks = 64;
  static std::unique_ptr<kernels::Ops> Ops() {
    return kernels::MakeOps({kernels::BestIsa(), kernels::Numerics::kBatchInvariant, 1});
  }
  void Encode(const image::Image& picture, std::vector<vision::PicturePlan>* plans,
              std::vector<std::vector<float>>* rows) {
    const vision::TowerConfig& config = encoder_.tower().config;
    plans->push_back(*vision::PlanPicture(config, picture.width, picture.height));
    for (const image::Image& slice : vision::CutPicture(config, plans->back(), picture)) {
      rows->emplace_back(static_cast<size_t>(encoder_.TokensOf(slice) * kHidden));
      encoder_.Encode({&slice, 1}, rows->back().data());
    }
  }

  std::shared_ptr<const model::Model> model_;
  vision::PictureEncoder encoder_;
  vision::PicturePrompt prompt_;
  kv::BlockPool pool_;
  std::unique_ptr<engine::Engine> engine_;
};

void ExpectRight(const Answer& answer, const engine::Generation& want) {
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.ids, want.Ids());
  ASSERT_EQ(answer.logprobs.size(), want.tokens.size());
  for (size_t i = 0; i < want.tokens.size(); ++i) {
    EXPECT_EQ(answer.logprobs[i], want.tokens[i].logprob) << "token " << i;
  }
}

ClusterOptions OptionsFor(const Files& files, int encode_workers) {
  ClusterOptions options;
  options.model = files.model();
  options.tower = files.tower();
  options.encode_workers = encode_workers;
  options.prefill_kv_bytes = options.decode_kv_bytes = 4 << 20;
  return options;
}

std::vector<Part> Question(uint32_t seed) {
  return {{"What is on ", {}},
          {"", image::NoiseImage(64, 64, seed)},
          {" and on ", {}},
          {"", image::NoiseImage(50, 20, seed + 1)},
          {"?", {}}};
}

TEST(PicturesTest, SeparateStagesGiveTheBitsOfOneProcess) {
  const Files files;
  Oracle oracle(files);
  ClusterOptions options = OptionsFor(files, 2);
  options.router_config = "";  // what a tenant sends is kept for it
  Cluster cluster(options);
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  const std::vector<Part> question = Question(1);
  const engine::Generation want = oracle.Answer(question);
  const int32_t slices =
      oracle.SlicesOf(*question[1].picture) + oracle.SlicesOf(*question[3].picture);

  const Answer first = cluster.Generate(ToRequest(question));
  ExpectRight(first, want);
  EXPECT_EQ(first.done.served_by().slices_encoded(), slices);
  EXPECT_EQ(first.done.served_by().encode_workers_size(), 2) << "they share one request's slices";

  // The same again: a picture prefix is a KV prefix, and no slice is asked for.
  const Answer again = cluster.Generate(ToRequest(question));
  ExpectRight(again, want);
  EXPECT_GT(again.done.usage().cached_prompt_tokens(), 0);
  EXPECT_EQ(again.done.served_by().slices_encoded() + again.done.served_by().slices_cached(), 0);

  // Behind another text: nothing of the KV, but all of the multimedia tokens.
  std::vector<Part> other = question;
  other[0].text = "Look closely. " + other[0].text;
  const Answer behind = cluster.Generate(ToRequest(other));
  ExpectRight(behind, oracle.Answer(other));
  EXPECT_EQ(behind.done.served_by().slices_encoded(), 0);
  EXPECT_EQ(behind.done.served_by().slices_cached(), slices);

  // Damaged behind its header: the client hears which stage says so.
  v1::GenerateRequest damaged = ToRequest(question);
  std::string* file =
      damaged.mutable_chat()->mutable_messages(0)->mutable_parts(1)->mutable_picture();
  file->resize(file->size() / 2);
  const Answer refused = cluster.Generate(damaged);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kInvalidArgument) << refused.status;
  EXPECT_NE(Message(refused.status).find("encode worker"), std::string::npos) << refused.status;
  file->assign("no picture at all");
  const Answer unread = cluster.Generate(damaged);
  EXPECT_EQ(unread.status.code(), absl::StatusCode::kInvalidArgument) << unread.status;
  EXPECT_NE(Message(unread.status).find("picture 0"), std::string::npos) << unread.status;
  EXPECT_TRUE(cluster.WaitIdle(std::chrono::seconds(30)).ok());
}

TEST(PicturesTest, APrefillWorkerMayHaveTheTowerItself) {
  const Files files;
  Oracle oracle(files);
  ClusterOptions options = OptionsFor(files, 0);
  options.encodes_locally = true;
  Cluster cluster(options);
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  const std::vector<Part> question = Question(5);
  const Answer answer = cluster.Generate(ToRequest(question));
  ExpectRight(answer, oracle.Answer(question));
  ASSERT_EQ(answer.done.served_by().encode_workers_size(), 1);
  EXPECT_EQ(answer.done.served_by().encode_workers(0), "prefill-0");
  EXPECT_TRUE(cluster.WaitIdle(std::chrono::seconds(30)).ok());
}

// Looks again and again at the blocks of multimedia tokens of encode and prefill workers: none is
// ever lost or counted twice, whoever is killed meanwhile.
class BlockWatch {
 public:
  explicit BlockWatch(Cluster& cluster) : cluster_(cluster) {
    const v1::ClusterStatusResponse status = cluster.Status();
    for (const v1::WorkerStatus& worker : status.workers()) {
      if (worker.role() == "encode") Add(worker, "trivium_encode_blocks", worker.blocks_total());
      if (worker.role() == "prefill") {
        Add(worker, "trivium_picture_blocks", worker.picture_blocks_total());
      }
    }
    thread_ = std::thread([this] {
      while (!is_over_) Look();
    });
  }
  ~BlockWatch() {
    is_over_ = true;
    thread_.join();
    for (const Watched& one : watched_) EXPECT_GT(one.in_use, 0) << "never seen busy: " << one.name;
  }

 private:
  struct Watched {
    std::string name, metric;
    double total;
    int in_use = 0;  // times that some were
  };
  void Add(const v1::WorkerStatus& worker, std::string metric, int32_t total) {
    watched_.push_back({worker.id(), std::move(metric), static_cast<double>(total)});
  }
  void Look() {
    for (Watched& one : watched_) {
      const std::string page = cluster_.Metrics(one.name);
      const auto value = [&](const char* state) {
        const std::string line = fmt::format("\n{}{{state=\"{}\"}} ", one.metric, state);
        const size_t at = page.find(line);
        return at == std::string::npos ? -1 : std::atof(page.c_str() + at + line.size());
      };
      const double free = value("free"), used = value("used"), leased = value("leased");
      if (free < 0 || used < 0 || leased < 0) continue;  // killed
      EXPECT_EQ(free + used + leased, one.total) << one.name;
      one.in_use += used > 0 ? 1 : 0;
    }
  }

  Cluster& cluster_;
  std::vector<Watched> watched_;
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

// Polls; false after a minute.
bool Becomes(const std::function<bool()>& condition) {
  const TimePoint begin = Clock::Real().Now();
  while (Clock::Real().Now() - begin < std::chrono::minutes(1)) {
    if (condition()) return true;
    std::this_thread::yield();
  }
  return false;
}

// The prefill worker is held while the encode worker sends, so that nothing it has sent is taken
// when it dies.
TEST(PicturesTest, AnEncoderKilledInMidTransferLeavesNothingBehind) {
  const Files files;
  Oracle oracle(files);
  ClusterOptions options = OptionsFor(files, 2);
  options.timeout_scale = 3;  // nobody is given up for being held
  Cluster cluster(options);
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  const auto in_use = [&](const char* name, const char* metric) {
    return cluster.MetricSum(name, fmt::format("{}{{state=\"used\"}}", metric)) > 0;
  };
  const std::vector<Part> question = Question(40);
  cluster.worker("encode", 0).Signal(SIGSTOP);
  Answer answer;
  std::thread client([&] { answer = cluster.Generate(ToRequest(question)); });
  // What the other one was asked for has landed: so tickets are out, and this one was asked too.
  EXPECT_TRUE(
      Becomes([&] { return cluster.MetricSum("encode-1", "trivium_encode_requests_total") >= 2; }));
  EXPECT_TRUE(in_use("prefill-0", "trivium_picture_blocks"));
  cluster.worker("prefill", 0).Signal(SIGSTOP);
  cluster.worker("encode", 0).Signal(SIGCONT);
  EXPECT_TRUE(Becomes([&] {
    return cluster.MetricSum("encode-0", "trivium_encode_slices_total") > 0 &&
           in_use("encode-0", "trivium_encode_blocks");
  }));
  EXPECT_EQ(cluster.MetricSum("encode-0", "trivium_encode_requests_total"), 0) << "none has landed";
  cluster.worker("encode", 0).Signal(SIGKILL);
  cluster.worker("encode", 0).Wait(std::chrono::seconds(10));
  cluster.worker("prefill", 0).Signal(SIGCONT);
  client.join();
  ExpectRight(answer, oracle.Answer(question));
  EXPECT_EQ(answer.done.served_by().encode_workers_size(), 1);
  EXPECT_EQ(answer.done.served_by().attempts(), 1) << "what was lost was asked for again, alone";
  cluster.Restart("encode", 0);
  const absl::Status idle = cluster.WaitIdle(std::chrono::seconds(60));
  EXPECT_TRUE(idle.ok()) << idle;
}

// Killed again and again while requests are under way: each is answered, rightly, by the one that
// is left; then all blocks are free.
TEST(PicturesTest, AKilledEncoderIsMadeUpForByTheOther) {
  const Files files;
  Oracle oracle(files);
  Cluster cluster(OptionsFor(files, 2));
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  constexpr int kClients = 2, kKills = 3;
  std::optional<BlockWatch> watch(cluster);
  std::atomic<bool> is_over{false};
  std::vector<std::vector<Answer>> answers(kClients);
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      const auto request = ToRequest(Question(static_cast<uint32_t>(10 + 2 * i)));
      while (!is_over) answers[static_cast<size_t>(i)].push_back(cluster.Generate(request));
    });
  }
  for (int kill = 0; kill < kKills; ++kill) {
    const double before = cluster.MetricSum("encode-0", "trivium_encode_slices_total");
    for (double sent = before; sent < before + 20;) {
      sent = cluster.MetricSum("encode-0", "trivium_encode_slices_total");
    }
    cluster.worker("encode", 0).Signal(SIGKILL);
    cluster.worker("encode", 0).Wait(std::chrono::seconds(10));
    cluster.Restart("encode", 0);
    const absl::Status ready = cluster.WaitReady(1, 1, std::chrono::seconds(60), 2);
    EXPECT_TRUE(ready.ok()) << ready;
  }
  is_over = true;
  for (std::thread& client : clients) client.join();
  watch.reset();
  for (int i = 0; i < kClients; ++i) {
    const engine::Generation want = oracle.Answer(Question(static_cast<uint32_t>(10 + 2 * i)));
    for (const Answer& answer : answers[static_cast<size_t>(i)]) ExpectRight(answer, want);
  }
  const absl::Status idle = cluster.WaitIdle(std::chrono::seconds(30));
  EXPECT_TRUE(idle.ok()) << idle;
}

TEST(PicturesTest, WithoutAnEncoderPicturesAreRefusedAndTextGoesOn) {
  const Files files;
  ClusterOptions options = OptionsFor(files, 1);
  options.router_config = "stage_missing_timeout_s: 0.3\n" + options.router_config;
  Cluster cluster(options);
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  cluster.worker("encode", 0).Signal(SIGKILL);
  cluster.worker("encode", 0).Wait(std::chrono::seconds(10));
  std::thread pictured([&] {
    const Answer answer = cluster.Generate(ToRequest(Question(20)));
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable) << answer.status;
    EXPECT_NE(Message(answer.status).find("encode worker"), std::string::npos) << answer.status;
  });
  const Answer text = cluster.Generate(ToRequest({{"Hello", {}}}));
  EXPECT_TRUE(text.status.ok()) << text.status;
  pictured.join();
}

TEST(PicturesTest, ATenantsPictureIsItsOwnAndAPublicOneIsEncodedOnce) {
  const Files files;
  Oracle oracle(files);
  const image::Image secret = image::NoiseImage(64, 64, 30), poster = image::NoiseImage(64, 64, 31);
  WriteFile(files.folder() + "/poster.png", image::MakePng(poster));
  ClusterOptions options = OptionsFor(files, 1);
  options.router_config = std::string(kTwoTenants) + "pictures:\n  tower: " + files.tower() +
                          "\n  public_pictures:\n    - {id: poster, file: " + files.folder() +
                          "/poster.png}\n";
  options.api_key = "alice-key";
  Cluster cluster(options);
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  const auto encoded_for = [&](const std::string& key, const image::Image& picture,
                               const std::string& text) {
    cluster.set_api_key(key);
    const std::vector<Part> question = {{text, {}}, {"", picture}};
    const Answer answer = cluster.Generate(ToRequest(question));
    ExpectRight(answer, oracle.Answer(question));
    EXPECT_EQ(answer.done.served_by().slices_encoded() + answer.done.served_by().slices_cached(),
              oracle.SlicesOf(picture));
    return answer.done.served_by().slices_encoded();
  };
  EXPECT_EQ(encoded_for("alice-key", secret, "See "), oracle.SlicesOf(secret));
  EXPECT_EQ(encoded_for("alice-key", secret, "Look "), 0);
  EXPECT_EQ(encoded_for("bob-key", secret, "See "), oracle.SlicesOf(secret));
  EXPECT_EQ(encoded_for("alice-key", poster, "See "), oracle.SlicesOf(poster));
  EXPECT_EQ(encoded_for("bob-key", poster, "See "), 0);
}

}  // namespace
}  // namespace trivium::e2e
