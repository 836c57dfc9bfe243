#include "client/options.h"

#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <ranges>

#include "absl/flags/flag.h"
#include "base/status.h"

namespace facet {

// Strings on one command line, separated by commas; backslash escapes a comma, a backslash, n, t.
struct EscapedList {
  std::vector<std::string> items;
};

bool AbslParseFlag(absl::string_view text, EscapedList* list, std::string* error) {
  list->items.clear();
  if (text.empty()) return true;
  std::string item;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ',') {
      list->items.push_back(std::move(item));
      item.clear();
    } else if (text[i] != '\\') {
      item += text[i];
    } else if (++i == text.size()) {
      *error = "ends in a backslash";
      return false;
    } else {
      item += text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i];
    }
  }
  list->items.push_back(std::move(item));
  return true;
}

std::string AbslUnparseFlag(const EscapedList& list) {
  std::string text;
  for (const std::string& item : list.items) {
    if (&item != &list.items.front()) text += ',';
    for (const char c : item) {
      if (c == ',' || c == '\\') text += '\\';
      text += c;
    }
  }
  return text;
}

}  // namespace facet

ABSL_FLAG(
    std::vector<std::string>, endpoint, {},
    "The routers, separated by commas: host:port or unix:/path. The first one is asked first; "
    "a stream that breaks goes on at the next. Without it the environment's "
    "FACET_ENDPOINTS, else its FACET_ENDPOINT, else localhost:8470.");
ABSL_FLAG(double, retry_s, 30,
          "Seconds to look for a router that goes on with a stream that broke, or takes a request "
          "that was refused for now; 0 does not.");
ABSL_FLAG(std::string, tenant, "", "Who asks, for the router's shares between tenants.");
ABSL_FLAG(absl::optional<double>, timeout_s, absl::nullopt,
          "Seconds a call may take; the router stops work that is past it.");
ABSL_FLAG(std::string, model, "", "Which model; may be left out where one is served.");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of text.");

ABSL_FLAG(std::string, prompt, "", "The prompt; - reads it from standard input.");
ABSL_FLAG(bool, raw, false,
          "Continue the prompt as plain text instead of answering it as a chat message.");
ABSL_FLAG(std::vector<std::string>, token_ids, {},
          "The prompt as token ids, separated by commas, used exactly as given.");
ABSL_FLAG(std::string, system, "", "The system message of the chat.");

ABSL_FLAG(absl::optional<int32_t>, max_tokens, absl::nullopt,
          "Tokens per answer, at most. generate and chat: what the context leaves unless set; "
          "bench: 128 unless set.");
ABSL_FLAG(absl::optional<float>, temperature, absl::nullopt,
          "0 takes the likeliest token every time; 1 samples from the model's own distribution "
          "and is what an unset flag means.");
ABSL_FLAG(absl::optional<int32_t>, top_k, absl::nullopt,
          "Sample among the k likeliest tokens; 0 is off.");
ABSL_FLAG(absl::optional<float>, top_p, absl::nullopt,
          "Sample among the likeliest tokens that hold this probability together; 1 is off.");
ABSL_FLAG(absl::optional<float>, min_p, absl::nullopt,
          "Sample among tokens at least this likely relative to the likeliest; 0 is off.");
ABSL_FLAG(absl::optional<float>, repetition_penalty, absl::nullopt,
          "Divides (if negative, multiplies) the logits of tokens already in prompt or output; 1 "
          "is off.");
ABSL_FLAG(absl::optional<float>, presence_penalty, absl::nullopt,
          "Subtracted once from the logits of tokens already in the output; 0 is off.");
ABSL_FLAG(absl::optional<float>, frequency_penalty, absl::nullopt,
          "Subtracted from the logits of tokens as often as they are in the output; 0 is off.");
ABSL_FLAG(absl::optional<uint64_t>, seed, absl::nullopt,
          "The same seed gives the same answer. generate and chat: drawn and printed unless set; "
          "bench: 1 unless set.");
ABSL_FLAG(absl::optional<int32_t>, n, absl::nullopt, "Answers per prompt; 1 unless set.");
ABSL_FLAG(facet::EscapedList, stop, {},
          "Strings that end the answer, separated by commas; \\n, \\t, \\, and \\\\ are escapes.");
ABSL_FLAG(bool, ignore_eos, false, "Go on past the model's end-of-generation tokens.");
ABSL_FLAG(absl::optional<int32_t>, logprobs, absl::nullopt,
          "Also tell each token's log-probability and those of this many alternatives (shown with "
          "--json).");
