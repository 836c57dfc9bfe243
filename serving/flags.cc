#include "serving/flags.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr size_t kHelpColumns = 96;

std::string ToStd(absl::string_view text) { return std::string(text.data(), text.size()); }
absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

absl::CommandLineFlag* Find(const std::string& name) {
  return absl::FindCommandLineFlag(ToAbsl(name));
}

bool IsHelp(std::string_view argument) {
  return argument == "--help" || argument == "-help" || argument == "-h";
}

// Abseil registers flags of its own (its log, its parser); they are not this binary's.
bool IsOurs(const absl::CommandLineFlag& flag) {
  return !flag.IsRetired() && flag.Filename().find("absl/") == std::string::npos;
}

std::vector<std::string> OurFlagNames() {
  std::vector<std::string> names;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsOurs(*flag)) names.push_back(ToStd(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Levenshtein's distance, for suggestions.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

absl::Status UnknownFlag(const std::string& name) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : OurFlagNames()) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  if (best.empty()) return InvalidArgument("unknown flag --{}", name);
  return InvalidArgument("unknown flag --{}; did you mean --{}?", name, best);
}

struct FlagArgument {
  std::string name;  // with underscores
  std::optional<std::string> value;
};

FlagArgument SplitFlag(std::string_view argument) {
  argument.remove_prefix(argument.starts_with("--") ? 2 : 1);
  FlagArgument result;
  const size_t equals = argument.find('=');
  result.name = std::string(argument.substr(0, equals));
  std::replace(result.name.begin(), result.name.end(), '-', '_');
  if (equals != std::string_view::npos) result.value = std::string(argument.substr(equals + 1));
  return result;
}

// --noflag and --no-flag of a boolean.
absl::CommandLineFlag* FindNegated(const FlagArgument& argument) {
  if (argument.value || !argument.name.starts_with("no")) return nullptr;
  const size_t prefix = argument.name.starts_with("no_") ? 3 : 2;
  absl::CommandLineFlag* flag = Find(argument.name.substr(prefix));
  return flag != nullptr && flag->IsOfType<bool>() ? flag : nullptr;
}

absl::Status SetFlag(absl::CommandLineFlag& flag, const std::string& value) {
  std::string error;
  if (flag.ParseFrom(ToAbsl(value), &error)) return absl::OkStatus();
  return InvalidArgument("--{}: '{}' is not a valid value{}{}", ToStd(flag.Name()), value,
                         error.empty() ? "" : ": ", error);
}

// Takes the flag at argv[index] and, where the value stands apart, argv[index + 1]; leaves `index`
// at the last one taken. Returns the flag's name.
absl::StatusOr<std::string> TakeFlag(int argc, char** argv, int& index) {
  FlagArgument argument = SplitFlag(argv[index]);
  absl::CommandLineFlag* flag = Find(argument.name);
  if (flag == nullptr) {
    flag = FindNegated(argument);
    if (flag == nullptr) return UnknownFlag(argument.name);
    argument.value = "false";
  }
  if (!argument.value && flag->IsOfType<bool>()) argument.value = "true";
  if (!argument.value) {
    if (index + 1 >= argc) return InvalidArgument("--{} needs a value", argument.name);
    argument.value = argv[++index];
  }
  FACET_RETURN_IF_ERROR(SetFlag(*flag, *argument.value));
  return ToStd(flag->Name());
}

std::string Wrap(std::string_view text, size_t indent) {
  std::string result;
  size_t column = 0;
  while (!text.empty()) {
    const size_t space = text.find(' ');
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(space == std::string_view::npos ? text.size() : space + 1);
    if (column == 0 || column + 1 + word.size() > kHelpColumns) {
      result += (column == 0 ? "" : "\n") + std::string(indent, ' ');
      column = indent;
    } else {
      result += ' ';
      ++column;
    }
    result += word;
    column += word.size();
  }
  return result;
}

std::string Describe(const absl::CommandLineFlag& flag) {
  const std::string initial = flag.DefaultValue();
  const bool shows_default = !initial.empty() && !(flag.IsOfType<bool>() && initial == "false");
  return fmt::format("  --{}{}\n{}\n", ToStd(flag.Name()),
                     shows_default ? fmt::format(" (default {})", initial) : "",
                     Wrap(flag.Help(), 6));
}

}  // namespace

bool WantsHelp(int argc, char** argv) {
  for (int i = 1; i < argc && std::string_view(argv[i]) != "--"; ++i) {
    if (IsHelp(argv[i])) return true;
  }
  return false;
}

absl::StatusOr<CommandLine> ParseFlags(int argc, char** argv) {
  CommandLine line;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--") {
      line.positional.insert(line.positional.end(), argv + i + 1, argv + argc);
      break;
    }
    if (IsHelp(argument)) continue;
    if (argument.size() < 2 || argument[0] != '-') {
      line.positional.emplace_back(argument);
      continue;
    }
    FACET_ASSIGN_OR_RETURN(std::string name, TakeFlag(argc, argv, i));
    line.flags.push_back(std::move(name));
  }
  return line;
}

std::vector<std::string> ParseFlagsOrExit(int argc, char** argv, std::string_view usage,
                                          size_t positional_max) {
  if (WantsHelp(argc, argv)) {
    fmt::print("{}\n\nFlags (dashes and underscores are the same):\n{}", usage, DescribeFlags());
    std::exit(0);
  }
  absl::StatusOr<CommandLine> line = ParseFlags(argc, argv);
  if (line.ok() && line->positional.size() > positional_max) {
    line = InvalidArgument("unexpected argument '{}'", line->positional[positional_max]);
  }
  if (!line.ok()) {
    fmt::print(stderr, "{}: {} (see --help)\n", argv[0], MessageOf(line.status()));
    std::exit(2);
  }
  return std::move(line->positional);
}

std::string DescribeFlags(std::span<const std::string_view> names) {
  std::string result;
  if (names.empty()) {
    for (const std::string& name : OurFlagNames()) result += Describe(*Find(name));
    return result;
  }
  for (const std::string_view name : names) result += Describe(*Find(std::string(name)));
  return result;
}

}  // namespace facet
