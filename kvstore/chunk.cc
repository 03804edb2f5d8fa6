#include "kvstore/chunk.h"

#include <openssl/evp.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

// The plain functions are compiled for SSE2; the dispatching ones are 2.5 times faster with AVX2.
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

namespace tandem::kvstore {
namespace {

static_assert(std::endian::native == std::endian::little, "ids and envelopes are little endian");

constexpr uint32_t kMagic = 0x434D4454;
constexpr uint16_t kVersion = 1;
constexpr size_t kChecksumOffset = 56;
constexpr std::string_view kRootLabel = "tandem chunk 1\n";

/// SHA-256, again and again with the same context: looking the algorithm up takes longer than
/// hashing a chunk's tokens. Not thread-safe.
class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  Sha256() : context_(EVP_MD_CTX_new()) {
    if (context_ == nullptr) throw std::bad_alloc();
    Reset();
  }

  Sha256& Add(const void* bytes, size_t size) {
    EVP_DigestUpdate(context_.get(), bytes, size);
    return *this;
  }
  Sha256& Add(std::string_view bytes) { return Add(bytes.data(), bytes.size()); }
  Sha256& Add(const Digest& digest) { return Add(digest.data(), digest.size()); }

  /// The digest of what was added; begins anew.
  Digest Finish() {
    Digest digest;
    EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr);
    Reset();
    return digest;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };

  void Reset() {
    static const EVP_MD* const sha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    // An OpenSSL without SHA-256 has refused to load the model long before.
    if (EVP_DigestInit_ex(context_.get(), sha256, nullptr) != 1) std::abort();
  }

  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

Sha256::Digest RootId(Sha256& sha, std::string_view kv_namespace, std::string_view tenant) {
  // The tenant's own digest has a fixed length, so no tenant's name can continue another's.
  const Sha256::Digest tenant_digest = sha.Add(tenant).Finish();
  return sha.Add(kRootLabel).Add(kv_namespace).Add(tenant_digest).Finish();
}

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

template <typename T>
void Store(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(value));
}

bool IsLevel(uint8_t level) { return level <= static_cast<uint8_t>(codec::kAllLevels.back()); }

/// REQUIRES: at least an envelope.
uint64_t ChecksumOf(std::span<const uint8_t> bytes) {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const std::unique_ptr<XXH3_state_t, Free> state(XXH3_createState());
  if (state == nullptr) throw std::bad_alloc();
  const auto payload = bytes.subspan(StoredChunk::kEnvelopeBytes);
  XXH3_64bits_reset(state.get());
  XXH3_64bits_update(state.get(), bytes.data(), kChecksumOffset);
  XXH3_64bits_update(state.get(), payload.data(), payload.size());
  return XXH3_64bits_digest(state.get());
}

absl::Status CheckChecksum(std::span<const uint8_t> bytes) {
  if (ChecksumOf(bytes) == Load<uint64_t>(bytes.data() + kChecksumOffset)) return absl::OkStatus();
  return absl::DataLossError("stored chunk whose checksum is wrong");
}

