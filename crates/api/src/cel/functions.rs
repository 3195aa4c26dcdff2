//! What can be called: the signatures of cel's standard library and of Kubernetes' own, read once from a table.
//!
//! A line is `name(arguments) result`, or `receiver.name(arguments) result` for a member. `A` and `B` stand for any type.

use super::{Libraries, types::Type};
use std::{collections::HashMap, sync::LazyLock};

const TABLE: &str = "
_==_(A, A) bool
_!=_(A, A) bool
_&&_(bool, bool) bool
_||_(bool, bool) bool
!_(bool) bool
_?_:_(bool, A, A) A
_<_(bool, bool) bool | (int, int) | (int, uint) | (int, double) | (uint, uint) | (uint, int) | (uint, double) | (double, double) | (double, int) | (double, uint) | (string, string) | (bytes, bytes) | (time, time) | (duration, duration)
_<=_(bool, bool) bool | (int, int) | (int, uint) | (int, double) | (uint, uint) | (uint, int) | (uint, double) | (double, double) | (double, int) | (double, uint) | (string, string) | (bytes, bytes) | (time, time) | (duration, duration)
_>_(bool, bool) bool | (int, int) | (int, uint) | (int, double) | (uint, uint) | (uint, int) | (uint, double) | (double, double) | (double, int) | (double, uint) | (string, string) | (bytes, bytes) | (time, time) | (duration, duration)
_>=_(bool, bool) bool | (int, int) | (int, uint) | (int, double) | (uint, uint) | (uint, int) | (uint, double) | (double, double) | (double, int) | (double, uint) | (string, string) | (bytes, bytes) | (time, time) | (duration, duration)
_+_(int, int) int
_+_(uint, uint) uint
_+_(double, double) double
_+_(string, string) string
_+_(bytes, bytes) bytes
_+_(list(A), list(A)) list(A)
_+_(time, duration) time
_+_(duration, time) time
_+_(duration, duration) duration
_-_(int, int) int
_-_(uint, uint) uint
_-_(double, double) double
_-_(time, time) duration
_-_(time, duration) time
_-_(duration, duration) duration
_*_(int, int) int
_*_(uint, uint) uint
_*_(double, double) double
_/_(int, int) int
_/_(uint, uint) uint
_/_(double, double) double
_%_(int, int) int
_%_(uint, uint) uint
-_(int) int
-_(double) double
@in(A, list(A)) bool
@in(A, map(A, B)) bool
_[_](list(A), int) A
_[_](map(A, B), A) B
_[?_](list(A), int) optional(A)
_[?_](map(A, B), A) optional(B)
_[?_](optional(list(A)), int) optional(A)
_[?_](optional(map(A, B)), A) optional(B)
size(string) int | (bytes) | (list(A)) | (map(A, B))
string.size() int
bytes.size() int
list(A).size() int
map(A, B).size() int
bool(bool) bool | (string)
bytes(bytes) bytes | (string)
double(double) double | (int) | (uint) | (string)
duration(duration) duration | (string) | (int)
dyn(A) dyn
int(int) int | (uint) | (double) | (string) | (time) | (duration)
string(string) string | (bool) | (int) | (uint) | (double) | (bytes) | (time) | (duration)
timestamp(time) time | (string) | (int)
type(A) type(A)
uint(uint) uint | (int) | (double) | (string)
matches(string, string) bool
string.matches(string) bool
string.contains(string) bool
string.startsWith(string) bool
string.endsWith(string) bool
time.getDate() int | (string)
time.getDayOfMonth() int | (string)
time.getDayOfWeek() int | (string)
time.getDayOfYear() int | (string)
time.getFullYear() int | (string)
time.getHours() int | (string)
time.getMilliseconds() int | (string)
time.getMinutes() int | (string)
time.getMonth() int | (string)
time.getSeconds() int | (string)
duration.getHours() int
duration.getMilliseconds() int
duration.getMinutes() int
duration.getSeconds() int
string.charAt(int) string
string.indexOf(string) int | (string, int)
string.lastIndexOf(string) int | (string, int)
string.lowerAscii() string
string.upperAscii() string
string.replace(string, string) string | (string, string, int)
string.split(string) list(string) | (string, int)
string.substring(int) string | (int, int)
string.trim() string
string.format(list(dyn)) string
list(string).join() string | (string)
strings.quote(string) string
list(int).isSorted() bool
list(uint).isSorted() bool
list(double).isSorted() bool
list(bool).isSorted() bool
list(duration).isSorted() bool
list(time).isSorted() bool
list(string).isSorted() bool
list(bytes).isSorted() bool
list(int).sum() int
list(uint).sum() uint
list(double).sum() double
list(duration).sum() duration
list(int).min() int
list(uint).min() uint
list(double).min() double
list(bool).min() bool
list(duration).min() duration
list(time).min() time
list(string).min() string
list(bytes).min() bytes
list(int).max() int
list(uint).max() uint
list(double).max() double
list(bool).max() bool
list(duration).max() duration
list(time).max() time
list(string).max() string
list(bytes).max() bytes
list(A).indexOf(A) int
list(A).lastIndexOf(A) int
list(A).slice(int, int) list(A)
list(list(A)).flatten() list(A)
list(dyn).flatten(int) list(dyn)
list(int).sort() list(int)
list(uint).sort() list(uint)
list(double).sort() list(double)
list(bool).sort() list(bool)
list(duration).sort() list(duration)
list(time).sort() list(time)
list(string).sort() list(string)
list(bytes).sort() list(bytes)
list(A).distinct() list(A)
list(A).reverse() list(A)
list(A).first() optional(A)
list(A).last() optional(A)
lists.range(int) list(int)
sets.contains(list(A), list(A)) bool
sets.equivalent(list(A), list(A)) bool
sets.intersects(list(A), list(A)) bool
string.find(string) string
string.findAll(string) list(string) | (string, int)
url(string) url
isURL(string) bool
url.getScheme() string
url.getHost() string
url.getHostname() string
url.getPort() string
url.getEscapedPath() string
url.getQuery() map(string, list(string))
ip(string) ip
isIP(string) bool
ip.isCanonical(string) bool
ip.family() int
ip.isUnspecified() bool
ip.isLoopback() bool
ip.isLinkLocalMulticast() bool
ip.isLinkLocalUnicast() bool
ip.isGlobalUnicast() bool
cidr(string) cidr
isCIDR(string) bool
cidr.containsIP(string) bool | (ip)
cidr.containsCIDR(string) bool | (cidr)
cidr.ip() ip
cidr.masked() cidr
cidr.prefixLength() int
string(ip) string | (cidr)
quantity(string) quantity
isQuantity(string) bool
quantity.isInteger() bool
quantity.asInteger() int
quantity.asApproximateFloat() double
quantity.sign() int
quantity.add(quantity) quantity | (int)
quantity.sub(quantity) quantity | (int)
quantity.compareTo(quantity) int
quantity.isGreaterThan(quantity) bool
quantity.isLessThan(quantity) bool
semver(string) semver | (string, bool)
isSemver(string) bool | (string, bool)
semver.major() int
semver.minor() int
semver.patch() int
semver.compareTo(semver) int
semver.isGreaterThan(semver) bool
semver.isLessThan(semver) bool
format.named(string) optional(namedformat)
format.dns1123Label() namedformat
format.dns1123Subdomain() namedformat
format.dns1035Label() namedformat
format.qualifiedName() namedformat
format.dns1123LabelPrefix() namedformat
format.dns1123SubdomainPrefix() namedformat
format.dns1035LabelPrefix() namedformat
format.labelValue() namedformat
format.uri() namedformat
format.uuid() namedformat
format.byte() namedformat
format.date() namedformat
format.datetime() namedformat
namedformat.validate(string) optional(list(string))
jsonpatch.escapeKey(string) string
optional.of(A) optional(A)
optional.ofNonZeroValue(A) optional(A)
optional.none() optional(A)
optional(A).hasValue() bool
optional(A).value() A
optional(A).or(optional(A)) optional(A)
optional(A).orValue(A) A
optional.unwrap(list(optional(A))) list(A)
list(optional(A)).unwrapOpt() list(A)
_[_](optional(list(A)), int) optional(A)
_[_](optional(map(A, B)), A) optional(B)
authorizer.path(string) pathcheck
authorizer.group(string) groupcheck
authorizer.serviceAccount(string, string) authorizer
groupcheck.resource(string) resourcecheck
resourcecheck.subresource(string) resourcecheck
resourcecheck.namespace(string) resourcecheck
resourcecheck.name(string) resourcecheck
resourcecheck.fieldSelector(string) resourcecheck
resourcecheck.labelSelector(string) resourcecheck
resourcecheck.check(string) decision
pathcheck.check(string) decision
decision.allowed() bool
decision.reason() string
decision.errored() bool
decision.error() string
";