ABSL_FLAG(bool, echo, false,
          "Also return the prompt's tokens, with --logprobs their log-probabilities (shown with "
          "--json).");
ABSL_FLAG(bool, logits_digest, false,
          "For tests: a SHA-256 over all logits of each answer, shown with --json. The workers "
          "must run with --allow_logits_digest.");

ABSL_FLAG(absl::optional<double>, watch, absl::nullopt,
          "Show the status again every so many seconds.");

ABSL_FLAG(int, until_ready, 0,
          "First wait until this many groups are ready; --timeout_s says how long (default 60).");

ABSL_FLAG(
    absl::optional<int32_t>, streams, absl::nullopt,
    "Requests that run at the same time; 1 unless set. With --rate: at most, 256 unless set.");
ABSL_FLAG(
    double, rate, 0,
    "Requests that arrive per second on average (a Poisson process, the same for the same "
    "--seed), whether earlier ones are done or not; latencies count from the arrival. 0: every "
    "stream sends one request after the other.");
ABSL_FLAG(bool, profile, false,
          "Also show what each operation of the leaders' steps took, read and computed.");
ABSL_FLAG(
    std::vector<std::string>, limits, {},
    "With --profile, what the processors under a group's ranks can do together: memory read in "
    "GB/s, int8 GOP/s, float32 GOP/s (tests/bench measures them). Shows shares of them.");
ABSL_FLAG(int, requests, 0,
          "Requests in all; unless set, four per stream. Not together with --seconds.");
ABSL_FLAG(absl::optional<double>, seconds, absl::nullopt,
          "Run for so long instead; what is unfinished then is cancelled and counts as far as it "
          "came.");
ABSL_FLAG(int, prompt_tokens, 128, "Random tokens per prompt, different in every request.");

namespace facet {
namespace {

constexpr double kSecondsMax = 1e6;
constexpr double kRateMax = 1e5;  // requests per second
constexpr int kOpenStreams = 256;

const std::vector<std::string_view> kConnectionFlags = {"endpoint", "tenant", "timeout_s"};
const std::vector<std::string_view> kRetryFlags = {"retry_s"};
const std::vector<std::string_view> kSamplingFlags = {
    "max_tokens",       "temperature",       "top_k", "top_p", "min_p",     "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed",  "stop",  "ignore_eos"};

std::vector<std::string_view> Join(std::initializer_list<std::vector<std::string_view>> lists) {
  std::vector<std::string_view> all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

std::string ReadStdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

absl::StatusOr<std::chrono::milliseconds> Seconds(std::string_view flag, double seconds) {
  if (!(seconds > 0) || seconds > kSecondsMax) {
    return InvalidArgument("--{} is {}; it must be above 0 and at most {}", flag, seconds,
                           kSecondsMax);
  }
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

absl::StatusOr<MachineLimits> ParseLimits(const std::vector<std::string>& texts) {
  MachineLimits limits;
  double* const fields[] = {&limits.read_gb_s, &limits.int8_gop_s, &limits.f32_gop_s};
  if (texts.size() != std::size(fields)) {
    return InvalidArgument("--limits: {} numbers instead of {}", texts.size(), std::size(fields));
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string& text = texts[i];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *fields[i]);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    if (!whole || !std::isfinite(*fields[i]) || *fields[i] <= 0) {
      return InvalidArgument("--limits: '{}' is not a number above 0", text);
    }
  }
  return limits;
}

// What generate and chat share. Values are the router's to judge: it names the field.
v1::GenerateRequest RequestFromFlags() {
  v1::GenerateRequest request;
  request.set_model(absl::GetFlag(FLAGS_model));
  v1::SamplingParams& sampling = *request.mutable_sampling();
  if (const auto v = absl::GetFlag(FLAGS_max_tokens)) request.set_max_tokens(*v);
  if (const auto v = absl::GetFlag(FLAGS_temperature)) sampling.set_temperature(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_k)) sampling.set_top_k(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_p)) sampling.set_top_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_min_p)) sampling.set_min_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_repetition_penalty)) sampling.set_repetition_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_presence_penalty)) sampling.set_presence_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_frequency_penalty)) sampling.set_frequency_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_seed)) request.set_seed(*v);
  if (absl::GetFlag(FLAGS_ignore_eos)) request.set_ignore_eos(true);
  for (std::string& stop : absl::GetFlag(FLAGS_stop).items) request.add_stop(std::move(stop));
  return request;
}

