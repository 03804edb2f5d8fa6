#include "server/text_stream.h"

#include <algorithm>

#include "base/utf8.h"

namespace tandem::server {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

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
    const int length = Utf8CharacterLength(std::string_view(bytes).substr(i));
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
    const int length = Utf8CharacterLength(bytes.substr(i));
    if (length <= 0) return i;
    i += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

}  // namespace tandem::server