/// Names with a dot that are functions, not members of a variable.
const NAMESPACES: &[&str] = &["strings", "lists", "sets", "ip", "format", "jsonpatch", "optional"];
/// The names that only mutations have.
const OF_MUTATIONS: &str = "jsonpatch.";

/// One way to call a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    pub member: bool,
    /// The receiver of a member comes first.
    pub args: Vec<Type>,
    pub result: Type,
}

static SIGNATURES: LazyLock<HashMap<String, Vec<Signature>>> = LazyLock::new(|| {
    let mut all: HashMap<String, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let mut alternatives = line.split(" | ");
        let first = alternatives.next().unwrap_or_default();
        // The last bracket that opens at the outermost level is that of the arguments.
        let (head, args, result) = cut(first);
        let dot = head.rfind('.').filter(|_| !head.starts_with('_'));
        let (receiver, name) = match dot {
            Some(dot) if !is_namespace(&head[..dot], &head[dot + 1..], args) => (Some(parse(&head[..dot])), head[dot + 1..].to_string()),
            _ => (None, head.to_string()),
        };
        let result = parse(result);
        let mut add = |args: &str| {
            let args = receiver.iter().cloned().chain(split(args).into_iter().map(parse)).collect();
            all.entry(name.clone()).or_default().push(Signature { member: receiver.is_some(), args, result: result.clone() });
        };
        add(args);
        alternatives.for_each(|more| add(more.trim().trim_start_matches('(').strip_suffix(')').unwrap_or_default()));
    }
    all
});

