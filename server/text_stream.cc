#include "server/text_stream.h"

#include <algorithm>

namespace tandem::server {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// The length of the valid character at the front of `bytes`; 0 if it is invalid; -1 if it is
/// the beginning of one that may yet become valid. RFC 3629: no overlong forms, no surrogates.
int CharacterLength(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i >= bytes.size()) return -1;
    unsigned char low = 0x80, high = 0xBF;
    if (i == 1) {
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (at(i) < low || at(i) > high) return 0;
  }
  return static_cast<int>(length);
}

/// Bytes at the end of `text` that may be the beginning of one of `stops`.
size_t PossibleStopSuffix(std::string_view text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
      if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
    }
  }
  return longest;
}

/// Moves whole characters from the front of `bytes`, up to `limit`, into valid text; an
/// incomplete character stays unless `final`.
std::string TakeText(std::string& bytes, size_t limit, bool final) {
  std::string text;
  size_t i = 0;
  while (i < limit) {
    const int length = CharacterLength(std::string_view(bytes).substr(i));
    if (length < 0 && !final) break;
    if (length <= 0) {
      text += kReplacement;
      ++i;
    } else {
      if (i + static_cast<size_t>(length) > limit) break;
      text.append(bytes, i, static_cast<size_t>(length));
      i += static_cast<size_t>(length);
    }
  }
  bytes.erase(0, i);
  return text;
}

}  // namespace

std::string TextStream::AppendBytes(std::string_view bytes) {
  held_ += bytes;
  size_t cut = std::string::npos;
  for (const std::string& stop : stops_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    held_.resize(cut);
    return TakeText(held_, held_.size(), true);
  }
  return TakeText(held_, held_.size() - PossibleStopSuffix(held_, stops_), false);
}

std::string TextStream::Flush() { return TakeText(held_, held_.size(), true); }

std::string ToValidUtf8(std::string_view bytes) {
  std::string copy(bytes);
  return TakeText(copy, copy.size(), true);
}

size_t FindInvalidUtf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const int length = CharacterLength(bytes.substr(i));
    if (length <= 0) return i;
    i += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

}  // namespace tandem::server
