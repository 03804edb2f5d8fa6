// The archive's bytes, read back by hand, and what cannot be written.
#include "cli/npz.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace tandem::cli {
namespace {

using testing::HasSubstr;

std::string Path(const std::string& name) {
  return testing::TempDir() + std::to_string(getpid()) + "-" + name;
}

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

uint32_t U32(const std::string& bytes, size_t at) {
  uint32_t value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

TEST(NpzWriter, WritesArraysThatNumpyReads) {
  const std::string path = Path("a.npz");
  auto npz = NpzWriter::Create(path);
  ASSERT_TRUE(npz.ok()) << npz.status();
  const std::vector<uint8_t> halves = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const std::vector<uint8_t> one = {42, 0, 0, 0};
  const uint64_t shape[] = {3, 1, 2}, single[] = {1};
  ASSERT_TRUE(npz->Add("k", "<f2", shape, halves).ok());
  ASSERT_TRUE(npz->Add("n", "<i4", single, one).ok());
  EXPECT_FALSE(std::filesystem::exists(path)) << "before it is whole";
  ASSERT_TRUE(npz->Finish().ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));

  const std::string bytes = Read(path);
  ASSERT_EQ(U32(bytes, 0), 0x04034b50u);
  constexpr size_t kName = 30, kFirst = kName + 5;
  EXPECT_EQ(bytes.substr(kName, 5), "k.npy");
  const uint32_t size = U32(bytes, 18);
  EXPECT_EQ(size, U32(bytes, 22)) << "stored";
  const std::string npy = bytes.substr(kFirst, size);
  EXPECT_EQ(U32(bytes, 14), crc32_z(0, reinterpret_cast<const Bytef*>(npy.data()), npy.size()));
  EXPECT_EQ(npy.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const size_t header = 10 + static_cast<uint8_t>(npy[8]) + 256 * static_cast<uint8_t>(npy[9]);
  EXPECT_EQ(header % 64, 0u);
  EXPECT_EQ(npy[header - 1], '\n');
  EXPECT_THAT(npy.substr(10, header - 10),
              HasSubstr("{'descr': '<f2', 'fortran_order': False, 'shape': (3, 1, 2,), }"));
  EXPECT_EQ(npy.substr(header), std::string(halves.begin(), halves.end()));

  const std::string end = bytes.substr(bytes.size() - 22);
  EXPECT_EQ(U32(end, 0), 0x06054b50u);
  EXPECT_EQ(end[10], 2) << "entries";
  const uint32_t directory = U32(end, 16);
  EXPECT_EQ(directory + U32(end, 12) + 22, bytes.size());
  EXPECT_EQ(U32(bytes, directory), 0x02014b50u);
  const size_t second = directory + 46 + 5;
  EXPECT_EQ(U32(bytes, second), 0x02014b50u);
  EXPECT_EQ(U32(bytes, second + 42), kFirst + size) << "where n.npy begins";
  EXPECT_EQ(bytes.substr(second + 46, 5), "n.npy");
  std::filesystem::remove(path);
}

TEST(NpzWriter, LeavesNothingBehindWithoutFinish) {
  const std::string path = Path("b.npz");
  { ASSERT_TRUE(NpzWriter::Create(path).ok()); }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

TEST(NpzWriter, NamesAPathThatCannotBeWritten) {
  const auto npz = NpzWriter::Create("/nowhere/x.npz");
  EXPECT_EQ(npz.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(npz.status().message()), HasSubstr("/nowhere/x.npz"));
}

TEST(NpzWriter, RefusesMoreThanFourGibibytes) {
  const std::string path = Path("c.npz");
  auto npz = NpzWriter::Create(path);
  ASSERT_TRUE(npz.ok());
  // Only its size is looked at.
  const uint8_t nothing = 0;
  const uint64_t shape[] = {uint64_t{1} << 32};
  const auto status = npz->Add("k", "<f2", shape, {&nothing, uint64_t{1} << 33});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger than 4 GiB"));
}

}  // namespace
}  // namespace tandem::cli
