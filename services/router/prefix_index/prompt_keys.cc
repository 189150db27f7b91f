#include "services/router/prefix_index/prompt_keys.h"

#include <utility>

namespace trivium::router {

std::vector<PromptKeys> KeysOf(std::span<const int32_t> prompt,
                               const std::vector<kv::Domain>& domains,
                               std::span<const kv::KeySpace> spaces,
                               const std::vector<kv::MediaSpan>& media) {
  std::vector<PromptKeys> all;
  if (domains.empty() || prompt.empty()) return all;
  for (const kv::KeySpace& space : spaces) {
    absl::StatusOr<kv::BlockChain> chain = kv::BlockChain::Create(space, domains, media);
    if (!chain.ok()) continue;
    chain->Append(prompt.first(prompt.size() - 1));
    PromptKeys& keys = all.emplace_back(PromptKeys{.space = space, .keys = {}});
    keys.keys.reserve(static_cast<size_t>(chain->size()));
    for (const kv::BlockKey& key : chain->keys()) keys.keys.push_back(kv::Cut(key));
  }
  return all;
}

}  // namespace trivium::router
