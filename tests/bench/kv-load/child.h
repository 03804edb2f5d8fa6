// A child process that answers lines of JSON with lines of JSON.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tandem::bench {

/// Killed with its object. Whatever goes wrong with it ends this process.
class Child {
 public:
  explicit Child(const std::vector<std::string>& command);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void Send(const nlohmann::json& line);
  nlohmann::json Receive();
  nlohmann::json Ask(const nlohmann::json& line) {
    Send(line);
    return Receive();
  }

 private:
  pid_t pid_ = -1;
  int to_ = -1;
  FILE* from_ = nullptr;
};

}  // namespace tandem::bench
