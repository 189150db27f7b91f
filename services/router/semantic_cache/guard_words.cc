#include "services/router/semantic_cache/guard_words.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace trivium::router {
namespace {

using Words = std::unordered_set<std::string_view>;

// Separated by spaces.
Words Split(std::string_view text) {
  Words words;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (end > 0) words.insert(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

// Of a pair of opposites the one that is seldom said by the way will do: "worst" tells it from
// "best". Order, time, units and money, directions, colours, places, peoples, languages, what one
// eats, keeps, suffers from and takes.
constexpr std::string_view kTurning =
    "why who whom whose when where some any all both only every each "
    "ascending descending asc desc increase decrease increasing decreasing increases "
    "decreases max min maximum minimum maximise minimise maximize minimize before after "
    "above below over under less fewer least largest smallest biggest larger smaller bigger "
    "highest lowest higher lower high low worst worse last oldest newest older newer "
    "youngest earlier later earliest latest stop end close enable disable enabled disabled "
    "enabling disabling off down out left right push pull add remove adding removing insert "
    "delete append prepend buy sell buying selling import export encode decode encrypt "
    "decrypt compress decompress write reading writing allow deny allowed forbidden accept "
    "reject false hot cold warm cool win lose winning losing upper uppercase lowercase "
    "horizontal vertical horizontally vertically row rows column columns private input "
    "output client server mother father son daughter brother sister husband wife man woman "
    "men women boy girl male female king queen uncle aunt pop lock unlock mount unmount "
    "install uninstall subscribe unsubscribe connect disconnect attach detach increment "
    "decrement upgrade downgrade login logout gain loss profit expensive cheap illegal "
    "impossible unsafe dangerous unhealthy positive negative odd old slow faster slower "
    "fastest slowest short longest shortest longer shorter narrow light weak soft difficult "
    "bad outside bottom back backward forwards backwards never sometimes none without "
    "excluding include exclude except versus multiply divide plus minus sum difference "
    "quotient cube rise fall sunrise sunset sync async synchronous asynchronous serial "
    "static dynamic mutable immutable signed unsigned sugar salt inner outer birth death "
    "born died die alive dead war peace love hate lend borrow rent arrive depart arrival "
    "departure debit credit deposit withdraw withdrawal income expense hire fire find gift "
    "second seconds minute minutes hour hours day days week weeks month months year years "
    "decade century daily weekly monthly yearly annual hourly today yesterday tomorrow "
    "tonight morning noon afternoon evening night midnight past future monday tuesday "
    "wednesday thursday friday saturday sunday january february march april june july august "
    "september october november december spring summer autumn winter am pm mm cm m km mile "
    "miles metre metres meter meters foot feet inch inches yard yards kilometre kilometres "
    "kilometer kilometers centimetre centimetres centimeter centimeters kg kilogram "
    "kilograms kilo kilos g gram grams mg lb lbs pound pounds ounce ounces stone ton tons "
    "litre litres liter liters ml gallon gallons cup cups celsius fahrenheit kelvin kb mb gb "
    "tb kib mib gib bit bits byte bytes dollar dollars euro euros yen yuan rupee rupees "
    "franc francs peso pesos usd eur gbp jpy cny inr chf bitcoin ethereum percent degrees "
    "hectare acre acres watt watts volt volts amp amps north south east west northern "
    "southern eastern western red green blue yellow black white orange purple pink brown "
    "grey gray afghanistan albania algeria argentina armenia australia austria azerbaijan "
    "bangladesh belarus belgium bolivia bosnia brazil bulgaria cambodia cameroon canada "
    "chile china colombia croatia cuba cyprus czechia denmark ecuador egypt england estonia "
    "ethiopia finland france georgia germany ghana greece guatemala haiti honduras hungary "
    "iceland india indonesia iran iraq ireland israel italy jamaica japan jordan kazakhstan "
    "kenya korea kuwait laos latvia lebanon libya lithuania luxembourg madagascar malaysia "
    "mali malta mexico moldova mongolia morocco mozambique myanmar namibia nepal netherlands "
    "holland nicaragua niger nigeria norway oman pakistan panama paraguay peru philippines "
    "poland portugal qatar romania russia rwanda scotland senegal serbia singapore slovakia "
    "slovenia somalia spain sudan sweden switzerland syria taiwan tanzania thailand tunisia "
    "turkey uganda ukraine uruguay usa uk uzbekistan venezuela vietnam wales yemen zambia "
    "zimbabwe europe asia africa america antarctica oceania london paris berlin madrid rome "
    "vienna athens dublin lisbon oslo stockholm helsinki copenhagen warsaw prague budapest "
    "moscow kyiv istanbul cairo delhi mumbai beijing shanghai tokyo osaka seoul bangkok "
    "jakarta manila sydney melbourne toronto montreal chicago boston houston dallas denver "
    "seattle miami atlanta california texas florida mars venus jupiter saturn mercury "
    "neptune uranus pluto earth moon sun english french german spanish italian portuguese "
    "dutch russian chinese japanese korean arabic hindi polish turkish greek swedish danish "
    "norwegian finnish czech hungarian hebrew latin american british canadian australian "
    "indian mexican python java javascript typescript rust golang ruby php perl swift kotlin "
    "scala haskell c cpp csharp fortran cobol lua bash sql mysql postgres postgresql sqlite "
    "mongodb redis kafka docker kubernetes linux windows macos ubuntu debian android ios "
    "html css json yaml xml csv http https tcp udp ipv4 ipv6 post put patch react vue "
    "angular numpy pandas array map dict tuple string integer float boolean cat cats dog "
    "dogs horse cow pig chicken fish beef pork rice pasta potato potatoes egg eggs bread "
    "milk water wine beer tea coffee oil butter cheese apple apples banana aspirin ibuprofen "
    "paracetamol acetaminophen insulin penicillin antibiotics fever cough headache flu "
    "cancer diabetes asthma child children adult adults baby infant pregnant elderly stock "
    "stocks bond bonds gold silver copper google microsoft amazon tesla meta nvidia netflix ";

constexpr std::string_view kLight =
    "a an the this that these those it its is are was were be been being am do does did "
    "doing done have has had having will would shall should can could may might must of to "
    "in on at by for from with about into onto as and but if then than so such there here "
    "what what's whats which how how's i i'd i'm me we us you your yours he she they them "
    "their please kindly thanks thank hi hello hey ok okay just also too very really quite "
    "much many tell show give explain let know want wanna need like help find get got make "
    "use using used way ways best possibly exactly actually basically simple simply quick "
    "quickly question answer wondering wonder curious one ones something anything thing "
    "things word words now ever other another between through during per via look "
    "looking see go going come work works happen happens able our ours let's up out good "
    "easy easiest better nice new ";

constexpr std::string_view kNegative =
    "not no never none nobody nothing nowhere neither nor without cannot cant dont doesnt didnt "
    "isnt arent wasnt werent wont wouldnt shouldnt couldnt hasnt havent hadnt mustnt unless except "
    "avoid prevent lacks lack missing hardly barely";

constexpr std::string_view kPersonal = "my mine myself our ours ourselves i'm im i've ive i'd";

constexpr std::string_view kInjections[] = {"ignore previous",
                                            "ignore all",
                                            "ignore the above",
                                            "ignore above",
                                            "ignore your",
                                            "ignore any",
                                            "ignore what",
                                            "ignore everything",
                                            "ignore prior",
                                            "ignore these",
                                            "ignore the previous",
                                            "ignore the prior",
                                            "ignore the instruction",
                                            "ignore instruction",
                                            "disregard",
                                            "forget previous",
                                            "forget all",
                                            "forget everything",
                                            "forget your",
                                            "forget the",
                                            "forget what",
                                            "override",
                                            "overrule",
                                            "system prompt",
                                            "system message",
                                            "developer message",
                                            "your instructions",
                                            "your guidelines",
                                            "your rules",
                                            "previous instruction",
                                            "prior instruction",
                                            "above instruction",
                                            "new instruction",
                                            "instead of answering",
                                            "instead, ",
                                            "instead say",
                                            "instead reply",
                                            "pretend",
                                            "act as",
                                            "role-play",
                                            "roleplay",
                                            "you are now",
                                            "from now on",
                                            "jailbreak",
                                            "developer mode",
                                            "do anything now",
                                            "answer only",
                                            "reply only",
                                            "respond only",
                                            "respond with",
                                            "reply with",
                                            "answer with",
                                            "only say",
                                            "just say",
                                            "always say",
                                            "append",
                                            "end your answer",
                                            "begin your answer",
                                            "start your answer",
                                            "start your reply",
                                            "end your reply",
                                            "say that",
                                            "print the following",
                                            "repeat after",
                                            "<|",
                                            "|>",
                                            "[inst",
                                            "<<sys",
                                            "###",
                                            "assistant:",
                                            "system:",
                                            "user:",
                                            "in the voice of",
                                            "translate your",
                                            "reveal",
                                            "regardless of"};

}  // namespace

bool IsTurningWord(std::string_view word) {
  static const Words words = Split(kTurning);
  return words.contains(word);
}

bool IsLightWord(std::string_view word) {
  static const Words words = Split(kLight);
  return words.contains(word);
}

bool IsNegation(std::string_view word) {
  static const Words words = Split(kNegative);
  return word.ends_with("n't") || word.ends_with("n\xe2\x80\x99t") || words.contains(word);
}

std::string_view NumberOf(std::string_view word) {
  static const std::unordered_map<std::string_view, std::string_view> numbers{
      {"zero", "0"},      {"one", "1"},        {"two", "2"},       {"three", "3"},
      {"four", "4"},      {"five", "5"},       {"six", "6"},       {"seven", "7"},
      {"eight", "8"},     {"nine", "9"},       {"ten", "10"},      {"eleven", "11"},
      {"twelve", "12"},   {"thirteen", "13"},  {"fourteen", "14"}, {"fifteen", "15"},
      {"sixteen", "16"},  {"seventeen", "17"}, {"eighteen", "18"}, {"nineteen", "19"},
      {"twenty", "20"},   {"thirty", "30"},    {"forty", "40"},    {"fifty", "50"},
      {"sixty", "60"},    {"seventy", "70"},   {"eighty", "80"},   {"ninety", "90"},
      {"hundred", "100"}, {"thousand", "1e3"}, {"million", "1e6"}, {"billion", "1e9"},
      {"half", "1/2"},    {"third", "3rd"},    {"fourth", "4th"},  {"fifth", "5th"},
      {"twice", "2x"},    {"double", "2x"},    {"triple", "3x"},   {"dozen", "12"}};
  const auto it = numbers.find(word);
  return it == numbers.end() ? std::string_view() : it->second;
}

bool IsPersonalWord(std::string_view word) {
  static const Words words = Split(kPersonal);
  return words.contains(word);
}

std::string_view Canonical(std::string_view word) {
  static const std::unordered_map<std::string_view, std::string_view> same{
      {"repair", "fix"},     {"resolve", "fix"},   {"solve", "fix"},       {"mend", "fix"},
      {"generate", "make"},  {"create", "make"},   {"build", "make"},      {"construct", "make"},
      {"purchase", "buy"},   {"begin", "start"},   {"large", "big"},       {"huge", "big"},
      {"tiny", "small"},     {"issue", "problem"}, {"trouble", "problem"}, {"choose", "select"},
      {"pick", "select"},    {"cost", "price"},    {"obtain", "get"},      {"retrieve", "get"},
      {"fetch", "get"},      {"modify", "change"}, {"alter", "change"},    {"movie", "film"},
      {"car", "automobile"}, {"job", "work"},      {"method", "function"}, {"folder", "directory"}};
  const auto it = same.find(word);
  return it == same.end() ? word : it->second;
}

bool HasInjection(std::string_view lower_text) {
  return std::any_of(std::begin(kInjections), std::end(kInjections), [&](std::string_view phrase) {
    return lower_text.find(phrase) != std::string_view::npos;
  });
}

}  // namespace trivium::router
