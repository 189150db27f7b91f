#include "common/kv/block_key.h"

#include <gtest/gtest.h>

#include <climits>
#include <functional>
#include <numeric>
#include <random>
#include <set>

namespace trivium::kv {
namespace {

const std::string kMaster(32, 'm');

DomainKey KeyOf(std::string_view id, uint64_t epoch = 1) {
  return *DeriveDomainKey(kMaster, id, epoch);
}
Domain Last(std::string_view id) { return {.key = KeyOf(id), .token_end = INT32_MAX}; }
Domain Until(std::string_view id, int32_t end) { return {.key = KeyOf(id), .token_end = end}; }

std::vector<int32_t> Tokens(int32_t count, int32_t first = 1) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

struct Input {
  KeySpace space{.model = "model", .numerics_class = "fast/avx512", .kv_format = 1};
  std::vector<Domain> domains{Last("alice")};
  std::vector<MediaSpan> media;
  std::vector<int32_t> tokens = Tokens(48);
};

std::vector<BlockKey> KeysOf(const Input& input) {
  auto chain = BlockChain::Create(input.space, input.domains, input.media);
  EXPECT_TRUE(chain.ok()) << chain.status();
  chain->Append(input.tokens);
  return {chain->keys().begin(), chain->keys().end()};
}

std::string Hex(std::span<const uint8_t> bytes) {
  std::string out;
  for (uint8_t byte : bytes) out += fmt::format("{:02x}", byte);
  return out;
}

// The recipe in another implementation: Python's hashlib.blake2b with `key`, `person` and
// digest_size 32, over parts of a letter, a length of four bytes and the bytes:
//   part = lambda t, b: t + struct.pack('<I', len(b)) + b
//   h = lambda person, key, data: hashlib.blake2b(data, key=key, person=person, digest_size=32)
//   master = h(b'trivium.master  ', b'trivium', b'm' * 32)
//   alice = h(b'trivium.domain  ', master, part(b'd', b'alice') + part(b'e', pack('<Q', 1)))
//   root = h(b'trivium.kvspace ', b'trivium', part(b'm', b'model') + part(b'n', b'fast/avx512') +
//            part(b'f', pack('<I', 1)) + part(b'b', pack('<i', 16)))
//   first = h(b'trivium.kvblock ', alice, part(b'p', root) + part(b't', pack('<16i', 1 … 16)))
//   second: + part(b'o', pack('<i', 8)) + part(b'l', pack('<i', 4)) + part(b'i', bytes(range(32)))
TEST(BlockKeyTest, AgreesWithAnotherImplementation) {
  Input input;
  input.media = {{.position = 24, .tokens = 4}};
  std::iota(input.media[0].digest.begin(), input.media[0].digest.end(), uint8_t{0});
  EXPECT_EQ(Hex(KeyOf("alice").bytes),
            "03a3ccd65412d114c50d2843f6cbdba8391bfaa6ebd7777b6cd368c8b323c459");
  EXPECT_EQ(fmt::format("{:016x}", TagOf(KeyOf("alice")).value), "8f9f58b267c30665");
  const std::vector<BlockKey> keys = KeysOf(input);
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(Hex(keys[0].bytes), "d16c2a3ae063a5cfc4d92edd6674fa9a404d057bd79c821d0b52b39d3b828302");
  EXPECT_EQ(Hex(keys[1].bytes), "9b38b93e1bcc9294ee042ae33313f67aee17f2a9ba19162d644df42cb3a427b7");
  EXPECT_EQ(fmt::format("{:016x} {:016x}", Cut(keys[0]).high, Cut(keys[0]).low),
            "cfa563e03a2a6cd1 9afa7466dd2ed9c4");
}

TEST(BlockKeyTest, HowTokensArriveMakesNoDifference) {
  constexpr uint32_t kSeed = 77;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  for (int round = 0; round < 200; ++round) {
    Input input;
    input.space.block_tokens = static_cast<int32_t>(random() % 20 + 1);
    input.tokens = Tokens(static_cast<int32_t>(random() % 200), static_cast<int32_t>(random()));
    for (int32_t at = static_cast<int32_t>(random() % 30); at < 200;) {
      const auto tokens = static_cast<int32_t>(random() % 60 + 1);
      input.media.push_back({.position = at, .tokens = tokens});
      input.media.back().digest[0] = static_cast<uint8_t>(random());
      at += tokens + static_cast<int32_t>(random() % 9);
    }
    auto pieces = *BlockChain::Create(input.space, input.domains, input.media);
    std::span<const int32_t> left = input.tokens;
    while (!left.empty()) {
      const size_t count = std::min<size_t>(random() % 40, left.size());
      pieces.Append(left.first(count));
      left = left.subspan(count);
    }
    const std::vector<BlockKey> whole = KeysOf(input);
    ASSERT_EQ(whole.size(), input.tokens.size() / static_cast<size_t>(input.space.block_tokens));
    ASSERT_EQ(std::vector(pieces.keys().begin(), pieces.keys().end()), whole) << "round " << round;
    for (int32_t i = 0; i < pieces.size(); ++i) {
      const auto width = static_cast<size_t>(input.space.block_tokens);
      const KeyedBlock block = pieces.block(i);
      ASSERT_EQ(block.key, whole[static_cast<size_t>(i)]);
      ASSERT_TRUE(i == 0 || block.parent == whole[static_cast<size_t>(i - 1)]);
      ASSERT_TRUE(std::ranges::equal(
          block.tokens, std::span(input.tokens).subspan(static_cast<size_t>(i) * width, width)));
    }
  }
}

struct Change {
  const char* what;
  std::function<void(Input&)> make;
  int same = 0;  // leading blocks whose keys stay
};

// Each change alone gives new keys to the block where it is and to all behind it.
TEST(BlockKeyTest, EveryPartCounts) {
  const auto picture = [](int32_t position, int32_t tokens, uint8_t first_byte) {
    MediaSpan span{.position = position, .tokens = tokens};
    span.digest[0] = first_byte;
    return span;
  };
  const std::vector<Change> changes = {
      {"a first token", [](Input& in) { in.tokens[0] = 0; }},
      {"the last token of a block", [](Input& in) { in.tokens[31] = -1; }, 1},
      {"two tokens in another order", [](Input& in) { std::swap(in.tokens[33], in.tokens[34]); },
       2},
      {"another domain", [](Input& in) { in.domains = {Last("bob")}; }},
      {"another epoch",
       [](Input& in) { in.domains = {{.key = KeyOf("alice", 2), .token_end = INT32_MAX}}; }},
      {"a domain later on",
       [](Input& in) {
         in.domains = {Until("alice", 16), Last("bob")};
       },
       1},
      {"a public beginning",
       [](Input& in) {
         in.domains = {Until("public", 16), Last("alice")};
       }},
      {"the model", [](Input& in) { in.space.model = "model2"; }},
      {"the numerics", [](Input& in) { in.space.numerics_class = "fast/avx2"; }},
      {"the border between model and numerics",
       [](Input& in) { in.space.model += "f", in.space.numerics_class.erase(0, 1); }},
      {"the format", [](Input& in) { in.space.kv_format = 2; }},
      {"a picture", [&](Input& in) { in.media = {picture(20, 4, 1)}; }, 1},
      {"another picture", [&](Input& in) { in.media = {picture(20, 4, 2)}; }, 1},
      {"a picture elsewhere in its block", [&](Input& in) { in.media = {picture(21, 4, 1)}; }, 1},
      {"a longer picture", [&](Input& in) { in.media = {picture(20, 5, 1)}; }, 1},
      {"one that goes on in the next block", [&](Input& in) { in.media = {picture(20, 13, 1)}; },
       1},
      {"two pictures",
       [&](Input& in) {
         in.media = {picture(20, 4, 1), picture(24, 4, 2)};
       },
       1},
      {"the same two, the other way round",
       [&](Input& in) {
         in.media = {picture(20, 4, 2), picture(24, 4, 1)};
       },
       1},
      {"a picture in the last block", [&](Input& in) { in.media = {picture(47, 1, 1)}; }, 2},
  };
  const std::vector<BlockKey> original = KeysOf({});
  std::set<BlockKey> seen(original.begin(), original.end());
  for (const Change& change : changes) {
    Input input;
    change.make(input);
    const std::vector<BlockKey> keys = KeysOf(input);
    ASSERT_EQ(keys.size(), 3u);
    for (int i = 0; i < 3; ++i) {
      const BlockKey& key = keys[static_cast<size_t>(i)];
      if (i < change.same) {
        EXPECT_EQ(key, original[static_cast<size_t>(i)]) << change.what << ", block " << i;
      } else {
        EXPECT_TRUE(seen.insert(key).second) << change.what << ", block " << i;
      }
    }
  }
  // Other blocks mean other borders, so that no key is comparable.
  Input narrow;
  narrow.space.block_tokens = 8;
  for (const BlockKey& key : KeysOf(narrow)) EXPECT_TRUE(seen.insert(key).second);
}

// A picture's digest in the place of tokens, or tokens that spell a picture's part, are neither.
TEST(BlockKeyTest, TokensCannotSpellAPicture) {
  Input spelled, pictured;
  spelled.space.block_tokens = pictured.space.block_tokens = 4;
  pictured.tokens = Tokens(4);
  pictured.media = {{.position = 0, .tokens = 4}};
  spelled.tokens = Tokens(4);
  spelled.tokens.resize(4 + 14);  // as many words as the parts of a picture have
  EXPECT_NE(KeysOf(spelled)[0], KeysOf(pictured)[0]);
  spelled.space.block_tokens = 18;
  EXPECT_NE(KeysOf(spelled)[0], KeysOf(pictured)[0]);
}

TEST(BlockKeyTest, TenantsShareWhatIsPublicAndNothingElse) {
  const auto keys = [](std::vector<Domain> domains) {
    Input input;
    input.domains = std::move(domains);
    input.tokens = Tokens(80);
    return KeysOf(input);
  };
  const auto alice = keys({Until("public", 32), Last("alice")});
  const auto bob = keys({Until("public", 32), Last("bob")});
  const auto longer = keys({Until("public", 48), Last("alice")});
  const auto shorter = keys({Until("public", 16), Last("alice")});
  const auto grouped = keys({Until("public", 32), Until("group", 48), Last("alice")});
  for (size_t i = 0; i < 5; ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(alice[i] == bob[i], i < 2);
    EXPECT_EQ(alice[i] == longer[i], i < 2);
    EXPECT_EQ(alice[i] == shorter[i], i < 1);
    EXPECT_EQ(alice[i] == grouped[i], i < 2);
  }
}

TEST(BlockKeyTest, BlocksKnowTheirDomains) {
  auto chain = *BlockChain::Create({}, {Until("public", 32), Until("group", 48), Last("alice")});
  chain.Append(Tokens(100));
  const std::vector<std::string> expected = {"public", "public", "group",
                                             "alice",  "alice",  "alice"};
  ASSERT_EQ(chain.size(), 6);
  for (int32_t i = 0; i < 6; ++i) {
    const DomainKey key = KeyOf(expected[static_cast<size_t>(i)]);
    EXPECT_EQ(chain.domain(i).key, key);
    EXPECT_EQ(chain.block(i).domain, TagOf(key));
  }
  EXPECT_EQ(chain.owner(), TagOf(KeyOf("alice")));
  BlockChain none = *BlockChain::Create({}, {});
  none.Append(Tokens(100));
  EXPECT_EQ(none.size(), 0);
  EXPECT_FALSE(none.owner().has_value());
}

TEST(DomainKeyTest, DependsOnMasterNameAndEpoch) {
  std::set<std::array<uint8_t, 32>> seen;
  for (const std::string& master :
       {kMaster, std::string(31, 'm') + "n", std::string(200, 'm'), std::string(199, 'm') + "n"}) {
    for (const char* id : {"", "a", "b", "ab"}) {
      for (uint64_t epoch : {0, 1}) {
        const auto key = DeriveDomainKey(master, id, epoch);
        ASSERT_TRUE(key.ok()) << key.status();
        EXPECT_TRUE(seen.insert(key->bytes).second) << master.size() << id << epoch;
        EXPECT_EQ(DeriveDomainKey(master, id, epoch)->bytes, key->bytes);
      }
    }
  }
  const absl::Status weak = DeriveDomainKey(std::string(31, 'm'), "a", 0).status();
  EXPECT_EQ(weak.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(weak).find("mmm"), std::string::npos) << "a secret in an error";
}

TEST(BlockKeyTest, RefusesWhatHasNoMeaning) {
  const auto code = [](std::vector<Domain> domains, std::vector<MediaSpan> media = {},
                       int32_t block_tokens = 16) {
    KeySpace space;
    space.block_tokens = block_tokens;
    return BlockChain::Create(space, std::move(domains), std::move(media)).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code({Last("a")}), absl::StatusCode::kOk);
  EXPECT_EQ(code({Until("a", 32)}), kInvalid) << "no last domain";
  EXPECT_EQ(code({Until("a", 8), Last("b")}), kInvalid) << "inside a block";
  EXPECT_EQ(code({Until("a", 0), Last("b")}), kInvalid) << "empty";
  EXPECT_EQ(code({Until("a", 32), Until("b", 32), Last("c")}), kInvalid) << "does not rise";
  EXPECT_EQ(code({Until("a", -16), Last("c")}), kInvalid);
  EXPECT_EQ(code({Last("a"), Last("b")}), kInvalid);
  EXPECT_EQ(code({Last("a")}, {{4, 2}, {5, 1}}), kInvalid) << "one picture over another";
  EXPECT_EQ(code({Last("a")}, {{4, 0}}), kInvalid);
  EXPECT_EQ(code({Last("a")}, {{-1, 4}}), kInvalid);
  EXPECT_EQ(code({Last("a")}, {{5, INT32_MAX}}), kInvalid) << "its end overflows";
  EXPECT_EQ(code({Last("a")}, {}, 0), kInvalid);
  EXPECT_EQ(code({Last("a")}, {}, 5000), kInvalid);
}

}  // namespace
}  // namespace trivium::kv