/// All fields of the envelope but key and checksum.
absl::Status CheckEnvelope(std::span<const uint8_t> bytes) {
  if (bytes.size() < StoredChunk::kEnvelopeBytes) {
    return absl::DataLossError(absl::StrCat("stored chunk of ", bytes.size(),
                                            " bytes; its envelope alone has ",
                                            StoredChunk::kEnvelopeBytes));
  }
  const uint8_t* at = bytes.data();
  if (Load<uint32_t>(at) != kMagic) return absl::DataLossError("these bytes are no stored chunk");
  if (const auto version = Load<uint16_t>(at + 4); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("stored chunk of version ", version, "; this build reads version ", kVersion));
  }
  if (at[7] != 0) return absl::DataLossError("stored chunk whose reserved byte is not 0");
  const auto first_position = Load<uint32_t>(at + 40), n_tokens = Load<uint32_t>(at + 44);
  if (n_tokens == 0 || n_tokens > UINT32_MAX - first_position) {
    return absl::DataLossError(
        absl::StrCat("stored chunk of ", n_tokens, " tokens at position ", first_position));
  }
  const auto payload_bytes = Load<uint64_t>(at + 48);
  if (payload_bytes != bytes.size() - StoredChunk::kEnvelopeBytes) {
    return absl::DataLossError(
        absl::StrCat("stored chunk with ", bytes.size() - StoredChunk::kEnvelopeBytes,
                     " bytes of payload; its envelope says ", payload_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t ChunkId::Hash() const { return Load<uint64_t>(bytes.data()); }

std::string ChunkId::Hex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::StatusOr<ChunkId> ChunkId::FromHex(std::string_view hex) {
  const auto is_digit = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  };
  ChunkId id;
  if (hex.size() != 2 * id.bytes.size() || !std::all_of(hex.begin(), hex.end(), is_digit)) {
    return absl::InvalidArgumentError("a chunk id has 64 hexadecimal digits");
  }
  const std::string bytes = absl::HexStringToBytes(absl::string_view(hex.data(), hex.size()));
  std::memcpy(id.bytes.data(), bytes.data(), id.bytes.size());
  return id;
}

std::string KvNamespace(const Identity& identity) {
  Sha256 sha;
  const auto add = [&sha](std::string_view text) {
    const uint64_t size = text.size();
    sha.Add(&size, sizeof(size)).Add(text);
  };
  for (const auto& [name, value] : identity) {
    add(name);
    add(value);
  }
  const Sha256::Digest digest = sha.Finish();
  return std::string(digest.begin(), digest.end());
}

std::vector<ChunkId> ChunkIds(std::string_view kv_namespace, std::string_view tenant,
                              std::span<const int32_t> tokens, uint32_t chunk_tokens) {
  const size_t n_chunks = tokens.size() / chunk_tokens;
  std::vector<ChunkId> ids;
  if (n_chunks == 0) return ids;
  ids.reserve(n_chunks);
  Sha256 sha;
  Sha256::Digest parent = RootId(sha, kv_namespace, tenant);
  for (size_t i = 0; i < n_chunks; ++i) {
    const auto chunk = tokens.subspan(i * chunk_tokens, chunk_tokens);
    parent = sha.Add(parent).Add(chunk.data(), chunk.size_bytes()).Finish();
    ids.push_back({parent});
  }
  return ids;
}

std::string ChunkKey::Bytes() const {
  std::string bytes(id.bytes.begin(), id.bytes.end());
  bytes.push_back(static_cast<char>(level));
  return bytes;
}

absl::StatusOr<ChunkKey> ChunkKey::FromBytes(std::string_view bytes) {
  ChunkKey key;
  const size_t id_bytes = key.id.bytes.size();
  if (bytes.size() != id_bytes + 1 || !IsLevel(static_cast<uint8_t>(bytes[id_bytes]))) {
    return absl::InvalidArgumentError("a chunk key has 32 bytes of id, then its level");
  }
  std::memcpy(key.id.bytes.data(), bytes.data(), id_bytes);
  key.level = static_cast<Level>(bytes[id_bytes]);
  return key;
}

std::shared_ptr<const StoredChunk> StoredChunk::Seal(const ChunkKey& key, uint32_t first_position,
                                                     uint32_t n_tokens,
                                                     std::span<const uint8_t> payload) {
  std::vector<uint8_t> bytes;
  bytes.reserve(kEnvelopeBytes + payload.size());
  bytes.resize(kEnvelopeBytes);
  Store(bytes.data(), kMagic);
  Store(bytes.data() + 4, kVersion);
  Store(bytes.data() + 6, static_cast<uint8_t>(key.level));
  Store(bytes.data() + 8, key.id.bytes);
  Store(bytes.data() + 40, first_position);
  Store(bytes.data() + 44, n_tokens);
  Store(bytes.data() + 48, uint64_t{payload.size()});
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  Store(bytes.data() + kChecksumOffset, ChecksumOf(bytes));
  return std::shared_ptr<const StoredChunk>(
      new StoredChunk(std::move(bytes), key, first_position, n_tokens));
}

absl::StatusOr<std::shared_ptr<const StoredChunk>> StoredChunk::Open(std::vector<uint8_t> bytes,
                                                                     const ChunkKey& expected) {
  RETURN_IF_ERROR(CheckEnvelope(bytes));
  RETURN_IF_ERROR(CheckChecksum(bytes));
  const uint8_t* at = bytes.data();
  // The checksum comes first: a damaged key is damage, not another chunk.
  if (at[6] != static_cast<uint8_t>(expected.level) ||
      std::memcmp(at + 8, expected.id.bytes.data(), expected.id.bytes.size()) != 0) {
    return absl::DataLossError(
        absl::StrCat("another chunk is stored where ", expected.id.Hex(), " was expected"));
  }
  const auto first_position = Load<uint32_t>(at + 40), n_tokens = Load<uint32_t>(at + 44);
  return std::shared_ptr<const StoredChunk>(
      new StoredChunk(std::move(bytes), expected, first_position, n_tokens));
}

absl::Status StoredChunk::Verify() const {
  RETURN_IF_ERROR(CheckEnvelope(bytes_));
  return CheckChecksum(bytes_);
}

}  // namespace tandem::kvstore