void AddTextPrompt(std::string text, v1::GenerateRequest& request) {
  if (text == "-") text = ReadStdin();
  v1::Prompt& prompt = *request.add_prompts();
  if (absl::GetFlag(FLAGS_raw)) {
    prompt.set_text(std::move(text));
    return;
  }
  if (std::string system = absl::GetFlag(FLAGS_system); !system.empty()) {
    v1::ChatMessage& message = *prompt.mutable_chat()->add_messages();
    message.set_role("system");
    message.set_content(std::move(system));
  }
  v1::ChatMessage& message = *prompt.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(std::move(text));
}

absl::Status AddTokenPrompt(const std::vector<std::string>& ids, v1::GenerateRequest& request) {
  v1::TokenIds& tokens = *request.add_prompts()->mutable_tokens();
  for (const std::string& text : ids) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (error != std::errc() || end != text.data() + text.size()) {
      return InvalidArgument("--token_ids: '{}' is not a token id", text);
    }
    tokens.add_ids(id);
  }
  return absl::OkStatus();
}

// Those of the flag, else of the environment; empty: neither says.
std::vector<std::string> Endpoints() {
  std::vector<std::string> endpoints = absl::GetFlag(FLAGS_endpoint);
  for (const char* name : {"FACET_ENDPOINTS", "FACET_ENDPOINT"}) {
    const char* value = std::getenv(name);
    if (!endpoints.empty() || value == nullptr || *value == '\0') continue;
    for (const auto item : std::views::split(std::string_view(value), ',')) {
      endpoints.emplace_back(item.begin(), item.end());
    }
  }
  return endpoints;
}

}  // namespace

std::span<const CommandHelp> Commands() {
  static const std::vector<CommandHelp> commands = {
      {"generate", "answer a prompt", "facet generate [flags] [PROMPT...]",
       "Answers a prompt. The answer goes to standard output as it streams, followed by a newline; "
       "rates and\nusage go to standard error. Several prompts, or --n above 1, are answered at "
       "the same time and printed one\nafter the other.\n\n"
       "  facet generate \"Why is the sky blue?\"\n"
       "  facet generate --raw --temperature 0 --max-tokens 32 \"Once upon a time\"\n"
       "  facet generate --prompt - < question.txt",
       Join({{"prompt", "raw", "token_ids", "system", "model", "n"},
             kSamplingFlags,
             {"logprobs", "echo", "logits_digest", "json"},
             kRetryFlags,
             kConnectionFlags})},
      {"chat", "talk with the model, turn by turn", "facet chat [flags]",
       "Talks with the model, turn by turn; every line is a message. /reset forgets the "
       "conversation, /exit or\nCtrl-D leaves, Ctrl-C interrupts the answer.",
       Join({{"system", "model"}, kSamplingFlags, kRetryFlags, kConnectionFlags})},
      {"status", "show the groups, their memory, queues and rates", "facet status [flags]",
       "Shows what the router sees: groups of ranks, their state, memory, queues and rates.",
       Join({{"watch", "until_ready", "json"}, kConnectionFlags})},
      {"models", "list the models that are served", "facet models [flags]",
       "Lists the models that are served.", Join({{"json"}, kConnectionFlags})},
      {"bench", "load the cluster and measure rates and latencies", "facet bench [flags]",
       "Loads the router with concurrent requests of random tokens and reports rates and latencies:"
       "\nTTFT is the time to the first token, TPOT a request's mean time per further token, ITL "
       "the time between\ntwo messages of one request that bring tokens.\n\n"
       "  facet bench --streams 8 --requests 64 --prompt-tokens 256 --max-tokens 128\n"
       "  facet bench --rate 2.5 --seconds 60\n"
       "  facet bench --streams 8 --profile",
       Join({{"streams", "rate", "requests", "seconds", "prompt_tokens", "max_tokens",
              "temperature", "seed", "model", "profile", "limits", "json"},
             kRetryFlags,
             kConnectionFlags})},
  };
  return commands;
}

absl::StatusOr<ConnectionOptions> ConnectionOptionsFromFlags() {
  ConnectionOptions options;
  if (std::vector<std::string> endpoints = Endpoints(); !endpoints.empty()) {
    options.endpoints = std::move(endpoints);
  }
  for (const std::string& endpoint : options.endpoints) {
    if (endpoint.empty()) return InvalidArgument("--endpoint: one of the routers is empty");
  }
  options.tenant = absl::GetFlag(FLAGS_tenant);
  if (const auto seconds = absl::GetFlag(FLAGS_timeout_s)) {
    FACET_ASSIGN_OR_RETURN(options.timeout, Seconds("timeout_s", *seconds));
  }
  if (const double seconds = absl::GetFlag(FLAGS_retry_s); seconds == 0) {
    options.retry.limit = std::chrono::milliseconds(0);
  } else {
    FACET_ASSIGN_OR_RETURN(options.retry.limit, Seconds("retry_s", seconds));
  }
  return options;
}

