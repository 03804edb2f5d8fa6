// UTF-8, character by character.
#pragma once

#include <string_view>

namespace tandem {

/// The length of the valid character at the front of `bytes`; 0 if it is invalid; -1 if it is the
/// beginning of one that may yet become valid. RFC 3629: no overlong forms, no surrogates.
/// REQUIRES: not empty. Thread-safe.
int Utf8CharacterLength(std::string_view bytes);

}  // namespace tandem
