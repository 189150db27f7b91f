// The words that guards.h looks for, all in lower case. Immutable; safe from
// any thread.
#pragma once

#include <string_view>

namespace trivium::router {

// One instead of another of them makes another question.
bool IsTurningWord(std::string_view word);
// Says nothing about what is asked: articles, prepositions, polite forms, "tell", "explain".
bool IsLightWord(std::string_view word);
// One word for those that are used alike in questions: "repair" -> "fix".
std::string_view Canonical(std::string_view word);
bool IsNegation(std::string_view word);
// "three" -> "3"; empty: no number.
std::string_view NumberOf(std::string_view word);
// A word for which the asker's own is meant.
bool IsPersonalWord(std::string_view word);
// Begins to speak about the model's instructions, wherever in `lower_text` it stands.
bool HasInjection(std::string_view lower_text);

}  // namespace trivium::router