absl::StatusOr<GenerateOptions> GenerateOptionsFromFlags(const std::vector<std::string>& texts) {
  GenerateOptions options;
  options.json = absl::GetFlag(FLAGS_json);
  options.request = RequestFromFlags();
  v1::GenerateRequest& request = options.request;
  if (const auto v = absl::GetFlag(FLAGS_n)) request.set_n(*v);
  if (const auto v = absl::GetFlag(FLAGS_logprobs)) request.set_logprobs(*v);
  if (absl::GetFlag(FLAGS_echo)) request.set_echo(true);
  if (absl::GetFlag(FLAGS_logits_digest)) request.set_logits_digest(true);
  if (std::string prompt = absl::GetFlag(FLAGS_prompt); !prompt.empty()) {
    AddTextPrompt(std::move(prompt), request);
  }
  for (const std::string& text : texts) AddTextPrompt(text, request);
  if (const std::vector<std::string> ids = absl::GetFlag(FLAGS_token_ids); !ids.empty()) {
    FACET_RETURN_IF_ERROR(AddTokenPrompt(ids, request));
  }
  if (request.prompts().empty()) {
    return InvalidArgument("no prompt; write it as an argument, or --prompt - to read it");
  }
  return options;
}

absl::StatusOr<ChatOptions> ChatOptionsFromFlags() {
  ChatOptions options;
  options.request = RequestFromFlags();
  options.system = absl::GetFlag(FLAGS_system);
  options.interactive = isatty(STDIN_FILENO) == 1;
  return options;
}

absl::StatusOr<StatusOptions> StatusOptionsFromFlags() {
  StatusOptions options;
  options.json = absl::GetFlag(FLAGS_json);
  options.clear_screen = isatty(STDOUT_FILENO) == 1;
  options.until_ready = absl::GetFlag(FLAGS_until_ready);
  if (const auto seconds = absl::GetFlag(FLAGS_watch)) {
    FACET_ASSIGN_OR_RETURN(options.watch, Seconds("watch", *seconds));
  }
  return options;
}

absl::StatusOr<ModelsOptions> ModelsOptionsFromFlags() {
  return ModelsOptions{.json = absl::GetFlag(FLAGS_json)};
}

absl::StatusOr<BenchOptions> BenchOptionsFromFlags() {
  BenchOptions options;
  options.model = absl::GetFlag(FLAGS_model);
  options.rate = absl::GetFlag(FLAGS_rate);
  options.streams = absl::GetFlag(FLAGS_streams).value_or(options.rate > 0 ? kOpenStreams : 1);
  options.profile = absl::GetFlag(FLAGS_profile);
  if (const std::vector<std::string> limits = absl::GetFlag(FLAGS_limits); !limits.empty()) {
    if (!options.profile) return InvalidArgument("--limits goes with --profile");
    FACET_ASSIGN_OR_RETURN(options.limits, ParseLimits(limits));
  }
  options.requests = absl::GetFlag(FLAGS_requests);
  options.prompt_tokens = absl::GetFlag(FLAGS_prompt_tokens);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens).value_or(options.max_tokens);
  options.seed = absl::GetFlag(FLAGS_seed).value_or(options.seed);
  if (const auto v = absl::GetFlag(FLAGS_temperature)) options.temperature = *v;
  options.json = absl::GetFlag(FLAGS_json);
  options.progress = isatty(STDERR_FILENO) == 1;
  if (options.streams < 1 || options.streams > 4096) {
    return InvalidArgument("--streams is {}; it must be from 1 to 4096", options.streams);
  }
  if (!(options.rate >= 0) || options.rate > kRateMax) {
    return InvalidArgument("--rate is {}; it must be from 0 to {}", options.rate, kRateMax);
  }
  if (options.prompt_tokens < 1 || options.max_tokens < 1 || options.requests < 0) {
    return InvalidArgument("--prompt_tokens, --max_tokens and --requests must be above 0");
  }
  if (const auto seconds = absl::GetFlag(FLAGS_seconds)) {
    if (options.requests > 0) return InvalidArgument("--seconds and --requests exclude each other");
    FACET_ASSIGN_OR_RETURN(options.duration, Seconds("seconds", *seconds));
  } else if (options.requests == 0) {
    if (options.rate > 0) return InvalidArgument("--rate needs --requests or --seconds");
    options.requests = 4 * options.streams;
  }
  return options;
}

}  // namespace facet