/// `ip.isCanonical(string)` is a function of its own, `ip.family()` a member of an address.
fn is_namespace(head: &str, name: &str, args: &str) -> bool {
    match head {
        "ip" => name == "isCanonical" && args == "string",
        _ => NAMESPACES.contains(&head),
    }
}

/// `name`, `arguments`, `result` of one signature.
fn cut(text: &str) -> (&str, &str, &str) {
    let mut depth = 0;
    let mut open = None;
    let mut last = (0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => {
                if depth == 0 {
                    open = Some(i);
                }
                depth += 1;
            }
            ')' => {
                depth -= 1;
                if depth == 0 {
                    last = (open.unwrap_or(0), i);
                    // What follows is a member name or the result.
                    if text[i + 1..].starts_with(' ') {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    (&text[..last.0], &text[last.0 + 1..last.1], text[last.1 + 1..].trim())
}

/// Splits at outermost commas.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}

fn parse(text: &str) -> Type {
    let text = text.trim();
    let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(items) = inner("list") {
        return Type::List(Box::new(parse(items)));
    }
    if let Some(pair) = inner("map") {
        let parts = split(pair);
        return Type::Map(Box::new(parse(parts[0])), Box::new(parse(parts[1])));
    }
    if let Some(of) = inner("optional") {
        return Type::Optional(Box::new(parse(of)));
    }
    if let Some(of) = inner("type") {
        return Type::Kind(Box::new(parse(of)));
    }
    match text {
        "A" | "B" => Type::Param(text.chars().next().unwrap_or('A')),
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "time" => Type::Timestamp,
        "duration" => Type::Duration,
        "url" => Type::Opaque("kubernetes.URL"),
        "ip" => Type::Opaque("net.IP"),
        "cidr" => Type::Opaque("net.CIDR"),
        "quantity" => Type::Opaque("kubernetes.Quantity"),
        "semver" => Type::Opaque("kubernetes.Semver"),
        "namedformat" => Type::Opaque("kubernetes.NamedFormat"),
        "authorizer" => Type::Opaque("kubernetes.authorization.Authorizer"),
        "pathcheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
        "groupcheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
        "resourcecheck" => Type::Opaque("kubernetes.authorization.ResourceCheck"),
        "decision" => Type::Opaque("kubernetes.authorization.Decision"),
        _ => Type::Dyn,
    }
}

/// Whether values of a type have an order, by which lists of them are sorted.
pub fn has_order(type_: &Type) -> bool {
    use Type::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    matches!(type_, Int | Uint | Double | Bool | Duration | Timestamp | String | Bytes)
}

/// All ways to call a function; `None` for one that is not known.
pub fn signatures(name: &str, libraries: Libraries) -> Option<&'static [Signature]> {
    if name.starts_with(OF_MUTATIONS) && !libraries.mutation {
        return None;
    }
    SIGNATURES.get(name).map(Vec::as_slice)
}

/// Whether a dotted name is a function.
pub fn is_function(name: &str, libraries: Libraries) -> bool {
    signatures(name, libraries).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let signatures = |name: &str| signatures(name, Libraries::default());
        let is_function = |name: &str| is_function(name, Libraries::default());
        assert_eq!(signatures("_<_").unwrap().len(), 14);
        let size = signatures("size").unwrap();
        assert_eq!((size.len(), size.iter().filter(|s| s.member).count()), (8, 4));
        assert!(is_function("sets.contains") && is_function("ip.isCanonical") && is_function("optional.of") && !is_function("ip.family"));
        let get = signatures("getQuery").unwrap();
        assert_eq!((get[0].member, get[0].result.to_string().as_str()), (true, "map(string, list(string))"));
        let flatten = signatures("flatten").unwrap();
        assert_eq!(flatten.iter().map(|s| s.args.len()).collect::<Vec<_>>(), [1, 2]);
        assert!(signatures("hasValue").unwrap()[0].member);
        assert!(!signatures("optional.none").unwrap()[0].member);
    }
}
