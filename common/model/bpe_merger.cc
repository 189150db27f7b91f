#include "common/model/bpe_merger.h"

#include <algorithm>

namespace trivium::model {

void Merger::Merge(std::span<const int32_t> symbols, std::vector<int32_t>& out) {
  symbols_.clear();
  heap_.clear();
  for (int32_t id : symbols) {
    const auto position = static_cast<int32_t>(symbols_.size());
    symbols_.push_back({id, position - 1, position + 1});
  }
  if (symbols_.empty()) return;
  symbols_.back().next = kNone;
  const auto size = static_cast<int32_t>(symbols_.size());
  for (int32_t i = 0; i + 1 < size; ++i) Queue(i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), Later());
    const Candidate best = heap_.back();
    heap_.pop_back();
    Apply(best);
  }
  for (const Symbol& symbol : symbols_) {
    if (symbol.id != kNone) out.push_back(symbol.id);
  }
}

void Merger::Queue(int32_t position) {
  const Symbol& left = symbols_[static_cast<size_t>(position)];
  if (left.next == kNone) return;
  const int32_t right_id = symbols_[static_cast<size_t>(left.next)].id;
  const MergeRules::Result* rule = rules_.Find(left.id, right_id);
  if (rule == nullptr) return;
  heap_.push_back({rule->rank, position, left.id, right_id});
  std::push_heap(heap_.begin(), heap_.end(), Later());
}

void Merger::Apply(const Candidate& candidate) {
  Symbol& left = symbols_[static_cast<size_t>(candidate.position)];
  if (left.id != candidate.left_id || left.next == kNone) return;
  Symbol& right = symbols_[static_cast<size_t>(left.next)];
  if (right.id != candidate.right_id) return;
  left.id = rules_.Find(candidate.left_id, candidate.right_id)->id;
  left.next = right.next;
  right.id = kNone;
  if (left.next != kNone) symbols_[static_cast<size_t>(left.next)].previous = candidate.position;
  if (left.previous != kNone) Queue(left.previous);
  Queue(candidate.position);
}

}  // namespace trivium::model
